"""Arch params: logits over candidates, their probabilities, paths drawn from them, and choices."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.costs import CostTable
from kws_jax.space import Architecture, SearchSpace


def init(key: jax.Array, space: SearchSpace) -> dict:
    """Logits `{stage: float32[layers, candidates]}`, normal with standard deviation 1e-3."""
    keys = jax.random.split(key, len(space.stages))
    return {
        stage.name: 1e-3 * jax.random.normal(k, (stage.layers, len(stage.candidates)))
        for k, stage in zip(keys, space.stages, strict=True)
    }


def logits(space: SearchSpace, arch: dict) -> list[jax.Array]:
    """The logits of each layer's own choices, float32 `[choices]`.

    An identity that a layer may not take (always the last candidate) is left out.
    """
    rows = itertools.chain.from_iterable(
        [arch[stage.name][i] for i in range(stage.layers)] for stage in space.stages
    )
    return [row[: len(x.choices)] for x, row in zip(space.layers, rows, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def probabilities(space: SearchSpace, arch: dict) -> list[jax.Array]:
    """Softmax of each layer's logits, `[choices]`."""
    return [jax.nn.softmax(row) for row in logits(space, arch)]


def sample_path(key: jax.Array, space: SearchSpace, arch: dict) -> jax.Array:
    """A path int32 `[layers]`, each layer's choice drawn from its probabilities."""
    rows = logits(space, arch)
    keys = jax.random.split(key, len(rows))
    draws = [jax.random.categorical(k, row) for k, row in zip(keys, rows, strict=True)]
    return jnp.stack(draws).astype(jnp.int32)


def entropy(space: SearchSpace, arch: dict) -> jax.Array:
    """Mean over layers of the choice's entropy divided by that of a uniform choice: 1 to 0.

    A layer with one choice only counts as 0.
    """
    shares = [
        -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-20))) / jnp.log(float(max(len(p), 2)))
        for p in probabilities(space, arch)
    ]
    return jnp.mean(jnp.stack(shares))


def most_probable(space: SearchSpace, arch: dict) -> Architecture:
    """The largest logit of every layer, whatever it costs."""
    return space.architecture([int(np.argmax(row)) for row in logits(space, arch)])


def choose_within(
    space: SearchSpace,
    scores: Sequence[np.ndarray],
    table: CostTable,
    *,
    low: float,
    high: float,
    caps: Sequence[tuple[CostTable, float]] = (),
    bins: int = 400,
) -> Architecture:
    """The architecture of highest total score whose cost is within [low, high].

    Dynamic programming over layers: of the beginnings whose costs share one of `bins` bins of the
    upper bound, only the best is followed. Their true costs are added up, so no bound is ever
    crossed; with bins finer than the differences between costs the result is exact.

    Args:
      space: the search space.
      scores: one array `[choices]` per layer, such as log-probabilities.
      table: the cost that must end within [low, high].
      low, high: bounds, in the unit of `table`.
      caps: further (table, largest value) pairs; at most one.
      bins: resolution.

    Raises:
      ValueError: nothing in the space satisfies the bounds, or there is more than one cap.
    """
    if len(caps) > 1:
        raise ValueError(f'at most one cap is supported, got {len(caps)}')
    tables = [(table, high), *caps]
    states = {(0.0,) * len(tables): (0.0, ())}
    floors = [
        np.cumsum([c.min() for c in t.layers][::-1])[::-1].tolist() + [0.0] for t, _ in tables
    ]
    unit = [limit / bins for _, limit in tables]
    for i in range(len(space.layers)):
        reached = {}
        for spent, (score, path) in states.items():
            for j, gain in enumerate(np.asarray(scores[i], float)):
                now = tuple(
                    s + float(t.layers[i][j]) for s, (t, _) in zip(spent, tables, strict=True)
                )
                if any(
                    n + t.fixed + floor[i + 1] > limit
                    for n, (t, limit), floor in zip(now, tables, floors, strict=True)
                ):
                    continue
                slot = tuple(int(n / u) for n, u in zip(now, unit, strict=True))
                total = score + float(gain)
                if slot not in reached or reached[slot][1][0] < total:
                    reached[slot] = (now, (total, (*path, j)))
        states = dict(reached.values())
    fitting = [entry for spent, entry in states.items() if low <= spent[0] + table.fixed <= high]
    if not fitting:
        least, most = table.bounds
        raise ValueError(
            f'no architecture costs between {low:g} and {high:g} within the caps '
            f'{[limit for _, limit in caps]}; the space holds {least:g} to {most:g}'
        )
    return space.architecture(list(max(fitting)[1]))


def sample_within(
    rng: np.random.Generator,
    space: SearchSpace,
    table: CostTable,
    *,
    low: float,
    high: float,
    caps: Sequence[tuple[CostTable, float]] = (),
    tries: int = 200_000,
) -> Architecture:
    """A uniformly drawn architecture among those whose cost is in [low, high] and within caps.

    Args:
      rng: consumed draw by draw.
      space, table, low, high: as for `choose_within`.
      caps: any number of (table, largest value) pairs.
      tries: how many architectures to draw before giving up.

    Raises:
      ValueError: none was met in `tries` draws.
    """
    for _ in range(tries):
        candidate = space.sample(rng)
        if low <= table.of(candidate) <= high and all(t.of(candidate) <= m for t, m in caps):
            return candidate
    raise ValueError(
        f'{tries} random architectures, none between {low:g} and {high:g} within the caps '
        f'{[limit for _, limit in caps]}; the space holds {table.bounds[0]:g} to '
        f'{table.bounds[1]:g}; widen the bounds'
    )
