"""What every test runs under."""

import atexit
import os
import shutil
import tempfile

# before anything imports jax
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    # a program is compiled once for all tests, for all workers and the programs that they start
    folder = tempfile.mkdtemp(prefix='kws_jax-compiled-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
