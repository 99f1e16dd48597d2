"""The benchmark measures in turn, keeps what it has, and names what it does not know."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from kws_jax.benchmark import fresh, growth, rows, subjects, suites, timing

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_calls_are_made_in_turn_twice_and_warmed_up(monkeypatch):
    monkeypatch.setattr(timing, 'SETTLE', 0.0)
    made = []
    calls = {name: lambda name=name: made.append(name) for name in 'ab'}
    seconds = timing.interleaved(calls, rounds=2, warmup=1)
    assert ''.join(made) == 'aabb' * 3
    assert {name: len(values) for name, values in seconds.items()} == {'a': 2, 'b': 2}
    with pytest.raises(ValueError, match='at least 1 round, got 2 and 0'):
        timing.interleaved(calls, rounds=0)


def test_calls_are_repeated_until_what_ran_before_has_settled(monkeypatch):
    monkeypatch.setattr(timing, 'SETTLE', 0.02)
    made = []
    timing.interleaved({'a': lambda: made.append(time.sleep(0.005))}, rounds=1, warmup=0)
    assert 3 <= len(made) <= 5  # some 4 of 5 ms, and the one that is timed


def test_every_depthwise_shape_of_the_paper_is_measured():
    # four kinds of layers, six expansions, three kernels
    shapes = rows.depthwise_shapes()
    assert len(shapes) == 4 * 6 * 3
    assert (49, 30, 60, 7, 2) in shapes and (13, 8, 240, 5, 1) in shapes


def test_the_network_has_the_macs_of_the_paper():
    assert subjects.network_macs(subjects.architecture()) == pytest.approx(13.6e6, rel=0.001)


def test_the_names_of_the_rows_are_those_that_json_promises():
    assert suites.names('training') == [
        'depthwise', 'train_step', 'eval_step', 'search_weight_step', 'search_arch_step',
        'quantized_step', 'supernet_step', 'compile_cold', 'compile_warm', 'search_memory',
        'decode', 'input_share',
    ]


@pytest.mark.parametrize('torch', [True, False])
def test_a_depthwise_row_has_a_ratio_with_a_peer_and_a_note_without(torch, monkeypatch):
    if torch:
        pytest.importorskip('torch', reason='needs PyTorch: pip install .[bench]')
    else:
        monkeypatch.setattr(rows, 'has_torch', lambda: False)
    monkeypatch.setattr(rows, 'BATCH', 2)
    row = rows.depthwise(rounds=2, shapes=[(5, 4, 3, 3, 1), (5, 4, 3, 5, 2)])
    assert json.loads(json.dumps(row)) == row
    if torch:
        assert row['ratio'] > 0 and len(row['ratios']) == 2
        assert row['worst_ratio'] == max(row['ratios'].values())
    else:
        assert row['ratio'] is row['peer'] is None and 'pip install .[bench]' in row['note']


def test_what_is_measured_is_kept_after_every_row(monkeypatch):
    def first():
        return rows.row('first', 'one', ours=np.array([1.0, 3.0, 2.0]), peer=np.ones(3), bar=0.8)

    def second():
        raise RuntimeError('power cut')

    monkeypatch.setitem(suites.SUITES, 'training', {first: ('first',), second: ('second',)})
    monkeypatch.setattr(rows, 'matrix_product', lambda: 1e11)
    kept = []
    with pytest.raises(RuntimeError, match='power cut'):
        suites.run('training', keep=lambda report: kept.append(json.loads(json.dumps(report))))
    assert [entry['name'] for entry in kept[0]['rows']] == ['first']
    assert kept[0]['rows'][0]['ratio'] == 2.0
    assert 'first' in suites.table(kept[0])


def test_a_row_that_does_not_exist_is_named_and_nothing_is_measured():
    run = subprocess.run(
        [sys.executable, 'launch/benchmark.py', '--rows=train_stop'],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        check=False,
    )  # fmt: skip
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert 'benchmark: suite training has no row train_stop; it has depthwise, ' in run.stderr


def test_growth_is_drawn_and_tabled_from_its_points():
    points = [
        {'at': 10, 'train_seconds': 0.1, 'train_mib': 30.0},
        {'at': 20, 'train_seconds': 0.2, 'train_mib': 60.0, 'search_seconds': 0.3,
         'search_mib': 90.0},
    ]  # fmt: skip
    report = {'rows': [{'name': 'batch_growth', 'axis': 'clips in a batch', 'points': points}]}
    figure = growth.draw(report)
    lines = [line for ax in figure.axes for line in ax.lines]
    assert [list(line.get_ydata()) for line in lines] == [[0.1, 0.2], [0.3], [30.0, 60.0], [90.0]]
    assert growth.markdown(report).splitlines()[2:4] == [
        '| 10 | 0.100 s | 30 | - | - |',
        '| 20 | 0.200 s | 60 | 0.300 s | 90 |',
    ]


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / 'jax.py').write_text("raise ImportError('broken here')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(RuntimeError, match='(?s)measuring process failed.*broken here'):
        fresh.measure(tmp_path)
