"""Ways to choose an architecture: each one module, one public entry, the same signature.

`search(problem, *, data, config, workdir) -> SearchResult`: `problem` says what is wanted, `data`
is a `Dataset`, `config` a plain dict (see `configs/sinc60.py`, `search`), `workdir` a run directory
in which an interrupted search continues. Where nothing in the space meets the bounds, it raises
ValueError before it trains anything.
"""

from kws_jax.search import prices, proxyless, random_search, uniform
from kws_jax.search.problem import Problem, SearchResult
from kws_jax.search.supernet_training import describe

SEARCHERS = {
    'proxyless': proxyless.search,
    'uniform': uniform.search,
    'random': random_search.search,
}

__all__ = ['SEARCHERS', 'Problem', 'SearchResult', 'describe', 'prices', 'proxyless']
