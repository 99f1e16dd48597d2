"""Metrics of a run: one JSON object per line, and the same numbers for TensorBoard."""

import json
import math
import os
import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

# What differs between two runs of the same program: read off a clock, not computed.
CLOCK_KEYS = frozenset({'time', 'wall_seconds', 'epoch_seconds', 'steps_per_second'})
_MOST_TAGS = 32  # that one list may have in TensorBoard


def read_metrics(path, *, clock: bool = True) -> list[dict]:
    """Reads a metrics file; a last line cut short by a kill is left out.

    Args:
      path: a `metrics.jsonl`; absent is the same as empty.
      clock: False leaves out what was read off a clock, so that the files of equal runs are equal.

    Returns:
      The records in the order written.

    Raises:
      ValueError: a line other than the last is no JSON object.
    """
    records = [record for record, _ in _records(pathlib.Path(path))]
    if clock:
        return records
    return [{k: v for k, v in record.items() if k not in CLOCK_KEYS} for record in records]


class MetricsWriter:
    """Appends records to `workdir/metrics.jsonl` and `workdir/tensorboard/`, each flushed at once.

    Both writers work in the calling thread, so that a full disk is an `OSError` here and not a
    dead thread.

    Args:
      workdir: run directory, exists.
      step: the step that the run continues from; TensorBoard is told to forget what an interrupted
        attempt wrote later.
      records: how many records the run had written at that step; the rest is removed.
    """

    def __init__(self, workdir, *, step: int = 0, records: int = 0):
        path = pathlib.Path(workdir) / 'metrics.jsonl'
        self.records = truncate_metrics(path, records)
        self._file = open(path, 'a', encoding='utf-8')
        folder = pathlib.Path(workdir) / 'tensorboard'
        folder.mkdir(exist_ok=True)
        # The name has seconds only; the process id keeps a quick restart from overwriting the file.
        self._events = EventsWriter(str(folder / 'events'), f'.{os.getpid()}.{time.monotonic_ns()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write_event(
            event_pb2.Event(wall_time=time.time(), step=step, session_log=start)
        )
        self._events.flush()

    def write(self, kind: str, step: int, values: dict):
        """Writes one record.

        Args:
          kind: 'train', 'eval' or 'epoch'; the prefix of the TensorBoard tags.
          step: optimizer steps done.
          values: numbers or lists of numbers by name; NaN and infinities become null in the JSON
            file.
        """
        now = time.time()
        record = {**_finite(values), 'kind': kind, 'step': step, 'time': round(now, 3)}
        self._file.write(json.dumps(record, allow_nan=False) + '\n')
        self._file.flush()
        self.records += 1
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=f'{kind}/{tag}', simple_value=number)
                for tag, number in _scalars(values)
            ]
        )
        self._events.write_event(event_pb2.Event(wall_time=now, step=step, summary=summary))
        self._events.flush()

    def close(self):
        """Closes both files."""
        try:
            self._file.close()
        finally:
            self._events.close()


def truncate_metrics(path, records: int) -> int:
    """Leaves the first `records` records, in place (no space needed); returns how many there are.

    Args:
      path: a `metrics.jsonl`; absent is the same as empty.
      records: how many stay at most.
    """
    path = pathlib.Path(path)
    ends = [end for _, end in _records(path)][:records]
    if path.exists():
        os.truncate(path, ends[-1] if ends else 0)
    return len(ends)


def _records(path: pathlib.Path):
    """Yields (record, byte offset after it)."""
    if not path.exists():
        return
    offset = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        offset += len(line)
        try:
            record = json.loads(line) if line.endswith(b'\n') else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            if number == len(lines):
                return
            raise ValueError(f'{path} line {number} is not a JSON object: {line[:80]!r}')
        yield record, offset


def _finite(value):
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _scalars(values: dict):
    """Numbers by tag; short lists get numbered tags, matrices and text stay out of TensorBoard."""
    for tag, value in values.items():
        if isinstance(value, int | float):
            yield tag, float(value)
        elif isinstance(value, list | tuple) and len(value) <= _MOST_TAGS:
            yield from (
                (f'{tag}/{i}', float(x)) for i, x in enumerate(value) if isinstance(x, int | float)
            )
