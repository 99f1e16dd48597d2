"""The metrics file, its continuation after an interruption, and TensorBoard's copy of it."""

import json
import math

import pytest
from tensorboardX.proto import event_pb2

from kws_jax.training import metrics


def events_of(workdir):
    """Reads TFRecords: length (8 bytes), its checksum (4), data, its checksum (4)."""
    found = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        raw = path.read_bytes()
        while raw:
            length = int.from_bytes(raw[:8], 'little')
            found.append(event_pb2.Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


def test_a_record_is_in_the_file_at_once_and_strict_json(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write('train', 10, {'loss': 0.5, 'norm': math.inf, 'bits': [4.0, math.nan]})
    line = (tmp_path / 'metrics.jsonl').read_text()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    assert record.pop('time') > 1e9
    assert record == {
        'kind': 'train', 'step': 10, 'loss': 0.5, 'norm': None, 'bits': [4.0, None],
    }  # fmt: skip
    writer.close()


def test_tensorboard_gets_the_same_numbers_under_the_kind(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write('eval', 7, {'loss': 0.5, 'bits': [4.0, 2.0], 'confusion': [[1, 2]], 'name': 'x'})
    writer.close()
    values = {v.tag: (e.step, v.simple_value) for e in events_of(tmp_path) for v in e.summary.value}
    assert values == {'eval/loss': (7, 0.5), 'eval/bits/0': (7, 4.0), 'eval/bits/1': (7, 2.0)}


def test_a_continued_run_drops_what_the_interrupted_one_wrote_later(tmp_path):
    for records, step in ((0, 0), (2, 20)):
        writer = metrics.MetricsWriter(tmp_path, step=step, records=records)
        assert writer.records == records
        for at in (10, 20, 30):
            if at > step:
                writer.write('train', at, {'loss': float(at)})
        writer.close()
    assert [r['step'] for r in metrics.read_metrics(tmp_path / 'metrics.jsonl')] == [10, 20, 30]
    starts = [e.step for e in events_of(tmp_path) if e.HasField('session_log')]
    assert starts == [0, 20]


def test_a_line_cut_by_a_kill_is_left_out_and_then_overwritten(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert metrics.read_metrics(path) == [{'kind': 'train', 'step': 1}]
    writer = metrics.MetricsWriter(tmp_path, step=1, records=5)
    assert writer.records == 1
    writer.write('train', 2, {})
    writer.close()
    assert [r['step'] for r in metrics.read_metrics(path)] == [1, 2]


def test_damage_in_the_middle_is_an_error_with_the_line(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1}\nxx\n{"step": 2}\n')
    with pytest.raises(ValueError, match='metrics.jsonl line 2 is not a JSON object'):
        metrics.read_metrics(path)


def test_without_the_clock_only_what_was_computed_remains(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write('train', 1, {'loss': 1.0, 'wall_seconds': 3.0, 'steps_per_second': 2.0})
    writer.close()
    records = metrics.read_metrics(tmp_path / 'metrics.jsonl', clock=False)
    assert records == [{'kind': 'train', 'step': 1, 'loss': 1.0}]


def test_no_file_is_no_records(tmp_path):
    assert metrics.read_metrics(tmp_path / 'metrics.jsonl') == []
