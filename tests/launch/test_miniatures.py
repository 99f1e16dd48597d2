"""Miniatures of configs, through the real program; how the program ends when it must."""

import json
import re
import signal
import time

import killing
import pytest
import small_pipeline


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return small_pipeline.make_folder(tmp_path_factory.mktemp('words') / 'words')


def start(folder, tmp_path, *flags):
    return killing.start(
        [
            'launch/pipeline.py',
            f'--data_dir={folder}',
            f'--workdir={tmp_path / "run"}',
            f'--cache_dir={folder.parent / "cache"}',  # shared: many programs are the same
            '--config.data.labels=low,middle,high',
            *flags,
        ],
        JAX_DISABLE_MOST_OPTIMIZATIONS='true',
    )


# sinc60, search and quantized phases included, runs in test_own_words.py
@pytest.mark.parametrize(
    ('config', 'flags'),
    [('mfcc', ['--config.search.method=random', '--config.target.macs=6e6']), ('causal', [])],
)
def test_the_miniature_runs_from_recordings_to_results(config, flags, folder, tmp_path):
    process = start(
        folder,
        tmp_path,
        f'--config=configs/{config}.py:mini',
        '--config.batch=8',
        '--config.search.batch=8',
        '--config.fixed_bits.pairs=()',
        '--config.trained_bits.enabled=False',
        *flags,
    )
    out = killing.finish(process)
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert [row['name'] for row in results['rows']] == ['float'] and 'float' in out
    assert (tmp_path / 'run' / 'report' / 'index.html').exists()


def ended(process):
    out, err = process.communicate(timeout=600)  # a signal waits until XLA has compiled
    return process.returncode, out, err


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--config.target.macs=1000'], 'target of 1000 MACs is below the smallest network'),
        (['--config.data.labels=low,hihg'], 'has no folder for hihg'),
        (['--config.fixed_bits.form=steps'], "no quantizer 'steps', only step_range, range_bits"),
    ],
)
def test_what_is_wrong_ends_it_with_a_message_and_no_traceback(folder, tmp_path, flags, message):
    code, _, err = ended(start(folder, tmp_path, '--config=configs/sinc60.py:mini', *flags))
    assert code == 1 and 'Traceback' not in err
    *_, last, hint = [line for line in err.splitlines() if line.strip()]
    assert last.startswith('pipeline.py: ') and hint == '(--traceback shows where)'
    assert re.search(message, last)


def test_traceback_shows_where_an_error_came_from(folder, tmp_path):
    flags = ['--config=configs/sinc60.py:mini', '--config.target.macs=1000', '--traceback']
    code, _, err = ended(start(folder, tmp_path, *flags))
    assert code == 1 and 'Traceback' in err


def test_sigterm_between_phases_ends_it_with_status_0(folder, tmp_path):
    process = start(folder, tmp_path, '--config=configs/sinc60.py:mini')
    phase = tmp_path / 'run' / 'search' / 'phase.json'
    until = time.monotonic() + 120
    while not phase.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0 and 'stopped by SIGTERM' in err and 'the same command continues' in err
