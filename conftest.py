"""What of the package is left out of the tests: peers of a library that is not there."""

import importlib.util

collect_ignore = []
if importlib.util.find_spec('torch') is None:
    collect_ignore.append('kws_jax/benchmark/torch_peers.py')
