"""Kills a program again and again, and lets it finish in the end."""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def environment_of_programs() -> dict:
    """Variables under which programs of the repository run on one CPU device."""
    return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}


def start(command, *, cache=None, **environment) -> subprocess.Popen:
    """Starts `python *command` from the repository's root, on one CPU device unless told otherwise.

    Args:
      command: arguments of Python.
      cache: folder of compiled programs, so that a restart takes less time.
      **environment: variables to add.
    """
    env = environment_of_programs()
    if cache is not None:
        env['JAX_COMPILATION_CACHE_DIR'] = str(cache)
        env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        env['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**env, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_written(process, workdir, *, timeout=120.0) -> bool:
    """Waits until the program writes metrics under `workdir`; False if it ended before."""
    before, end = _size(workdir), time.monotonic() + timeout
    while process.poll() is None:
        if _size(workdir) > before:
            return True
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f'nothing written in {timeout} s:\n{process.communicate()[1]}')
        time.sleep(0.002)
    return False


def _size(workdir) -> int:
    # os.walk passes over folders that vanish meanwhile, as those of unfinished checkpoints do
    found = (os.path.join(folder, 'metrics.jsonl') for folder, _, _ in os.walk(workdir))
    return sum(os.path.getsize(path) for path in found if os.path.exists(path))


def kill_until_done(command, *, workdir, kills, rng, longest, cache=None, **environment):
    """Runs `python *command`, killed by SIGKILL `kills` times at random moments, then to its end.

    Args:
      command: arguments of Python.
      workdir: where it writes `metrics.jsonl`, in a folder below or not.
      kills: how many times.
      rng: numpy Generator for the moments: up to `longest` seconds after it has begun to write.
      longest: seconds.
      cache: folder of compiled programs.
      **environment: variables to add.

    Returns:
      How many of the kills hit a living program, and the stdout of the last run.
    """
    hits = 0
    for _ in range(kills):
        process = start(command, cache=cache, **environment)
        if wait_until_written(process, workdir):
            time.sleep(rng.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hits += process.returncode == -signal.SIGKILL
    return hits, finish(start(command, cache=cache, **environment))


def finish(process) -> str:
    """Waits for the end, which must be a good one; returns stdout."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out
