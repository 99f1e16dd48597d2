"""What every test runs under."""

import os

import pytest

# before anything imports jax
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


@pytest.fixture(scope='session', autouse=True)
def compiled_once(tmp_path_factory):
    """Tests of one worker share what they compile. The folder is not shared with other processes:
    JAX writes to it in place, and half a program would be a warning, which here is an error."""
    from kws_jax.training.devices import use_compilation_cache

    use_compilation_cache(tmp_path_factory.mktemp('compiled'))
