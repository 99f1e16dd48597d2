"""What launch/quickstart.sh calls, seen through a stand-in for the interpreter."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(tmp_path):
    """`calls(*arguments)`: the command lines that quickstart.sh starts Python with."""
    (tmp_path / 'launch').mkdir()
    shutil.copy(ROOT / 'launch' / 'quickstart.sh', tmp_path / 'launch')
    (tmp_path / 'launch' / 'install.sh').write_text('set -euo pipefail\ncd "$(dirname "$0")/.."\n')
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)

    def run(*arguments):
        done = subprocess.run(
            ['bash', str(tmp_path / 'launch' / 'quickstart.sh'), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split() for line in done.stdout.splitlines()]

    return run


def workdir(call):
    return next(word for word in call if word.startswith('--workdir='))


def test_without_arguments_it_makes_the_corpus_and_trains_on_it(calls):
    check, corpus, pipeline = calls()
    assert check[0] == 'launch/pipeline.py' and check[-1] == '--only_check_args'
    assert corpus == ['launch/make_corpus.py', '--out=runs/synthetic_speech']
    assert pipeline[0] == 'launch/pipeline.py'
    assert set(pipeline[1:]) == {
        '--config=configs/sinc60.py:quickstart',
        '--data_dir=runs/synthetic_speech',
        '--workdir=runs/quickstart',
    }


@pytest.mark.parametrize('source', [['--data_dir=a b'], ['--data_dir', 'a'], ['--dataset=tfds']])
def test_other_data_replace_the_corpus(calls, source):
    (pipeline,) = calls(*source)
    name, value = '='.join(source).split('=')
    folder = f'{pathlib.Path.cwd()}/' if name == '--data_dir' else ''
    assert f'{name}={folder}{value}' in ' '.join(pipeline)


def test_every_data_set_and_configuration_has_its_run_directory(calls):
    variants = [
        [],
        ['--data_dir=a'],
        ['--data_dir=b'],
        ['--data_dir=a', '--config.data.labels=35'],
        ['--config.data.labels=35'],
        ['--dataset=tfds'],
        ['--data_dir=a', '--config=configs/other.py'],
        ['--data_dir=a', '--config.trained_bits.epochs=9'],
    ]
    folders = [workdir(calls(*variant)[-1]) for variant in variants]
    assert len(set(folders)) == len(variants)
    assert workdir(calls('--data_dir', 'a')[-1]) == folders[1]
    assert workdir(calls('--config.data.labels', '35', '--data_dir', 'a')[-1]) == folders[3]
    assert workdir(calls('--data_dir=a', '--traceback')[-1]) == folders[1]


def test_a_run_directory_and_a_config_of_the_users_own_are_kept(calls):
    (pipeline,) = calls('--data_dir=/a', '--workdir', '/w', '--config=c.py', '--config.seed=3')
    assert pipeline == [
        'launch/pipeline.py',
        '--data_dir=/a',
        '--workdir=/w',
        '--config=c.py',
        '--config.seed=3',
    ]


def test_folders_and_configs_are_those_of_where_the_caller_stands(calls, tmp_path, monkeypatch):
    here = tmp_path / 'here'
    here.mkdir()
    (here / 'own.py').write_text('')
    monkeypatch.chdir(here)
    (pipeline,) = calls('--data_dir=recs', '--test_dir', 'test', '--config=own.py:mini')
    assert f'--data_dir={here}/recs' in pipeline and f'--test_dir={here}/test' in pipeline
    assert f'--config={here}/own.py:mini' in pipeline
    (pipeline,) = calls('--data_dir=recs', '--config=configs/sinc60.py')
    assert '--config=configs/sinc60.py' in pipeline
