"""What a search step costs a fresh process: tracing, compilation, peak memory.

Run as a program it prints one line of JSON; `measure` starts it.
"""

import json
import os
import pathlib
import subprocess
import sys
import time


def measure(cache: pathlib.Path) -> dict:
    """Runs a search step in a process of its own.

    Args:
      cache: folder of compiled programs, as `use_compilation_cache` keeps it.

    Returns:
      `compile_seconds`: of the weight update, the arch update and what a step reports, tracing
      included; `peak_bytes`: by how much resident memory grew over a process that holds data and
      libraries but no search, at its highest, compilation included.

    Raises:
      RuntimeError: the process failed; the message ends with what it printed.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, '-m', 'kws_jax.benchmark.fresh', str(cache)],
        env={**os.environ, 'PYTHONPATH': paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'the measuring process failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> int:
    """A size of this process in bytes, by its name in /proc; Linux only."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {field}')


def _main(cache):
    import jax

    from kws_jax.benchmark import subjects
    from kws_jax.training.devices import use_compilation_cache

    use_compilation_cache(cache)
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))))
    subjects.clips()
    before = resident('VmRSS')
    search = subjects.Searched(arch=True)
    began = time.perf_counter()
    search.compile()
    seconds = time.perf_counter() - began
    for _ in range(3):
        jax.block_until_ready(search())
    print(json.dumps({'compile_seconds': seconds, 'peak_bytes': resident('VmHWM') - before}))


if __name__ == '__main__':
    _main(sys.argv[1])
