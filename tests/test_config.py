"""Configurations: files, variants, overrides, and errors that name the way out."""

import subprocess
import sys

import pytest

from kws_jax import config as config_lib

FILE = '''"""An experiment."""
import ml_collections
from ml_collections import config_dict

def get_config(variant=''):
    if variant not in ('', 'mini'):
        raise ValueError(f"variant must be 'mini' or empty, got {variant!r}")
    config = ml_collections.ConfigDict({
        'seed': 0, 'augment': True, 'name': 'a', 'kernels': (3, 5), 'words': ('yes', 'no'),
        'widths': (1.0, 2), 'search': {'epochs': 1 if variant else 30, 'lr': 0.1},
        'limit': config_dict.placeholder(int), 'data': config_dict.placeholder(str),
    })
    return config
'''

PROGRAM = '''"""A program."""
import sys
from absl import flags
from kws_jax import config as config_lib
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.', required=True)

def main(config):
    print(_WORKDIR.value, config.search.epochs, 'jax' in sys.modules)

if __name__ == '__main__':
    config_lib.run(main, default='sinc60.py')
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'sinc60.py').write_text(FILE)
    (tmp_path / 'program.py').write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides, source='sinc60.py'):
    return config_lib.load_config(source, [f'--config.{override}' for override in overrides])


def test_a_file_and_its_variant(folder):
    assert load().search.epochs == 30
    assert load(source='sinc60.py:mini').search.epochs == 1
    assert load(source=str(folder / 'sinc60.py')).search.epochs == 30


@pytest.mark.parametrize(
    'override, key, value',
    [
        ('seed=-3', 'seed', -3),
        ('search.epochs=3', 'search.epochs', 3),
        ('search.lr=1', 'search.lr', 1.0),
        ('search.lr=1e-3', 'search.lr', 0.001),
        ('augment=false', 'augment', False),
        ('augment=True', 'augment', True),
        ('name=b=c', 'name', 'b=c'),
        ('name=none', 'name', 'none'),
        ('kernels=7', 'kernels', (7,)),
        ('kernels=(3,5,7)', 'kernels', (3, 5, 7)),
        ('words=up,down', 'words', ('up', 'down')),
        ("words=('up',)", 'words', ('up',)),
        ('widths=1,3', 'widths', (1.0, 3.0)),
        ('limit=4', 'limit', 4),
        ('limit=none', 'limit', None),
        ('data=corpus', 'data', 'corpus'),
    ],
)
def test_an_override_has_the_type_of_what_it_replaces(folder, override, key, value):
    got = load(override)
    for name in key.split('.'):
        got = got[name]
    assert got == value and type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in got] == [type(x) for x in value]


@pytest.mark.parametrize(
    'override, message',
    [
        ('serach.epochs=3', 'no config.serach.epochs; did you mean config.search.epochs?'),
        ('search.epcohs=3', 'no config.search.epcohs; did you mean config.search.epochs?'),
        ('epochs=3', 'no config.epochs; did you mean config.search.epochs?'),
        ('seed.x=3', 'no config.seed.x; did you mean config.seed?'),
        ('zzzz=3', 'no config.zzzz; there are config.augment, config.data, config.kernels'),
        ('search=3', 'config.search is a group; set one of config.search.epochs'),
        ('search.epochs=three', "config.search.epochs must be of type int, got 'three'"),
        ('search.epochs=3.5', "config.search.epochs must be of type int, got '3.5'"),
        ('search.epochs=none', "config.search.epochs must be of type int, got 'none'"),
        ('search.lr=fast', "config.search.lr must be of type float, got 'fast'"),
        ('augment=2', "config.augment must be of type bool, got '2'"),
        ('kernels=3,x', "config.kernels must be tuple of int, got '3,x'"),
        ('kernels=3.5,5', "config.kernels must be tuple of int, got '3.5,5'"),
        ('kernels=True,5', "config.kernels must be tuple of int, got 'True,5'"),
        ('limit=x', "config.limit must be of type int, got 'x'"),
        ('seed', 'an override is --config.KEY=VALUE'),
    ],
)
def test_a_wrong_override_names_key_value_and_the_way_out(folder, override, message):
    with pytest.raises(config_lib.ConfigError) as error:
        load(override)
    assert f'--config.{override}: ' in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_names_the_nearest(folder):
    with pytest.raises(
        config_lib.ConfigError, match='sinc6.py: no such file; did you mean .*sinc60.py'
    ):
        load(source='sinc6.py')
    with pytest.raises(config_lib.ConfigError, match='elsewhere/sinc61.py: no such file'):
        load(source='elsewhere/sinc61.py')


def test_a_variant_that_the_file_refuses_is_named(folder):
    with pytest.raises(config_lib.ConfigError, match="sinc60.py:min: variant must be 'mini'"):
        load(source='sinc60.py:min')


def test_a_file_without_get_config_is_refused(folder):
    (folder / 'other.py').write_text('x = 1\n')
    with pytest.raises(config_lib.ConfigError, match='other.py has no function get_config'):
        load(source='other.py')


def test_a_required_value_must_be_set(folder):
    (folder / 'needs.py').write_text(
        FILE.replace('dict.placeholder(str)', 'dict.required_placeholder(str)')
    )
    with pytest.raises(config_lib.ConfigError, match='config.data must be set: --config.data=VAL'):
        load(source='needs.py')
    assert load('data=corpus', source='needs.py').data == 'corpus'


def test_the_configuration_takes_no_new_keys(folder):
    with pytest.raises(AttributeError, match='sede'):
        load().sede = 3


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, 'program.py', *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={'PYTHONPATH': str(config_lib._ROOT)},
    )


@pytest.mark.parametrize(
    'arguments', [['--config.search.epochs=3'], ['--config.search.epochs', '3']]
)
def test_a_program_gets_flags_and_overrides_without_jax(folder, arguments):
    done = run(folder, '--workdir=runs/a', *arguments)
    assert (done.stdout, done.returncode) == ('runs/a 3 False\n', 0)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--wordir=a'], "program.py: Unknown command line flag 'wordir'. Did you mean: workdir ?"),
        ([], 'program.py: flag --workdir=None'),
        (['--workdir=a', '--config.serach.lr=3'], 'did you mean config.search.lr?'),
        (['--workdir=a', '--config.seed'], '--config.seed needs a value'),
        (['--workdir=a', 'mini'], "unexpected argument 'mini'"),
    ],
)
def test_a_misspelt_command_line_ends_with_1_and_the_nearest_name(folder, arguments, message):
    done = run(folder, *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert 'Traceback' not in done.stderr and '--help' in done.stderr


def test_help_lists_the_flags_and_how_to_override(folder):
    out = run(folder, '--help').stdout
    assert '--workdir' in out and '--config:' in out and '--config.KEY=VALUE' in out
