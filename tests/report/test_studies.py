"""Pictures of studies, from invented results."""

import dataclasses
import json

import pytest
import small

from kws_jax import model as model_lib
from kws_jax import study
from kws_jax.report import studies, style
from kws_jax.report.style import Missing

COSTS = dict.fromkeys(study._COSTS, 1000)


def made_up(folder, name, runs):
    """Writes results of `(variant, seed, validation, test)`, test None where it was not scored."""
    content = {'runs': []}
    for variant, seed, validation, test in runs:
        row = {'name': 'x', **COSTS, 'validation_accuracy': validation}
        row |= {} if test is None else {'test': {'accuracy': test}}
        content['runs'].append({'variant': variant, 'seed': seed, 'rows': [row]})
    (folder / f'{name}.json').write_text(json.dumps(content))


def texts(ax):
    return [text.get_text().strip() for text in ax.texts]


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_the_grid_of_bits_has_its_accuracies_in_their_places(tmp_path):
    made_up(
        tmp_path,
        'bits',
        [('w2a3', 0, 0.1, 0.9), ('w4a3', 0, 0.1, 0.94), ('w2a8', 0, 0.1, 0.91)],
    )
    ax, bar = studies.bits(tmp_path).figure.axes
    assert labels(ax.yaxis) == ['4', '2'] and labels(ax.xaxis) == ['3', '8']
    places = {text.get_position(): text.get_text() for text in ax.texts}
    assert places == {(0, 0): '94.0', (0, 1): '90.0', (1, 1): '91.0'}  # w4a8 was not run
    assert bar.get_ylabel() == 'test accuracy [%]'


def test_profiles_are_lines_over_means_with_a_marker_per_seed(tmp_path):
    learned = (('learned25', 0, 0.9), ('learned25', 1, 0.92), ('learned40', 0, 0.95))
    runs = [(*run, None) for run in learned]
    made_up(tmp_path, 'profiles', [*runs, ('random25', 0, 0.8, None)])
    means, flash = studies.profiles(tmp_path).figure.axes
    line = next(
        line for line in means.lines if line.get_label().startswith('learned, from the greedy')
    )
    assert list(line.get_xdata()) == [2.5, 4.0]
    assert list(line.get_ydata()) == pytest.approx([91, 95])
    markers = [line for line in means.lines if list(line.get_xdata()) == [2.5, 2.5]]
    assert list(markers[0].get_ydata()) == pytest.approx([90, 92])
    assert means.get_ylabel() == 'validation accuracy [%]' and 'flash' in flash.get_xlabel()


def test_searchers_are_columns_with_a_bar_at_the_mean(tmp_path):
    runs = [('random', 0, 0.9, 0.80), ('random', 1, 0.9, 0.90), ('proxyless', 0, 0.9, 0.91)]
    made_up(tmp_path, 'architectures', runs)
    (ax,) = studies.architectures(tmp_path).figure.axes
    assert labels(ax.xaxis) == ['random', 'proxyless']
    bars = [line for line in ax.lines if line.get_marker() == '_']
    assert [(list(b.get_xdata()), list(b.get_ydata())) for b in bars] == [([0], [85.0])]


def test_cures_stand_beside_the_fall_they_cure(tmp_path):
    made_up(tmp_path, 'cliff', [('frozen', 0, 0.5, 0.6), ('both', 0, 0.5, 0.8)])
    fall, cures = studies.cliff(tmp_path).figure.axes
    assert labels(cures.yaxis) == ['frozen', 'both'] and texts(cures) == ['60.0', '80.0']
    assert not fall.axison  # the grid was not run
    made_up(tmp_path, 'bits', [('w8a1', 0, 0.5, 0.2), ('w8a4', 0, 0.5, 0.9), ('w4a4', 0, 0.5, 0.7)])
    fall, _ = studies.cliff(tmp_path).figure.axes
    assert list(fall.lines[0].get_xdata()) == [1, 4]


def test_front_ends_are_drawn_over_both_costs(tmp_path):
    made_up(tmp_path, 'front_ends', [('sinc', 0, 0.9, None), ('mfcc', 0, 0.8, None)])
    by_parameters, by_macs = studies.front_ends(tmp_path).figure.axes
    assert [line.get_label() for line in by_parameters.lines] == ['SincConv', 'MFCC']
    assert 'parameters' in by_parameters.get_xlabel() and 'MACs' in by_macs.get_xlabel()


def test_a_front_end_far_below_is_named_below_the_picture(tmp_path):
    runs = [('sinc', 0, 0.9, None), ('conv', 0, 0.7, None), ('conv', 1, 0.71, None)]
    made_up(tmp_path, 'front_ends', runs)
    figure = studies.front_ends(tmp_path).figure
    (legend,) = figure.legends
    assert legend.get_title().get_text() == 'below the picture: Conv1D 70.5 %'
    assert [line.get_label() for line in figure.axes[0].lines] == ['SincConv']


def test_released_models_are_drawn_as_their_cards_say(tmp_path):
    test = {'accuracy': 0.9, 'accuracy_interval': [0.88, 0.93]}
    model = dataclasses.replace(small.model(), card={'test': test})
    model_lib.save(model, tmp_path / 'tiny')
    (ax,) = studies.released(tmp_path).figure.axes
    (marker,) = [bars for bars in ax.containers]
    assert marker.get_label() == 'tiny: 90.00 %'
    (at,), (accuracy,) = marker.lines[0].get_data()
    assert accuracy == pytest.approx(90) and at == model.costs()['flash_bytes'] / 1000
    ends = [float(cap.get_ydata()[0]) for cap in marker.lines[1]]
    assert ends == pytest.approx([88, 93])


def test_a_zoo_without_models_is_missing(tmp_path):
    with pytest.raises(Missing, match='no model is released in'):
        studies.released(tmp_path)
    made_up(tmp_path, 'bits', [('w2a3', 0, 0.1, 0.9)])
    files, missing = studies.write(tmp_path, tmp_path / 'zoo', tmp_path / 'out')
    assert [path.name for path in files] == ['bits.png']  # studies are drawn nevertheless
    assert missing[0].startswith('released: no model is released in')


def test_many_front_ends_do_not_look_alike(tmp_path):
    made_up(tmp_path, 'front_ends', [(f'f{i}', 0, 0.9, None) for i in range(12)])
    by_parameters, _ = studies.front_ends(tmp_path).figure.axes
    looks = {(line.get_color(), line.get_marker()) for line in by_parameters.lines}
    assert len(looks) == 12


def test_silence_is_scored_three_ways(tmp_path):
    # 8 of 10 words right, none taken for silence; 1 of 2 silences right: 9/12, and 8/10 without
    test = {'labels': ['yes', 'silence'], 'confusion': [[8, 2], [1, 1]]}
    test |= {'accuracy': 9 / 12, 'accuracy_with_zero_silence': 10 / 12}
    rows = [{'name': 'float', 'test': test}, {'name': 'trained-bits'}]
    (tmp_path / 'sinc60_first_run.json').write_text(json.dumps({'rows': rows}))
    (ax,) = studies.silence(tmp_path).figure.axes
    assert texts(ax) == ['75.00', '83.33', '80.00']
    assert labels(ax.yaxis) == ['sinc60_first_run\ntrained with noise']


@pytest.mark.parametrize('draw', studies.STUDIES)
def test_a_study_without_results_is_missing_and_says_how_it_is_made(draw, tmp_path):
    with pytest.raises(Missing, match='configs|scored'), style.house_style():
        draw(tmp_path)


def test_all_that_is_there_is_written(tmp_path):
    made_up(tmp_path, 'bits', [('w2a3', 0, 0.1, 0.9)])
    files, missing = studies.write(tmp_path, 'kws_jax/zoo', tmp_path / 'out')
    names = {path.name for path in files}
    assert {'bits.png', 'sinc60-float-filters.png', 'sinc60-float-architecture.png'} <= names
    assert all(path.stat().st_size > 1000 for path in files)
    assert [text.split(':')[0] for text in missing] == [
        'profiles',
        'front_ends',
        'architectures',
        'cliff',
        'silence',
    ]
