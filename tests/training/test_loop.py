"""The loop: the same bits after any interruption, and clear ends when a run cannot go on."""

import functools
import io
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import jax
import killing
import numpy as np
import pytest
import toy_run

from kws_jax.training import checkpoints, divergence, loop, metrics, progress, rundir

TOY = pathlib.Path(__file__).with_name('toy_run.py')


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """Digest and metrics of a run that nothing interrupts, and its folder."""
    workdir = tmp_path_factory.mktemp('reference')
    state, summary = toy_run.run(workdir)
    return toy_run.digest(state), records(workdir), workdir, summary


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """Folder of compiled programs, for programs started by tests."""
    return tmp_path_factory.mktemp('cache')


def records(workdir):
    return metrics.read_metrics(pathlib.Path(workdir) / 'metrics.jsonl', clock=False)


def never(*_):
    raise AssertionError('must not be called')


def test_sigkill_at_random_moments_does_not_change_a_bit(tmp_path, reference, cache):
    workdir = tmp_path / 'run'
    hits, out = killing.kill_until_done(
        [TOY, workdir, json.dumps({'pause': 0.05})],
        workdir=workdir,
        kills=3,
        rng=np.random.default_rng(),
        longest=0.6,
        cache=cache,
    )
    assert hits >= 1  # or nothing was tested
    assert out.split()[-1] == reference[0]
    assert records(workdir) == reference[1]


def test_sigterm_saves_exits_with_0_and_the_run_continues_to_the_same_bits(
    tmp_path, reference, cache
):
    workdir = tmp_path / 'run'
    process = killing.start([TOY, workdir, json.dumps({'pause': 0.2})], cache=cache)
    assert killing.wait_until_written(process, workdir)
    process.send_signal(signal.SIGTERM)
    killing.finish(process)
    saved = checkpoints.Checkpoints(workdir / 'checkpoints').steps()
    assert saved and not (workdir / 'finished.json').exists()
    state, _ = toy_run.run(workdir)
    assert toy_run.digest(state) == reference[0]
    assert records(workdir) == reference[1]


def test_four_devices_give_the_result_of_one(tmp_path, reference):
    flags = '--xla_force_host_platform_device_count=4'
    out = killing.finish(killing.start([TOY, tmp_path / 'run'], XLA_FLAGS=flags))
    assert out.startswith('digest')
    summary = json.loads((tmp_path / 'run' / 'finished.json').read_text())
    assert summary['devices'].startswith('4 x')
    one, _ = toy_run.run(reference[2])
    four, _ = toy_run.run(tmp_path / 'run')
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class Interrupting:
    """A source that sends a signal to its own process when it is asked for `step`."""

    def __init__(self, number, step):
        self._number, self._step = number, step

    def __call__(self, step, n):
        if step == self._step:
            os.kill(os.getpid(), self._number)
        return toy_run.source(step, n)


@pytest.fixture
def handled():
    """SIGINT as a shell in the foreground has it: programs in the background begin ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('step', [0, 13, 30, 56])
@pytest.mark.parametrize(
    'number, error', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_anywhere_saves_and_continues(
    tmp_path, reference, number, error, step, handled
):
    step = next(s for s in boundaries() if s >= step)
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        toy_run.run(tmp_path, source=Interrupting(number, step))
    assert signal.getsignal(number) is before
    if error is SystemExit:
        assert raised.value.code == 0
    state, _ = toy_run.run(tmp_path)
    assert toy_run.digest(state) == reference[0]
    assert records(tmp_path) == reference[1]


def boundaries():
    return list(loop._boundaries(0, steps_per_epoch=13, chunk_size=4, total_steps=60))


def test_chunks_end_where_the_step_says_and_at_the_ends_of_epochs():
    # Epochs of 13 steps in chunks of 4, 4, 4, 1; the last epoch has 8 steps.
    assert boundaries()[:6] == [0, 4, 8, 12, 13, 17] and boundaries()[-3:] == [52, 56, 60]
    for step in boundaries():
        rest = list(loop._boundaries(step, steps_per_epoch=13, chunk_size=4, total_steps=60))
        assert rest == [s for s in boundaries() if s >= step]


def test_the_run_directory_says_what_ran(reference):
    _, lines, workdir, summary = reference
    assert json.loads((workdir / 'config.json').read_text()) == {
        'name': 'toy',
        'config': {'seed': 0, 'optimizer': {'lr': 0.01}},
        'loop': {'total_steps': 60, 'steps_per_epoch': 13, 'chunk_size': 4, 'evaluate_every': 1},
    }
    assert [r['step'] for r in lines if r['kind'] == 'train'] == boundaries()[1:]
    assert [r['step'] for r in lines if r['kind'] == 'eval'] == [13, 26, 39, 52, 60]
    assert [r['epoch'] for r in lines if r['kind'] == 'eval'] == [1, 2, 3, 4, 5]
    assert json.loads((workdir / 'finished.json').read_text()) == summary
    assert (summary['step'], summary['epoch'], summary['name']) == (60, 5, 'toy')
    assert summary['eval']['loss'] == lines[-1]['loss']
    assert summary['wall_seconds'] > 0
    assert checkpoints.Checkpoints(workdir / 'checkpoints').steps() == [56, 60]


def test_a_finished_run_returns_without_computing(reference):
    state, summary = toy_run.run(reference[2], chunk=never, source=never, evaluate=never)
    assert toy_run.digest(state) == reference[0] and summary == reference[3]


def test_evaluations_and_checkpoints_come_as_often_as_asked(tmp_path, monkeypatch):
    saved = []
    save = checkpoints.Checkpoints.save

    def noted(self, step, *args):
        saved.append(step)
        return save(self, step, *args)

    monkeypatch.setattr(checkpoints.Checkpoints, 'save', noted)
    toy_run.run(tmp_path, evaluate_every=2, checkpoint_every=None)
    assert saved == [13, 26, 39, 52, 60]
    assert [r['step'] for r in records(tmp_path) if r['kind'] == 'eval'] == [26, 52, 60]


def test_a_lost_final_checkpoint_is_computed_again(tmp_path, reference):
    shutil.copytree(reference[2], tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '00000060')
    state, _ = toy_run.run(tmp_path / 'run')
    assert toy_run.digest(state) == reference[0]
    assert records(tmp_path / 'run') == reference[1]


def test_the_time_of_all_attempts_is_summed(tmp_path):
    with pytest.raises(SystemExit):
        toy_run.run(tmp_path, source=Interrupting(signal.SIGTERM, 26))
    path = tmp_path / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    # A record that a kill left behind: 1000 seconds were spent until then.
    lost = {**json.loads(lines[-1]), 'step': 59, 'wall_seconds': 1000.0}
    path.write_text('\n'.join([*lines, json.dumps(lost)]) + '\n')
    _, summary = toy_run.run(tmp_path)
    assert 1000 < summary['wall_seconds'] < 1100


def test_another_configuration_is_refused_with_the_key(tmp_path, reference):
    shutil.copytree(reference[2], tmp_path / 'run')
    with pytest.raises(rundir.ConfigMismatch, match='config.seed=0, but now it is 1;.*workdir'):
        toy_run.run(tmp_path / 'run', seed=1)
    with pytest.raises(rundir.ConfigMismatch, match='loop.total_steps=60, but now it is 61'):
        toy_run.run(tmp_path / 'run', total_steps=61)


def test_a_second_process_is_kept_out(tmp_path):
    with rundir.only_one(tmp_path), pytest.raises(RuntimeError, match='another process runs in'):
        toy_run.run(tmp_path)


def test_nan_names_the_step_the_layers_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(divergence.TrainingDiverged) as error:
        toy_run.run(tmp_path, bad_step=35)
    good = tmp_path / 'checkpoints' / '00000034'
    assert error.value.step == 36 and error.value.checkpoint == good and good.exists()
    assert set(error.value.norms) == {'in', 'out'}
    for part in ('step 36 of 60', 'loss is nan', '  in: nan', '  out: nan', str(good)):
        assert part in str(error.value)


def test_an_exploding_loss_stops_the_run(tmp_path):
    def source(step, n):
        x, y = toy_run.source(step, n)
        return (x * np.where(np.arange(step, step + n) >= 20, 1e6, 1.0)[:, None, None], y)

    def chunk(state, batches):
        state, values = toy_run.chunk(state, batches)
        return state, {'loss': np.abs(batches[0]).mean((1, 2))}

    with pytest.raises(divergence.TrainingDiverged, match='step 21 of 60: .* the usual one 0.'):
        toy_run.run(tmp_path, source=source, chunk=chunk)


def test_weights_that_are_nan_are_not_saved_as_good(tmp_path):
    def chunk(state, batches):
        state, values = toy_run.chunk(state, batches)
        bad = jax.tree.map(lambda x: x * np.nan, state['params']['out'])
        return {**state, 'params': {**state['params'], 'out': bad}}, {}

    with pytest.raises(divergence.TrainingDiverged, match=r'NaN in .*out/w(.|\n)*no checkpoint'):
        toy_run.run(tmp_path, chunk=chunk)
    assert os.listdir(tmp_path / 'checkpoints') == []


def test_a_full_disk_of_the_metrics_is_named_too(tmp_path, reference, monkeypatch):
    write = metrics.MetricsWriter.write

    def full(self, kind, step, values):
        if step == 30:
            raise OSError(28, 'No space left on device')
        write(self, kind, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsWriter, 'write', full)
        with pytest.raises(checkpoints.DiskFull, match='last good checkpoint .*00000025'):
            toy_run.run(tmp_path)
    state, _ = toy_run.run(tmp_path)
    assert toy_run.digest(state) == reference[0] and records(tmp_path) == reference[1]


def test_an_error_of_the_source_comes_out(tmp_path):
    def source(step, n):
        if step == 8:
            raise LookupError('no such recording')
        return toy_run.source(step, n)

    with pytest.raises(LookupError, match='no such recording'):
        toy_run.run(tmp_path, source=source)


@pytest.mark.parametrize('argument', ['total_steps', 'steps_per_epoch', 'chunk_size'])
def test_steps_must_be_positive(tmp_path, argument):
    with pytest.raises(ValueError, match=f'{argument} must be an integer of at least 1, got 0'):
        toy_run.run(tmp_path, **{argument: 0})


def test_batches_are_loaded_while_a_chunk_runs_and_one_chunk_ahead(tmp_path):
    loaded, seen = [], []

    def source(step, n):
        assert threading.current_thread() is not threading.main_thread()
        loaded.append(step)
        return toy_run.source(step, n)

    def chunk(state, batches):
        end = time.monotonic() + 5
        while len(loaded) < min(len(seen) + 2, len(boundaries()) - 1) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.005)
        seen.append(len(loaded))
        return toy_run.chunk(state, batches)

    toy_run.run(tmp_path, source=source, chunk=chunk)
    assert loaded == boundaries()[:-1]
    assert seen[:3] == [2, 3, 4]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_without_a_terminal_a_line_comes_first_and_last_and_every_so_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    stream = io.StringIO()
    shown = progress.Progress('toy', 100, 0, every=30.0, stream=stream)
    for step in range(1, 101):
        now[0] += 1.0
        shown.update(step, {'loss': 0.5, 'accuracy': 0.25})
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ['1/100', '31/100', '61/100', '91/100', '100/100']
    # One step a second: 69 steps to go take 1:09.
    assert lines[1] == (
        'toy: 31/100 steps, 1.00 step/s, loss 0.5000, accuracy 0.2500, 01:09 left'
    )  # fmt: skip


def test_on_a_terminal_there_is_a_bar():
    stream = Terminal()
    shown = progress.Progress('toy', 10, 4, stream=stream)
    shown.update(8, {'loss': 0.5})
    shown.say('epoch 1')
    shown.close()
    text = stream.getvalue()
    assert '\r' in text and '8/10' in text and 'loss=0.5000' in text and 'toy: epoch 1' in text


def test_progress_can_be_off():
    stream = io.StringIO()
    shown = progress.Progress('toy', 10, 0, enabled=False, stream=stream)
    shown.update(10, {})
    shown.say('x')
    shown.close()
    assert stream.getvalue() == ''


def test_the_loop_compiles_each_chunk_length_once(tmp_path):
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, batches):
        traces.append(len(batches[0]))
        return {**state, 'step': state['step'] + len(batches[0])}, {'loss': np.zeros(1)}

    with pytest.raises(SystemExit):
        toy_run.run(tmp_path, chunk=chunk, source=Interrupting(signal.SIGTERM, 30))
    toy_run.run(tmp_path, chunk=chunk)
    assert sorted(traces) == [1, 4]
