"""Many runs that differ in one thing, through the real phases on a small data set."""

import json

import pytest
import small
import small_config
import small_pipeline

from kws_jax import config as config_lib
from kws_jax import pipeline, study
from kws_jax.data import labels

FILE = """
import small_config

VARIANTS = ('two', 'three')


def get_config(variant):
    config = small_config.get_config()
    config.float_model = {float_model!r}
    config.fixed_bits.update({{'pairs': (({{'two': 2, 'three': 3}}[variant], 3),), 'epochs': 1}})
    config.trained_bits.enabled = False
    return config
"""


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return small_pipeline.open_folder(
        small_pipeline.make_folder(tmp_path_factory.mktemp('recordings') / 'words')
    )


@pytest.fixture(scope='module')
def float_model(tmp_path_factory, data):
    """Where a float model is; the architecture is given, and nothing is quantized."""
    config = small_config.get_config()
    config.search.update({'method': 'given', 'choices': ('e2k3',)})
    config.train.update({'epochs': 1, 'from_supernet': False})
    config.fixed_bits.pairs = ()
    config.trained_bits.enabled = config.test = False
    workdir = tmp_path_factory.mktemp('float')
    pipeline.run(config.to_dict(), data, workdir)
    return workdir / 'float'


@pytest.fixture(scope='module')
def source(tmp_path_factory, float_model):
    path = tmp_path_factory.mktemp('config') / 'widths.py'
    path.write_text(FILE.format(float_model=str(float_model)))
    return path


@pytest.fixture(scope='module')
def done(tmp_path_factory, source, data):
    """A study that was interrupted in its second run, then continued; and its folder."""
    workdir = tmp_path_factory.mktemp('study')
    runs = study.plan(str(source))
    options = {'workdir': workdir, 'path': workdir / 'out' / 'r.json', 'command': 'study'}
    original = pipeline.run

    def fails_in_the_second(config, data, folder):
        if folder.name.startswith('three'):
            raise KeyboardInterrupt
        return original(config, data, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, 'run', fails_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            study.run(runs, data=lambda _: data, **options)
    first = json.loads((workdir / 'out' / 'r.json').read_text())
    return study.run(runs, data=lambda _: data, **options), first, workdir


def test_each_variant_ends_in_its_rows(done):
    results, _, workdir = done
    assert [(run['variant'], run['seed']) for run in results['runs']] == [('two', 0), ('three', 0)]
    names = [[row['name'] for row in run['rows']] for run in results['runs']]
    assert names == [['fixed-2-3'], ['fixed-3-3']]
    assert [run['rows'][0]['mean_weight_bits'] for run in results['runs']] == [2, 3]
    bits = [run['rows'][0]['bits'] for run in results['runs']]
    assert [set(own['weight'].values()) for own in bits] == [{2}, {3}]
    assert all(own['activation']['input'] == 8 and own['activation']['head'] == 3 for own in bits)
    assert json.loads((workdir / 'out' / 'r.json').read_text()) == json.loads(json.dumps(results))


def test_what_was_finished_before_an_interruption_is_written_and_not_repeated(done):
    results, first, _ = done
    assert first['runs'] == json.loads(json.dumps(results['runs'][:1]))


def test_what_the_json_holds_is_kept_and_not_run_again(done, source, data, tmp_path, monkeypatch):
    results, _, workdir = done
    path = tmp_path / 'r.json'
    path.write_text((workdir / 'out' / 'r.json').read_text())
    monkeypatch.setattr(pipeline, 'run', lambda *_: pytest.fail('it ran again'))
    options = {'workdir': tmp_path / 'runs', 'path': path, 'command': 'study'}
    again = study.run(study.plan(str(source)), data=lambda _: data, **options)
    assert again['runs'] == json.loads(json.dumps(results['runs']))
    one = study.plan(str(source), variants=['three'])
    assert study.run(one, data=lambda _: data, **options) == again  # `two` is still there


def test_another_seed_joins_and_other_settings_replace(done, source, data, tmp_path, monkeypatch):
    results, _, workdir = done
    path = tmp_path / 'r.json'
    path.write_text((workdir / 'out' / 'r.json').read_text())
    found = json.loads((workdir / 'two-0' / 'results.json').read_text())
    monkeypatch.setattr(pipeline, 'run', lambda *_: found | {'wall_seconds': 1.0})
    options = {'workdir': tmp_path / 'runs', 'path': path, 'command': 'study'}
    runs = study.plan(str(source), variants=['two'], seeds=[0, 1], overrides=['--config.batch=9'])
    new = study.run(runs, data=lambda _: data, **options)
    assert [(run['variant'], run['seed']) for run in new['runs']] == [
        ('two', 0),
        ('two', 1),
        ('three', 0),
    ]
    assert [run['wall_seconds'] for run in new['runs'][:2]] == [1.0, 1.0]
    assert new['runs'][2] == json.loads(json.dumps(results['runs'][1]))
    assert new['wall_seconds'] == 2.0 + new['runs'][2]['wall_seconds']


def test_results_of_other_recordings_are_not_mixed(done, source, data, tmp_path):
    _, _, workdir = done
    path = tmp_path / 'r.json'
    content = json.loads((workdir / 'out' / 'r.json').read_text())
    content['data']['fingerprint'] = 'other'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='r.json has results of other recordings.*another --json'):
        study.run(
            study.plan(str(source)), data=lambda _: data, workdir=tmp_path, path=path, command=''
        )
    assert json.loads(path.read_text()) == content


def test_a_given_float_model_is_neither_searched_nor_trained(done, float_model):
    _, _, workdir = done
    assert {path.name for path in (workdir / 'two-0').iterdir()} == {'fixed-2-3', 'results.json'}
    found = json.loads((workdir / 'two-0' / 'results.json').read_text())
    own = json.loads((float_model / 'model' / 'model.json').read_text())
    assert found['wall_seconds'] == found['rows'][0]['wall_seconds']
    assert found['search']['validation_accuracy'] == own['card']['validation_accuracy']


def test_a_float_model_or_a_teacher_of_other_classes_is_an_error(float_model, data):
    config = small_config.get_config().to_dict()
    with pytest.raises(ValueError, match='float_model: sinc60-float knows the classes yes.*low'):
        pipeline.check(config | {'float_model': 'sinc60-float'}, data)
    teacher = config['teacher'] | {'enabled': True, 'model': 'sinc60-float'}
    with pytest.raises(ValueError, match='teacher.model: sinc60-float knows'):
        pipeline.check(config | {'teacher': teacher}, data)
    pipeline.check(config | {'teacher': teacher | {'model': str(float_model)}}, data)


@pytest.mark.parametrize('group', ['fixed_bits', 'trained_bits'])
def test_teachers_of_bits_that_cannot_teach_are_refused(group, done, float_model, data):
    *_, workdir = done
    quantized = str(workdir / 'two-0' / 'fixed-2-3')
    for teacher, distill, message in (
        ('sinc60-float', 0.5, f'{group}.teachers: sinc60-float knows the classes yes.*low'),
        (quantized, 0.5, f'{group}.teachers: .* is quantized; name a model in float'),
        (str(float_model), 0.0, f'{group}.teachers are not heard: set {group}.recipe.distill'),
    ):
        config = small_config.get_config().to_dict()
        config[group]['teachers'] = (teacher,)
        config[group]['recipe'] |= {'distill': distill}
        with pytest.raises(ValueError, match=message):
            pipeline.check(config, data)


def test_a_given_teacher_is_loaded(float_model, data, tmp_path):
    config = small_config.get_config().to_dict()
    config['teacher'] |= {'enabled': True, 'model': str(float_model)}
    teacher = pipeline.teacher_phase(config, data, tmp_path)
    assert teacher.card['validation_accuracy'] is not None and not list(tmp_path.iterdir())


def test_seeds_and_overrides_reach_every_variant(source):
    runs = study.plan(str(source), seeds=(3, 4), overrides=['--config.batch=9'])
    assert list(runs) == [('two', 3), ('two', 4), ('three', 3), ('three', 4)]
    assert [config.seed for config in runs.values()] == [3, 4, 3, 4]
    assert {config.batch for config in runs.values()} == {9}
    assert list(study.plan(str(source), variants=['three'])) == [('three', 0)]


def test_what_cannot_be_planned_is_an_error(source, tmp_path):
    with pytest.raises(config_lib.ConfigError, match='name them with --variants'):
        study.plan(f'{source}:two')
    with pytest.raises(config_lib.ConfigError, match='lists no VARIANTS'):
        study.plan('configs/sinc60.py')
    with pytest.raises(config_lib.ConfigError, match='four'):
        study.plan(str(source), variants=['four'])


def test_every_run_is_checked_before_the_first_starts(source, data, tmp_path):
    runs = study.plan(str(source))
    runs['three', 0].fixed_bits.pairs = ((9, 9),)
    with pytest.raises(ValueError, match='9'):
        study.run(runs, data=lambda _: data, workdir=tmp_path, path=tmp_path / 'r.json', command='')
    assert not list(tmp_path.iterdir())


class EnoughData:
    """As much of a `Dataset` as `pipeline.check` asks for."""

    labels = labels.label_set('12')
    train_size = 10_000

    def evaluation_rows(self, split):
        pass


@pytest.mark.parametrize(
    'name', ['architectures', 'bits', 'causal', 'cliff', 'front_ends', 'profiles', 'quantizers']
)
def test_the_studies_describe_runs_that_are_possible(name):
    for config in study.plan(f'configs/{name}.py').values():
        pipeline.check(config.to_dict(), EnoughData())
        problem = pipeline.make_problem(config.to_dict(), EnoughData.labels.names)
        if config.search.method == 'given':
            architecture = problem.space.architecture(config.search.choices)
            assert [choice.name for choice in architecture.choices] == list(config.search.choices)
        else:
            problem.check_reachable()
            assert problem.bounds['low'] < problem.bounds['high'] <= config.target.macs


def test_settings_that_a_run_does_not_use_do_not_make_it_another():
    (config,) = study.plan('configs/bits.py', variants=['w4a4']).values()
    config, changed = config.to_dict(), config.to_dict()
    changed['trained_bits']['start_bits'] += 1  # not enabled
    changed['search']['epochs'] += 1  # nothing is searched before a released model
    assert study._hash(config, 'data') == study._hash(changed, 'data')
    changed['fixed_bits']['epochs'] += 1
    assert study._hash(config, 'data') != study._hash(changed, 'data')


def test_the_summary_has_means_and_spreads_over_seeds():
    costs = dict.fromkeys(study._COSTS, 4)
    runs = [
        {
            'variant': variant,
            'rows': [
                {'name': 'float', **costs, 'validation_accuracy': val, 'test': {'accuracy': test}}
            ],
        }
        for variant, val, test in (('a', 0.9, 0.8), ('a', 0.8, 0.82), ('b', 0.7, 0.7))
    ]
    a, b = study.summary({'runs': runs})
    assert a['validation'] == [0.9, 0.8] and a['test'] == [0.8, 0.82] and a['seeds'] == 2
    assert b['seeds'] == 1
    # two values a distance d apart have a standard deviation of d / sqrt(2)
    lines = study.table({'runs': runs}).splitlines()
    assert lines[2].endswith('| 85.00 ± 7.07 | 81.00 ± 1.41 |')
    assert lines[3].endswith('| 70.00 | 70.00 |')
