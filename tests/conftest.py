"""What every test runs under."""

import os

# before anything imports jax
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
