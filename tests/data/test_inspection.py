"""Tests of the data report and of the program that prints it."""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kws_jax.data import inspection, sources


def noise(seed, samples=16000, peak=3000):
    return np.random.default_rng(seed).integers(-peak, peak, samples).astype(np.int16)


@pytest.fixture
def faulty(folder):
    """Makes train/ with one recording of every fault, in a known place."""
    made = (
        folder()
        .words(['yes', 'no'], training=2, validation=1, testing=0)
        .background(recordings=1, seconds=5)
    )
    clipped = noise(1)
    clipped[:40] = 32767
    made.add('yes/clipped_nohash_0.wav', clipped)
    made.add('yes/quiet_nohash_0.wav', noise(2, peak=20))
    made.add('yes/click_nohash_0.wav', np.concatenate([noise(3, 1600), np.zeros(14400, np.int16)]))
    made.add('yes/short_nohash_0.wav', noise(4, 4000))
    made.add('yes/long_nohash_0.wav', noise(5, 32000))
    made.add('yes/twin_nohash_0.wav', noise(6))
    made.add('yes/twin_nohash_1.flac', noise(6))
    made.add('yes/word_nohash_0.wav', noise(7))
    made.add('no/word_nohash_0.wav', noise(7))
    made.add('no/spl_nohash_0.wav', noise(8))
    made.add('no/spm_nohash_0.wav', noise(8))
    with open(made.root / 'validation_list.txt', 'a') as file:
        file.write('no/spl_nohash_0.wav\n')
    (made.root / 'no' / 'broken_nohash_0.wav').write_bytes(b'nothing')
    (made.root / 'no' / 'notes.txt').write_text('x')
    return made


def report_of(made, **options):
    return inspection.inspect(data_dir=made.root, cache_dir=made.root.parent / 'cache', **options)


def found(report):
    return {
        (pathlib.Path(s.path).relative_to(pathlib.Path(s.path).parents[1]).as_posix(), s.kind)
        for s in report.suspects
    }


def test_every_fault_is_found_and_nothing_else(faulty):
    report = report_of(faulty)
    assert found(report) == {
        ('yes/clipped_nohash_0.wav', 'clipped'),
        ('yes/quiet_nohash_0.wav', 'near_silent'),
        ('yes/short_nohash_0.wav', 'short'),
        ('yes/long_nohash_0.wav', 'long'),
        ('yes/twin_nohash_1.flac', 'duplicate'),
        ('yes/word_nohash_0.wav', 'duplicate_across_words'),
        ('no/spm_nohash_0.wav', 'duplicate_across_splits'),
        ('no/broken_nohash_0.wav', 'undecodable'),
    }
    assert [pathlib.Path(p).name for p in report.other_files] == ['notes.txt']


def test_counts_speakers_and_durations(faulty):
    report = report_of(faulty)
    assert report.counts == {
        'no': {'training': 5, 'validation': 2, 'testing': 0},
        'yes': {'training': 10, 'validation': 1, 'testing': 0},
    }
    # tr0 tr1 clipped quiet click short long twin word spm broken; va0 spl
    assert report.speakers == {'training': 11, 'validation': 2, 'testing': 0}
    assert report.shared_speakers == []
    assert sorted(report.seconds)[0] == 0.25 and sorted(report.seconds)[-1] == 2
    assert len(report.seconds) == 17
    assert list(report.noise_seconds.values()) == [5.0]


def test_the_test_folder_is_part_of_the_report(faulty, folder):
    test = folder('test')
    test.add('yes/tr0_nohash_3.wav', noise(6))  # twin's audio, and a speaker of training
    test.add('_silence_/1.wav', np.zeros(16000, np.int16))  # silence may be silent
    report = report_of(faulty, test_dir=test.root)
    assert report.counts['yes']['testing'] == report.counts['_silence_']['testing'] == 1
    assert report.shared_speakers == ['tr0']
    new = found(report) - found(report_of(faulty))
    assert new == {('yes/tr0_nohash_3.wav', 'duplicate_across_splits')}


def test_levels_agree_with_a_calculation_by_hand():
    audio = np.zeros((300, 16000), np.int16)
    audio[0] = 16384  # half of full scale: -6.02 dB
    audio[1, 3200:4800] = -3277  # a tenth of full scale in one tenth: -20 dB
    audio[2, :5] = [32700, -32700, 32699, -32768, 32767]
    level, clipped = inspection.levels(audio)
    np.testing.assert_allclose(level[:2], [-6.0206, -20.0], atol=2e-3)
    assert level[299] == pytest.approx(-120, abs=1e-3)
    assert clipped[:4].tolist() == [0, 0, 4, 0]


def test_thresholds_are_settable(faulty):
    got = found(
        report_of(faulty, clipped_samples=41, silent_dbfs=-70, short_seconds=0.2, long_seconds=2.5)
    )
    assert {kind for _, kind in got} == {
        'duplicate',
        'duplicate_across_words',
        'duplicate_across_splits',
        'undecodable',
    }


def test_the_report_reads_well(faulty):
    text = inspection.format_report(report_of(faulty))
    lines = [line.split() for line in text.splitlines()]
    assert ['training', 'validation', 'testing'] in lines
    assert ['yes', '10', '1', '0'] in lines and ['all', '15', '3', '0'] in lines
    assert 'background noise: 1 recordings, 5 s' in text
    assert 'durations: 0.25 to 2.00 s, median 1.00 s' in text
    assert '1 undecodable' in text and 'broken_nohash_0.wav' in text


def test_suspects_are_written_as_a_table_that_reads_back(faulty, tmp_path):
    report = report_of(faulty)
    inspection.write_suspects(report, tmp_path / 'suspects.tsv')
    with open(tmp_path / 'suspects.tsv', newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert len(rows) == len(report.suspects) == 8
    assert list(rows[0]) == ['path', 'word', 'split', 'kind', 'detail']
    twin = next(r for r in rows if r['kind'] == 'duplicate')
    assert twin['word'] == 'yes' and 'twin_nohash_0.wav (yes, training)' in twin['detail']


ROOT = pathlib.Path(inspection.__file__).parents[2]
PROGRAM = ROOT / 'launch' / 'inspect_data.py'


def run(*arguments, command=(str(PROGRAM),), **environment):
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_train_and_test_and_the_cache_are_those_of_the_pipeline(folder, tmp_path):
    folder('DIR/train').words(['yes', 'no']).background(recordings=1)
    folder('DIR/test').add('yes/a_nohash_0.wav')
    done = run(f'--data_dir={tmp_path / "DIR"}', XDG_CACHE_HOME=str(tmp_path / 'home'))
    assert done.returncode == 0, done.stderr
    # 2 words of 4 + 2 + 2 recordings, and the clip of the test folder
    assert ['all', '8', '4', '5'] in [line.split() for line in done.stdout.splitlines()]
    caches = tmp_path / 'home' / 'kws_jax' / 'audio'
    made = sorted(caches.iterdir())
    assert len(made) == 2  # clips and noise
    sources.open_dataset(data_dir=tmp_path / 'DIR', cache_dir=caches, labels='yes,no')
    assert sorted(caches.iterdir()) == made
    run(f'--data_dir={tmp_path / "DIR"}', f'--cache_dir={tmp_path / "own"}')
    assert [p.name for p in sorted((tmp_path / 'own' / 'audio').iterdir())] == [
        p.name for p in made
    ]


@pytest.mark.parametrize('suspects', ['/dev/full', 'DIR', 'DIR/absent/suspects.tsv'])
def test_suspects_that_cannot_be_written_are_an_error_of_one_line(faulty, tmp_path, suspects):
    suspects = suspects.replace('DIR', str(tmp_path))
    done = run(
        f'--data_dir={faulty.root}', f'--cache_dir={tmp_path / "cache"}', f'--suspects={suspects}'
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'inspect_data: --suspects={suspects} cannot be written: ')
    assert 'Traceback' not in done.stderr


def test_a_full_disk_is_an_error_of_one_line(faulty, tmp_path):
    code = f"""
import errno, os, runpy
from kws_jax.data import cache

def full(samples):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

cache.to_one_second = full
runpy.run_path({str(PROGRAM)!r}, run_name='__main__')
"""
    done = run(
        f'--data_dir={faulty.root}',
        f'--cache_dir={tmp_path / "cache"}',
        command=('-c', code),
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith('inspect_data: ') and 'no space left for the decoded' in line
    assert 'Traceback' not in done.stderr


def test_the_program_prints_the_report_and_writes_the_suspects(faulty, tmp_path):
    done = run(
        f'--data_dir={faulty.root}',
        f'--cache_dir={tmp_path / "cache"}',
        f'--suspects={tmp_path / "out.tsv"}',
    )
    assert done.returncode == 0, done.stderr
    assert '8 suspects in' in done.stdout
    assert len((tmp_path / 'out.tsv').read_text().splitlines()) == 9


def test_the_program_says_what_is_wrong_without_a_traceback(tmp_path):
    done = run(f'--data_dir={tmp_path / "gone"}', f'--cache_dir={tmp_path / "cache"}')
    assert done.returncode == 1
    assert 'data_dir does not exist' in done.stderr and 'Traceback' not in done.stderr
