"""The miniature of sinc60 from recordings to results, through the real loop and program."""

import dataclasses
import json
import os
import pathlib
import shutil
import time

import chex
import killing
import pytest
import small
import small_config
import small_pipeline

from kws_jax import config as config_lib
from kws_jax import model as model_lib
from kws_jax import pipeline, report
from kws_jax.space import mfcc_space, table1_space
from kws_jax.training import quantized_runs
from kws_jax.training.runs import evaluate_model

NAMES = ['float', 'fixed-2-3', 'trained-bits']


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


@pytest.fixture(scope='module')
def finished():
    return small_pipeline.reference()


@pytest.fixture(scope='module')
def results(finished):
    return json.loads((finished.workdir / 'results.json').read_text())


@pytest.fixture(scope='module')
def data(finished):
    return small_pipeline.open_folder(finished.folder)


def config(**changes):
    return small_config.get_config().to_dict() | changes


def test_every_phase_ends_in_a_row_of_costs_and_scores(results):
    assert [row['name'] for row in results['rows']] == NAMES
    clips = results['data']['examples']['testing']
    for row in results['rows']:
        assert row['test']['clips'] == clips == sum(map(sum, row['test']['confusion']))
        low, high = row['test']['accuracy_interval']
        assert 0 <= low <= row['test']['accuracy'] <= high <= 1
        assert 0 <= row['test']['accuracy_with_zero_silence'] <= 1
        assert 0 <= row['validation_accuracy'] <= 1
        assert row['wall_seconds'] > 0
    # low, middle, high; rising is unknown, and silence comes from the background noise
    assert results['data']['labels'] == ['low', 'middle', 'high', 'silence', 'unknown']
    total = results['search']['wall_seconds'] + sum(r['wall_seconds'] for r in results['rows'])
    assert results['wall_seconds'] == pytest.approx(total)
    assert results['hardware']['cores'] == os.cpu_count()


def test_the_search_ends_within_its_targets_and_the_rows_have_its_network(results):
    target = small_config.get_config().target
    for row in results['rows']:
        assert 0.9 * target.macs <= row['macs'] <= target.macs
        assert row['macs'] == results['search']['macs']
        assert row['parameters'] == results['search']['parameters'] <= target.parameters


def test_bits_are_those_that_were_asked_for(results, finished):
    rows = {row['name']: row for row in results['rows']}
    means = {
        name: (row['mean_weight_bits'], row['mean_activation_bits']) for name, row in rows.items()
    }
    assert means['float'] == (32, 32) and means['fixed-2-3'][0] == 2
    fixed = model_lib.load(finished.workdir / 'fixed-2-3' / 'model')
    assert set(fixed.bits('weight').values()) == {2}
    widths = fixed.bits('activation')
    assert widths.pop('input') == 8 and set(widths.values()) == {3}
    for mean, budget in zip(means['trained-bits'], (3.0, 3.0), strict=True):
        assert 0.98 * budget <= mean <= budget
    assert rows['fixed-2-3']['flash_bytes'] < rows['trained-bits']['flash_bytes']
    trained = model_lib.load(finished.workdir / 'trained-bits' / 'model')
    assert all(2 <= b <= 8 for b in trained.bits('weight').values())
    assert all(1 <= b <= 8 for b in trained.bits('activation').values())


@pytest.mark.parametrize('name', NAMES)
def test_the_saved_model_has_the_accuracy_that_the_run_reported(name, results, finished, data):
    model = model_lib.load(finished.workdir / name / 'model')
    (row,) = (row for row in results['rows'] if row['name'] == name)
    # the run's own evaluation and this one are different programs on different batches
    assert evaluate_model(model, data, 'validation')['accuracy'] == pytest.approx(
        row['validation_accuracy'], abs=1e-6
    )


def stamps(workdir):
    return {
        str(path): path.stat().st_mtime_ns
        for path in workdir.rglob('*')
        if path.is_file() and path.name not in ('results.json', 'phase.json')
    }


def test_a_second_run_repeats_no_finished_work_and_gives_the_same_results(
    finished, results, data, monkeypatch
):
    for name in ('train', 'quantize_fixed', 'quantize_trained', 'evaluate_model'):
        monkeypatch.setattr(pipeline, name, lambda *_, **__: pytest.fail('repeats work'))
    monkeypatch.setitem(pipeline.SEARCHERS, 'proxyless', lambda *_, **__: pytest.fail('searches'))
    before, began = stamps(finished.workdir), time.monotonic()
    again = pipeline.run(config(), data, finished.workdir)
    assert time.monotonic() - began < 10
    assert stamps(finished.workdir) == before
    assert json.loads(json.dumps(again)) == results


def test_the_program_ends_at_once_on_a_finished_run_and_prints_its_table(finished, tmp_path):
    folder = pathlib.Path(small_config.__file__).parent
    out = killing.finish(
        killing.start(
            [
                'launch/pipeline.py',
                f'--config={folder / "small_config.py"}',
                f'--data_dir={finished.folder}',
                f'--workdir={finished.workdir}',
                f'--cache_dir={tmp_path}',
            ],
            PYTHONPATH=os.pathsep.join([str(killing.ROOT), str(folder)]),
        )
    )
    assert all(name in out for name in NAMES)


@pytest.mark.parametrize(
    'variant, phase, key', [('other-lr', 'float', 'lr'), ('other-batch', 'search', 'search.batch')]
)
def test_another_configuration_is_refused_with_the_key_that_differs(
    variant, phase, key, finished, data
):
    before = stamps(finished.workdir)
    other = small_config.get_config(variant).to_dict()
    with pytest.raises(ValueError, match=rf'{phase} was made .*different: {key}.; use another'):
        pipeline.run(other, data, finished.workdir)
    assert stamps(finished.workdir) == before


# ---- parts


def test_a_phase_that_failed_is_built_again_and_then_kept(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        if len(built) == 1:
            raise RuntimeError('out of luck')
        return small.model()

    with pytest.raises(RuntimeError, match='out of luck'):
        pipeline._phase(tmp_path, 'float', {'lr': 1}, build)
    for _ in range(2):
        model = pipeline._phase(tmp_path, 'float', {'lr': 1}, build)
        assert model.architecture == small.model().architecture
    assert len(built) == 2
    with pytest.raises(ValueError, match='different: epochs, lr.'):
        pipeline._phase(tmp_path, 'float', {'lr': 2, 'epochs': 3}, build)
    assert len(built) == 2


def test_spaces_by_name_and_written_out():
    assert pipeline.make_space({'name': 'table1'}, (98, 60), 12) == table1_space()
    assert pipeline.make_space({'name': 'mfcc', 'width': 0.75}, (51, 10), 12) == mfcc_space(
        width=0.75
    )
    shape = small.space().image_shape
    assert pipeline.make_space(dict(small.SPACE), shape, 3) == small.space()
    with pytest.raises(ValueError, match="space.name must be one of table1, mfcc, got 'table2'"):
        pipeline.make_space({'name': 'table2'}, (98, 60), 12)


def test_an_unknown_search_method_is_an_error(data):
    with pytest.raises(ValueError, match=r"search\.method must be one of .*, got 'luck'"):
        pipeline.check(config(search=config()['search'] | {'method': 'luck'}), data)


def test_a_random_architecture_starts_from_fresh_weights_of_its_seed(data, tmp_path):
    search = config()['search'] | {'method': 'random'}
    first, second = (
        pipeline.search_phase(config(search=search), data, tmp_path / name) for name in 'ab'
    )
    assert first.architecture == second.architecture
    assert pipeline._digest(first) == pipeline._digest(second)
    assert first.card['method'] == 'random' and first.card['wall_seconds'] == 0


@pytest.mark.parametrize(
    'source',
    [
        'sinc60.py',
        'sinc60.py:quickstart',
        'sinc60.py:mini',
        'sinc60.py:paper',
        'sinc_small.py',
        'sinc48.py',
        'sinc48.py:wide',
    ],
)
def test_every_configuration_describes_a_search_that_is_possible(source):
    loaded = config_lib.load_config(f'configs/{source}').to_dict()
    problem = pipeline.make_problem(loaded, [str(i) for i in range(12)])
    assert problem.bounds['low'] < problem.bounds['high'] == loaded['target']['macs']


def test_an_unknown_variant_is_an_error_that_names_the_known():
    with pytest.raises(config_lib.ConfigError, match="'quickstart', 'mini' or 'paper', got 'tiny'"):
        config_lib.load_config('configs/sinc60.py:tiny')


def test_a_given_architecture_is_taken_as_it_is(data, tmp_path):
    changes = {'method': 'given', 'choices': ('e1k3',)}
    model = pipeline.search_phase(config(search=config()['search'] | changes), data, tmp_path)
    assert [choice.name for choice in model.architecture.choices] == ['e1k3']
    assert model.card['method'] == 'given' and model.card['wall_seconds'] == 0
    changes['choices'] = ('e1k4',)
    with pytest.raises(ValueError, match="has no candidate 'e1k4'; the nearest is e1k3"):
        pipeline.search_phase(config(search=config()['search'] | changes), data, tmp_path / 'b')
    # a refused setting made nothing, so it may be corrected in place
    changes['choices'] = ('e1k3',)
    again = pipeline.search_phase(config(search=config()['search'] | changes), data, tmp_path / 'b')
    assert again.architecture == model.architecture


def test_a_trial_is_not_scored_on_test(finished, data, monkeypatch, tmp_path):
    """On a copy of the finished run, where no phase has anything left to do."""
    shutil.copytree(finished.workdir, tmp_path / 'run')
    monkeypatch.setattr(pipeline, 'evaluate_model', lambda *_, **__: pytest.fail('scores'))
    results = pipeline.run(config(test=False), data, tmp_path / 'run')
    assert [row['name'] for row in results['rows']] == NAMES
    assert not any('test' in row for row in results['rows'])
    assert 'Not tested yet' in report.table(results)


@pytest.mark.parametrize('name', ['bits', 'front_ends', 'causal'])
def test_an_unknown_run_of_a_study_is_an_error_that_names_the_known(name):
    with pytest.raises(config_lib.ConfigError, match="variant must be one of .*, got 'tiny'"):
        config_lib.load_config(f'configs/{name}.py:tiny')


@pytest.mark.parametrize(
    ('group', 'changes', 'message'),
    [
        ('search', {'choose': 'best'}, "choose must be 'within' or 'argmax', got 'best'"),
        ('search', {'price': {'name': 'log'}}, "price must be .*, got 'log'"),
        ('train', {'epochs': 0}, r'train\.epochs must be at least 1, got 0'),
        ('train', {'recipe': {'smoothing': 1.0}}, r"train\..*'smoothing'"),
        ('search', {'recipe': {'augment': {'shift': 1}}}, "augment has no setting 'shift'"),
        ('fixed_bits', {'form': 'steps'}, "no quantizer 'steps', only step_range"),
        ('fixed_bits', {'pairs': ((4, 9),)}, r'activation must be in 1\.\.8 bits .*, got 9'),
        ('fixed_bits', {'input_bits': 12}, r'input_bits must be in 1\.\.8 bits .*, got 12'),
        ('fixed_bits', {'signed_bits': 9}, r'signed_bits must be in 1\.\.8 bits .*, got 9'),
        ('trained_bits', {'form': 'steps'}, "no quantizer 'steps', only step_range"),
        ('trained_bits', {'price': 'free'}, "price must be 'budget' or 'linear', got 'free'"),
        ('trained_bits', {'mean_weight_bits': 1.5}, 'mean_weight_bits must be at least 2, got 1.5'),
        ('trained_bits', {'learn_epochs': 0}, r'trained_bits\.learn_epochs must be at least 1'),
    ],
)
def test_what_the_last_phase_cannot_use_is_refused_before_the_first(
    group, changes, message, data, tmp_path
):
    with pytest.raises(ValueError, match=message):
        pipeline.run(config(**{group: config()[group] | changes}), data, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_no_test_recordings_are_noticed_before_anything_is_trained(data, tmp_path, monkeypatch):
    empty = tuple(part[:0] for part in data._pools.fixed['testing'])
    fixed = data._pools.fixed | {'testing': empty}
    monkeypatch.setattr(data, '_pools', dataclasses.replace(data._pools, fixed=fixed))
    with pytest.raises(ValueError, match='no testing recordings of the keywords; pass test_dir'):
        pipeline.run(config(), data, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_larger_network_is_trained_first_and_teaches_the_float_one(
    finished, data, tmp_path, monkeypatch
):
    changed = config()
    stage = changed['space']['stages'][0] | {'channels': 12, 'candidates': ('e2k3',)}
    changed['teacher'] |= {
        'enabled': True,
        'space': changed['space'] | {'stages': (stage,)},
        'choices': ('e2k3',),
        'recipe': changed['train']['recipe'],
    }
    changed['train'] = changed['train'] | {
        'recipe': changed['train']['recipe'] | {'distill': 0.5, 'temperature': 2.0}
    }
    pipeline.check(changed, data)
    teacher = pipeline.teacher_phase(changed, data, tmp_path)
    start = model_lib.load(finished.workdir / 'search' / 'model')
    taught = pipeline.train_phase(changed, data, tmp_path, start, teacher)
    assert teacher.costs()['macs'] > taught.costs()['macs']
    assert taught.architecture == start.architecture
    lines = (tmp_path / 'float' / 'metrics.jsonl').read_text().splitlines()
    assert all(json.loads(line).get('distillation', 0) >= 0 for line in lines)
    assert any('distillation' in json.loads(line) for line in lines)
    # once made, it is kept
    monkeypatch.setattr(pipeline, 'train', lambda *_, **__: pytest.fail('repeats work'))
    assert pipeline.teacher_phase(changed, data, tmp_path).card == teacher.card


def test_further_teachers_reach_the_quantized_phases_and_are_part_of_their_settings(
    finished, data, tmp_path, monkeypatch
):
    changed, heard = config(), []
    changed['trained_bits']['enabled'] = False
    other = str(finished.workdir / 'search')
    changed['fixed_bits'] |= {'teachers': (other,)}
    start = model_lib.load(finished.workdir / 'float' / 'model')

    def quantize(model, *, teachers, **_):
        heard.append(teachers)
        return model

    monkeypatch.setattr(pipeline, 'quantize_fixed', quantize)
    pipeline.quantize_phases(changed, data, tmp_path, start)
    expected = model_lib.load(finished.workdir / 'search' / 'model').params
    assert len(heard) == 1 and len(heard[0]) == 1
    chex.assert_trees_all_equal(heard[0][0].params, expected)
    pipeline.quantize_phases(changed, data, tmp_path, start)
    assert len(heard) == 1  # kept
    changed['fixed_bits'] |= {'teachers': (other, other)}
    with pytest.raises(ValueError, match='fixed-2-3 was made .*different: teachers.; use another'):
        pipeline.quantize_phases(changed, data, tmp_path, start)


def test_fixed_bits_begin_with_the_weights_of_a_model_at_more_bits(
    finished, data, tmp_path, monkeypatch
):
    changed = config()
    changed['trained_bits']['enabled'] = False
    first = str(finished.workdir / 'trained-bits')
    float_model = model_lib.load(finished.workdir / 'float' / 'model')
    changed['fixed_bits'] |= {'start_model': first}
    with pytest.raises(ValueError, match='start_model needs float_model'):
        pipeline.check(changed, data)
    changed['float_model'] = str(finished.workdir / 'float')
    pipeline.check(changed, data)
    begun, taught, run = [], [], quantized_runs._quantized_run

    def quantized_run(model, *arguments, teachers, **options):
        begun.append(model)
        taught.append(teachers)
        return run(model, *arguments, teachers=teachers, **options)

    monkeypatch.setattr(quantized_runs, '_quantized_run', quantized_run)
    pipeline.quantize_phases(changed, data, tmp_path, float_model)
    chex.assert_trees_all_equal(begun[0].params, model_lib.load(f'{first}/model').params)
    chex.assert_trees_all_equal(taught[0][0].params, float_model.params)
    # another start is another run
    changed['fixed_bits']['start_model'] = ''
    with pytest.raises(ValueError, match='made with another configuration .different: start_model'):
        pipeline.quantize_phases(changed, data, tmp_path, float_model)
    # a model of another network is no start
    changed |= {'fixed_bits': changed['fixed_bits'] | {'start_model': first}}
    other = dataclasses.replace(float_model, front_end=float_model.front_end | {'filters': 21})
    model_lib.save(other, tmp_path / 'other')
    changed['float_model'] = str(tmp_path / 'other')
    with pytest.raises(ValueError, match='start_model: .* has another front_end than float_model'):
        pipeline.check(changed, data)


def test_distillation_without_a_teacher_is_refused(data):
    changed = config()
    changed['train'] = changed['train'] | {'recipe': changed['train']['recipe'] | {'distill': 0.5}}
    with pytest.raises(ValueError, match='distill needs a teacher: set teacher.enabled=True'):
        pipeline.check(changed, data)
    assert pipeline.teacher_phase(changed, data, None) is None
