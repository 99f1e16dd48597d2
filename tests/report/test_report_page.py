"""The page of a run: every picture, and what happens where a part of the run is missing."""

import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys

import made_up
import matplotlib
import numpy as np
import pytest
import scipy.signal
from PIL import Image

from kws_jax import costs, report
from kws_jax.report import curves, filters, networks, outcome, page, records, searching, style
from kws_jax.space import table1_space

PICTURES = {
    'accuracy',
    'architecture',
    'bit_profile',
    'bits_by_layer',
    'bits_mean',
    'confusion',
    'filters',
    'memory',
    'recall',
    'search_probabilities',
    'search_progress',
    'training',
    'wall_time',
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'sinc8'
    folder.mkdir()
    made_up.write_workdir(folder)
    return folder


@pytest.fixture(scope='module')
def written(finished):
    return report.write(finished)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(
        finished, tmp_path / 'copy', ignore=shutil.ignore_patterns('report', 'checkpoints')
    )


def drawn(page_path):
    return {path.stem for path in page_path.parent.glob('*.png')}


def missing(page_path):
    """The words after 'Not drawn' and the list of problems."""
    text = html.unescape(page_path.read_text())
    assert 'could not be drawn' not in text
    return re.findall(r'Not drawn: ([^<]*)\.<', text), re.findall(r'<li>([^<]*)', text)


def draw(workdir, *functions):
    return page.write(workdir, sections=[('All', functions)])


def test_a_finished_run_gets_every_picture(finished, written):
    assert written == finished / 'report' / 'index.html'
    assert drawn(written) == PICTURES
    assert missing(written) == ([], [])


def test_pictures_show_something(written):
    for path in written.parent.glob('*.png'):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('L'))
        assert min(pixels.shape) > 150 and pixels.std() > 5, path.name


def test_the_page_needs_no_other_file_and_no_network(written):
    text = written.read_text()
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == len(PICTURES)
    assert all(source.startswith('data:image/png;base64,') for source in sources)
    assert not re.search(r'https?://|<script|<link', text)


def test_the_page_has_the_table_and_its_caption(written):
    text = written.read_text()
    assert re.search(r'<td>float</td><td>[\d,]+</td>', text)
    assert 'data: made-up' in text and 'synthetic speech' in text


def test_drawing_leaves_matplotlib_as_it_was(copy):
    before = dict(matplotlib.rcParams)
    draw(copy, outcome.wall_time)
    assert dict(matplotlib.rcParams) == before


def test_importing_the_report_imports_neither_matplotlib_nor_jax():
    code = 'import sys, kws_jax.report; print({"jax", "matplotlib"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'


def test_a_picture_of_an_earlier_report_does_not_stay(copy):
    draw(copy, outcome.wall_time)
    assert drawn(draw(copy, outcome.recall)) == {'recall'}


def test_a_search_in_progress_is_drawn(copy):
    for name in ('float', 'fixed-4-4', 'trained-bits'):
        shutil.rmtree(copy / name)
    shutil.rmtree(copy / 'search' / 'model')
    (copy / 'results.json').unlink()
    (copy / 'search' / 'finished.json').unlink()
    with open(copy / 'search' / 'metrics.jsonl', 'a') as file:
        file.write('{"kind": "train", "st')  # cut short by a kill
    done = report.write(copy)
    assert drawn(done) == {'search_probabilities', 'search_progress', 'wall_time'}
    words, notes = missing(done)
    assert 'no model is finished' in words and 'no bit-widths were trained (yet)' in words
    assert notes
    assert 'No model is finished yet' in done.read_text()


def test_rows_of_an_unfinished_run_come_from_its_finished_models(copy):
    (copy / 'results.json').unlink()
    (copy / 'trained-bits' / 'test.json').unlink()
    run = records.read(copy)
    names = {row['name']: 'test' in row for row in run.rows}
    assert names == {'float': True, 'fixed-4-4': True, 'trained-bits': False}
    assert 'trained-bits' in report.table(run.summary)


def test_one_row_is_enough(copy):
    for name in ('fixed-4-4', 'trained-bits'):
        shutil.rmtree(copy / name)
    results = json.loads((copy / 'results.json').read_text())
    results['rows'] = results['rows'][:1]
    (copy / 'results.json').write_text(json.dumps(results))
    done = draw(copy, outcome.accuracy_and_cost, outcome.confusion, networks.bit_profile)
    assert drawn(done) == {'accuracy', 'confusion'}
    assert missing(done)[0] == ['no quantized model is finished']


def test_a_search_that_trains_nothing_is_named(copy):
    (copy / 'search' / 'metrics.jsonl').unlink()
    facts = json.loads((copy / 'search' / 'model' / 'model.json').read_text())
    facts['card']['method'] = 'random'
    (copy / 'search' / 'model' / 'model.json').write_text(json.dumps(facts))
    done = draw(copy, searching.probabilities, searching.progress)
    assert missing(done)[0] == ["the search has logged nothing: the method 'random' trains nothing"]


def test_a_search_without_arch_losses_is_drawn(copy):
    path = copy / 'search' / 'metrics.jsonl'
    kept = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        gone = ['validation_loss', 'validation_accuracy']
        gone += ['entropy', 'expected_cost'] if record['kind'] == 'train' else []
        kept.append(json.dumps({k: v for k, v in record.items() if k not in gone}))
    path.write_text('\n'.join(kept) + '\n')
    assert drawn(draw(copy, searching.progress)) == {'search_progress'}


def test_fixed_features_have_no_filters_to_draw(tmp_path):
    model = made_up.small_model({'name': 'mfcc'}, choices=('e1k3', 'identity', 'e2k5', 'e1k3'))
    made_up.write_phase(tmp_path, 'float', model, {})
    done = draw(tmp_path, filters.front_end, networks.architecture, networks.memory)
    assert drawn(done) == {'architecture', 'memory'}
    assert missing(done)[0] == ['the front end mfcc is fixed: it has no learned filters']


@pytest.mark.parametrize('options', [{'name': 'conv'}, {'name': 'sinc', 'quadrature': True}])
def test_other_learned_filters_are_drawn(tmp_path, options):
    made_up.write_phase(tmp_path, 'float', made_up.small_model(options | {'filters': 6}), {})
    assert drawn(draw(tmp_path, filters.front_end)) == {'filters'}


def test_a_damaged_model_is_a_note_on_the_page(copy):
    (copy / 'trained-bits' / 'model' / 'model.npz').write_bytes(b'no zip')
    done = draw(copy, networks.bit_profile)
    assert drawn(done) == {'bit_profile'}  # of the fixed bits
    assert any('damaged' in note for note in missing(done)[1])


def test_a_single_run_is_a_workdir(tmp_path):
    made_up.write_log(tmp_path / 'alone', made_up.training_records(), done=False)
    done = draw(tmp_path / 'alone', curves.training, outcome.wall_time)
    assert drawn(done) == {'training', 'wall_time'}


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no run'):
        report.write(tmp_path)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        report.write(tmp_path / 'nowhere')
    assert not list(tmp_path.iterdir())


def test_one_failing_picture_is_reported_and_the_others_are_drawn(copy):
    def broken(run):
        raise ZeroDivisionError('of all things')

    done = draw(copy, broken, outcome.wall_time)
    assert drawn(done) == {'wall_time'}
    assert 'broken could not be drawn' in done.read_text()


def test_the_boxes_add_up_to_the_macs_of_the_model():
    model = made_up.small_model()
    boxes = {box.name: box for box in networks.blocks(model)}
    # 8 filters of 400 taps at 98 frames; 3 x 3 x 4 weights at 49 x 4 places
    assert boxes['front end'].macs == 400 * 8 * 98
    assert boxes['stem'].macs == 9 * 4 * 49 * 4
    # 4 -> 8 channels at 49 x 4, 3 x 3 at 25 x 2, 8 -> 6 channels
    assert boxes['iii.0'].macs == 49 * 4 * 32 + 25 * 2 * 8 * 9 + 25 * 2 * 48
    assert boxes['iii.1'].macs == 0 and boxes['iii.1'].skipped
    assert boxes['iv.1'].residual and not boxes['iv.0'].residual
    assert sum(box.macs for box in boxes.values()) == model.costs()['macs']


def test_the_live_tensors_give_the_peak_of_the_costs():
    rng, space = np.random.default_rng(0), table1_space()
    for _ in range(20):
        architecture = space.sample(rng)
        sites = costs.activation_sites(architecture)
        bits = {name: int(b) for name, b in zip(sites, rng.integers(1, 9, len(sites)), strict=True)}
        live = networks.live_values(architecture)
        assert [name for name, _ in live] == [name for name in sites if name != 'input']
        peak = max(
            sum(sites[t] * bits[t] / 8 for t in tensors.values() if t) for _, tensors in live
        )
        assert peak == costs.peak_activation_bytes(architecture, activation_bits=bits)


def test_responses_are_those_of_scipy():
    taps = np.random.default_rng(0).normal(size=(31, 2))
    hertz, level = filters.responses(taps, [1.0, 0.5], sample_rate=16000, points=256)
    for i, gain in enumerate((1.0, 0.5)):
        _, wanted = scipy.signal.freqz(taps[:, i] * gain, worN=hertz, fs=16000)
        np.testing.assert_allclose(level[:, i], 20 * np.log10(np.abs(wanted)), atol=1e-6)


def test_smoothing_is_the_mean_of_what_is_there():
    np.testing.assert_allclose(style.smooth([1.0, 4.0, 7.0, 0.0], 3), [2.5, 4.0, 11 / 3, 3.5])
    np.testing.assert_allclose(style.smooth([3.0, 5.0]), [3.0, 5.0])


def test_epochs_are_steps_over_steps_per_epoch(finished):
    log = records.read(finished).logs['float']
    x, y = log.series('eval', 'accuracy')
    assert x == [1.0, 2.0, 3.0] and len(y) == 3
    assert log.wall_seconds == 2400.0
    unfinished = dataclasses.replace(log, finished=None)
    assert unfinished.wall_seconds == 30.0  # of its last record


def test_the_warm_up_of_a_search_is_timed_apart(finished):
    run = records.read(finished)
    with style.house_style():
        ax = outcome.wall_time(run)[0].figure.axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    minutes = [bar.get_width() for bar in ax.patches]
    assert names[:2] == ['search: warm-up, 2 epochs', 'search: choosing']
    # the second epoch ended at 20 s, the search at 1900 s
    np.testing.assert_allclose(minutes[:2], [20 / 60, 1880 / 60])


def test_phases_are_in_the_order_of_the_pipeline(finished):
    assert list(records.read(finished).logs) == [
        'search', 'float', 'fixed-4-4', 'trained-bits/learn', 'trained-bits/finetune',
    ]  # fmt: skip


def test_launch_report_prints_the_table_and_the_page(copy):
    program = pathlib.Path(__file__).parents[2] / 'launch' / 'report.py'
    command = [sys.executable, str(program), f'--workdir={copy}', '--nodraw']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith('model ')
