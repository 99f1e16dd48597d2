"""Uniform single-path search: the control that has no arch params (Guo et al. 2020)."""

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import supernet
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.search import arch as arch_lib
from kws_jax.search.problem import Problem, SearchResult
from kws_jax.search.supernet_training import describe, train_supernet


def search(problem: Problem, *, data, config: dict, workdir) -> SearchResult:
    """Trains a supernet on uniformly sampled paths, then takes the best of many random paths.

    The supernet gets the same epochs as ProxylessNAS. Then `config['candidates']` architectures of
    matched cost are drawn and scored with the supernet's weights (and batch statistics) on
    `config['candidate_clips']` validation clips.

    Args, returns, raises: as every searcher; see `search.SEARCHERS`.
    """
    problem.check_reachable()
    state, summary = train_supernet(
        problem, data=data, config=config, workdir=workdir, arch_every=0, name='uniform search'
    )
    space, batch = problem.space, config['batch']
    audio, labels = data.evaluation('validation')
    rng = np.random.default_rng([config['seed'], 7])
    picked = rng.permutation(len(audio))[: config['candidate_clips']]
    batch = min(batch, len(picked))

    @jax.jit
    def correct(params, averages, path, audio, labels):
        logits, _ = supernet.apply(
            params,
            averages,
            int16_to_float(audio),
            path=path,
            front_end=problem.front_end,
            space=space,
            train=True,
        )
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels)

    scores = {}
    for _ in range(config['candidates']):
        candidate = arch_lib.sample_within(
            rng, space, problem.macs_table, caps=problem.caps, **problem.bounds
        )
        path = jnp.asarray(candidate.path, jnp.int32)
        starts = range(0, len(picked) - batch + 1, batch)
        hits = []
        for s in starts:
            rows = picked[s : s + batch]
            hits.append(correct(state.params, state.averages, path, audio[rows], labels[rows]))
        scores[candidate] = float(sum(hits)) / (len(starts) * batch)
    architecture = max(scores, key=scores.get)
    facts = describe(problem, architecture, summary) | {
        'candidates': len(scores),
        'supernet_accuracy': scores[architecture],
        'supernet_accuracy_range': [min(scores.values()), max(scores.values())],
    }
    params, averages = supernet.derive(state.params, state.averages, architecture)
    return SearchResult(architecture, params, averages, facts)
