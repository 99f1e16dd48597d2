"""A random architecture of matched cost: the control that every search has to beat."""

import numpy as np

from kws_jax.search import arch as arch_lib
from kws_jax.search.problem import Problem, SearchResult
from kws_jax.search.supernet_training import describe


def search(problem: Problem, *, data, config: dict, workdir) -> SearchResult:
    """Draws one architecture uniformly among those within the cost bounds; trains nothing.

    Args, returns, raises: as every searcher; see `search.SEARCHERS`.
    """
    del data, workdir
    problem.check_reachable()
    architecture = arch_lib.sample_within(
        np.random.default_rng([config['seed'], 11]),
        problem.space,
        problem.macs_table,
        caps=problem.caps,
        **problem.bounds,
    )
    return SearchResult(architecture, None, None, describe(problem, architecture, None))
