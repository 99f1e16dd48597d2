"""ProxylessNAS in gradient mode (Cai et al. 2019; as used by Peter et al. 2020, 2021)."""

from kws_jax import supernet
from kws_jax.search import arch as arch_lib
from kws_jax.search.problem import Problem, SearchResult
from kws_jax.search.supernet_training import describe, log_probabilities, train_supernet


def check_choose(choose: str) -> None:
    """Raises ValueError unless `choose` is a way to end a search."""
    if choose not in ('within', 'argmax'):
        raise ValueError(f"choose must be 'within' or 'argmax', got {choose!r}")


def search(problem: Problem, *, data, config: dict, workdir) -> SearchResult:
    """Trains weights and arch params in turn, then chooses.

    Warm-up epochs train the weights of uniformly sampled paths; then every
    `config['arch_every']`-th step also moves the arch params on a validation batch.
    `config['choose']` says how it ends: 'within' takes the most probable architecture whose MACs
    end within `problem.tolerance` below the target and whose parameters are within the cap;
    'argmax' the largest logit of each layer, whatever that costs (the papers).

    Args, returns, raises: as every searcher; see `search.SEARCHERS`.
    """
    check_choose(config['choose'])
    if config['choose'] == 'within':
        problem.check_reachable()
    state, summary = train_supernet(
        problem,
        data=data,
        config=config,
        workdir=workdir,
        arch_every=config['arch_every'],
        name='search',
    )
    space = problem.space
    if config['choose'] == 'argmax':
        architecture = arch_lib.most_probable(space, state.arch)
    else:
        scores = log_probabilities(problem, state.arch)
        architecture = arch_lib.choose_within(
            space, scores, problem.macs_table, caps=problem.caps, **problem.bounds
        )
    expected = problem.macs_table.expected(arch_lib.probabilities(space, state.arch))
    argmax = arch_lib.most_probable(space, state.arch)
    facts = describe(problem, architecture, summary) | {
        'expected_macs': float(expected),
        'expected_over_target': float(expected) / problem.macs,
        'entropy': float(arch_lib.entropy(space, state.arch)),
        'argmax_choices': [choice.name for choice in argmax.choices],
        'argmax_macs': int(problem.macs_table.of(argmax)),
    }
    params, averages = supernet.derive(state.params, state.averages, architecture)
    return SearchResult(architecture, params, averages, facts)
