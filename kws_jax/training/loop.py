"""The loop of every long run: searches, trainings and quantizations that survive interruptions.

They differ only in the state and the chunk of steps that they pass in. A run is a function of its
state, its source and its step: chunks end at steps that depend on nothing else, batches come from
`source(step, n)`, and everything that changes is in the state. So a run that was killed and started
again makes the very same calls, and ends with the same bits.
"""

import concurrent.futures
import contextlib
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from kws_jax.training import checkpoints, devices, divergence, interruption, metrics, rundir
from kws_jax.training import progress as progress_lib


def next_boundary(step: int, *, steps_per_epoch: int, chunk_size: int, total_steps: int) -> int:
    """The step at which the chunk that begins at `step` ends.

    Full chunks from the start of an epoch, then what is left of the epoch or the run.

    >>> [next_boundary(s, steps_per_epoch=5, chunk_size=2, total_steps=8) for s in (0, 2, 4, 5, 7)]
    [2, 4, 5, 7, 8]
    """
    start = step - step % steps_per_epoch
    within = (step - start) // chunk_size * chunk_size + chunk_size
    return min(start + min(within, steps_per_epoch), total_steps)


def fit(
    *,
    workdir,
    state: Any,
    chunk: Callable,
    source: Callable,
    total_steps: int,
    steps_per_epoch: int,
    chunk_size: int,
    config: dict,
    name: str,
    evaluate: Callable | None = None,
    evaluate_every: int = 1,
    checkpoint_every: int | None = None,
    params_of: Callable = lambda state: state.params,
    progress: bool = True,
) -> tuple[Any, dict]:
    """Runs `chunk` up to `total_steps`, from where an earlier call with this `workdir` stopped.

    With several local devices the state is replicated and the batch (axis 1 of each leaf of
    `batches`) is split over them; where their number does not divide it, every device computes all
    of it. The result is that of one device up to the order of additions.

    SIGTERM and Ctrl-C end the run after the chunk at hand: the state is saved, then
    `SystemExit(0)` or `KeyboardInterrupt` is raised. A second Ctrl-C does not wait.

    Args:
      workdir: run directory: `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, at
        last `finished.json`.
      state: any pytree of arrays; random keys as raw uint32. Not to be used afterwards, as `chunk`
        may donate it.
      chunk: `(state, batches) -> (state, metrics)`, jitted by the caller; runs as many steps as
        the leading axis of `batches` has. `metrics`: dict of arrays `[n, ...]`; 'loss' is watched,
        'loss' and 'accuracy' are shown.
      source: `(step, n) -> batches`: pytree of new numpy arrays `[n, ...]` for steps
        `step..step+n-1`; a pure function. Called in a thread, one chunk ahead.
      total_steps: optimizer steps of the whole run.
      steps_per_epoch: optimizer steps; an epoch ends a chunk.
      chunk_size: most steps of one call of `chunk`.
      config: what describes the run, as JSON can hold it; saved with each checkpoint. A `workdir`
        with another is refused.
      name: of the run, for display.
      evaluate: `state -> dict of numbers`; called at the end of each `evaluate_every`-th epoch and
        at the end.
      evaluate_every: epochs.
      checkpoint_every: steps between checkpoints, rounded up to the end of a chunk; an epoch if
        None. The end is saved too.
      params_of: the part of the state whose layers a diverged run names.
      progress: False shows nothing.

    Returns:
      The final state, and the content of `finished.json`: name, step, epoch, wall_seconds (all
      attempts together), last 'train' and 'eval' metrics. If the run is finished already, neither
      `source` nor `chunk` is called.

    Raises:
      rundir.ConfigMismatch: `workdir` holds a run with another configuration.
      divergence.TrainingDiverged: a loss is not finite, or over 20 times the usual one plus 10.
      checkpoints.DiskFull: no space left; what was saved is intact.
      ValueError: a number of steps is not positive.
    """
    for argument, value in [
        ('total_steps', total_steps),
        ('steps_per_epoch', steps_per_epoch),
        ('chunk_size', chunk_size),
        ('evaluate_every', evaluate_every),
        ('checkpoint_every', checkpoint_every),
    ]:
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f'{argument} must be an integer of at least 1, got {value!r}')
    shape = {
        'total_steps': int(total_steps),
        'steps_per_epoch': int(steps_per_epoch),
        'chunk_size': int(chunk_size),
        'evaluate_every': int(evaluate_every),
    }
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(rundir.only_one(workdir))
        saved = checkpoints.Checkpoints(workdir / 'checkpoints')
        stack.enter_context(rundir.full_disk_named(saved))
        config = rundir.settle_config(workdir, {'name': name, 'config': config, 'loop': shape})
        run = _Run(
            workdir, saved, config, state, params_of, progress, checkpoint_every or steps_per_epoch
        )
        summary = run.finished()
        if summary is None:
            stack.callback(run.close)
            summary = run.train(chunk, source, evaluate, stack.enter_context(interruption.Stop()))
        return run.place.gather(run.state), summary


class _Run:
    """One call of `fit`: what is known at the step it has reached, and the way to the next one."""

    def __init__(self, workdir, saved, config, state, params_of, shown, checkpoint_every):
        self.workdir, self.saved, self.config, self.params_of = workdir, saved, config, params_of
        self.total = config['loop']['total_steps']
        self.epoch_steps = config['loop']['steps_per_epoch']
        self.checkpoint_every = checkpoint_every
        state = checkpoints.to_host(state)
        restored = saved.restore(state)
        self.step, state, meta = restored or (0, state, {})
        self.saved_step = self.step if restored else None
        # `pending`: the epoch that ends at this step has no 'epoch' and 'eval' record yet.
        self.meta = {
            'wall_seconds': 0.0,
            'epoch_seconds': 0.0,
            'records': 0,
            'pending': False,
            'train': {},
            'eval': {},
            **meta,
        }
        # One way in for a new and a restored state: same types, same placement, hence the same
        # compiled code.
        self.place = devices.Placement()
        self.state = self.place.state(state)
        self.writer = self.bar = self.watch = self.clock = None
        self.shown = shown

    @property
    def epoch(self) -> int:
        """Epochs begun."""
        return -(-self.step // self.epoch_steps)

    def finished(self) -> dict | None:
        """Content of `finished.json`, if the final state is there as well."""
        path = self.workdir / 'finished.json'
        if not path.exists():
            return None
        if self.step == self.total:
            return json.loads(path.read_text())
        logging.warning(
            '%s is there, but no final checkpoint; continuing from step %d', path, self.step
        )
        path.unlink()
        return None

    def train(self, chunk, source, evaluate, stop) -> dict:
        """Goes on to the last step; returns what it wrote to `finished.json`."""
        self._open()
        bounds = _boundaries(self.step, **self.config['loop'])
        with _Ahead(
            lambda a, b: self.place.batches(source(a, b - a)), itertools.pairwise(bounds)
        ) as ahead:
            if self.meta['pending']:
                self._end_epoch(evaluate)
            while self.step < self.total:
                while not ahead.ready(timeout=0.5):
                    stop.check(self._save)
                before = self.step
                self._chunk(chunk, *ahead.take())
                if self.step % self.epoch_steps == 0 or self.step == self.total:
                    self.meta['pending'] = True
                    stop.check(self._save)  # rather than after an evaluation, which may take long
                    self._end_epoch(evaluate)
                due = self.step // self.checkpoint_every > before // self.checkpoint_every
                if due or self.step == self.total:
                    self._save()
                stop.check(self._save)
        self._tick()
        summary = {
            'name': self.config['name'],
            'step': self.step,
            'epoch': self.epoch,
            'wall_seconds': self.meta['wall_seconds'],
            'train': self.meta['train'],
            'eval': self.meta['eval'],
            'devices': self.place.description,
        }
        rundir.write_json(self.workdir / 'finished.json', summary)
        return summary

    def close(self):
        """Closes what `train` opened."""
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def _open(self):
        records = metrics.read_metrics(self.workdir / 'metrics.jsonl')
        # What a killed attempt did after its last checkpoint is done again, but the time is spent.
        self.meta['wall_seconds'] = max([
            self.meta['wall_seconds'],
            *(r.get('wall_seconds', 0) for r in records),
        ])
        self.writer = metrics.MetricsWriter(
            self.workdir, step=self.step, records=self.meta['records']
        )
        usual = [r.get('loss') for r in records[: self.writer.records] if r['kind'] == 'train']
        self.watch = divergence.LossWatch(loss for loss in usual if loss is not None)
        self.bar = progress_lib.Progress(
            self.config['name'], self.total, self.step, enabled=self.shown
        )
        if self.step:
            self.bar.say(f'continues from step {self.step} of {self.total}')
        self.clock = time.monotonic()

    def _tick(self):
        now = time.monotonic()
        self.meta['wall_seconds'] += now - self.clock
        self.meta['epoch_seconds'] += now - self.clock
        self.clock = now

    def _chunk(self, chunk, end, batches):
        start, began = self.step, time.monotonic()
        state, values = chunk(self.state, batches)
        self.state, self.step = self.place.again(state), end
        values = dict(checkpoints.named_leaves(jax.device_get(values)))
        self._tick()
        trouble = self.watch.trouble(values['loss']) if 'loss' in values else None
        self.meta['train'] = means = {
            name: np.mean(np.atleast_1d(value), axis=0, dtype=np.float64).tolist()
            for name, value in values.items()
        }
        self._write(
            'train', {**means, 'steps_per_second': (end - start) / (time.monotonic() - began)}
        )
        if trouble:
            self._diverged(start + 1 + trouble[0], trouble[1])
        self.bar.update(self.step, {k: means[k] for k in ('loss', 'accuracy') if k in means})

    def _end_epoch(self, evaluate):
        self._write('epoch', {'epoch_seconds': self.meta['epoch_seconds']})
        self.meta.update(epoch_seconds=0.0, pending=False)
        between = self.epoch % self.config['loop']['evaluate_every'] and self.step < self.total
        if evaluate is None or between:
            return
        values = jax.device_get(evaluate(self.place.gather(self.state)))
        values = {k: np.asarray(v).tolist() for k, v in checkpoints.named_leaves(values)}
        self._tick()
        self.meta['eval'] = values
        self._write('eval', values)
        numbers = ', '.join(
            f'{k} {v:.4f}'
            for k, v in values.items()
            if isinstance(v, int | float) and '/' not in k
        )
        self.bar.say(f'epoch {self.epoch}, step {self.step}: {numbers}')

    def _write(self, kind, values):
        self.writer.write(
            kind,
            self.step,
            {'epoch': self.epoch, 'wall_seconds': round(self.meta['wall_seconds'], 3), **values},
        )

    def _save(self):
        if self.step == self.saved_step:
            return
        bad = divergence.nan_layers(self.params_of(self.state))
        if bad:
            self._diverged(self.step, f'weights are NaN in {", ".join(bad[:5])}')
        self._tick()
        self.meta['records'] = self.writer.records
        self.saved.save(self.step, self.state, {**self.meta, **self.config})
        self.saved_step = self.step

    def _diverged(self, step, reason):
        raise divergence.TrainingDiverged(
            reason,
            step=step,
            total=self.total,
            checkpoint=self.saved.last(),
            norms=divergence.layer_norms(self.params_of(self.state)),
        )


def _boundaries(step, *, steps_per_epoch, chunk_size, total_steps, **_):
    yield step
    while step < total_steps:
        step = next_boundary(
            step, steps_per_epoch=steps_per_epoch, chunk_size=chunk_size, total_steps=total_steps
        )
        yield step


class _Ahead:
    """Loads the inputs of one span of steps while another is computed."""

    def __init__(self, load, spans):
        self._load, self._spans = load, iter(spans)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, 'source')
        self._submit()

    def _submit(self):
        self._span = next(self._spans, None)
        self._future = self._pool.submit(self._load, *self._span) if self._span else None

    def ready(self, timeout: float) -> bool:
        return bool(concurrent.futures.wait([self._future], timeout).done)

    def take(self):
        end, inputs = self._span[1], self._future.result()
        self._submit()
        return end, inputs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(wait=True, cancel_futures=True)
