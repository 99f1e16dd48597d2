"""Whole bit-widths: within the budget, close to it, and close to what was learned."""

import itertools

import numpy as np
import pytest

from kws_jax import costs, space
from kws_jax.quantizers import allocate_bits, greedy_bits

TABLE1 = space.table1_space()
FILTERS = 60


def sites(architecture):
    """Weight and activation tensors of an architecture, with their sizes and smallest widths."""
    yield costs.weight_sites(architecture, front_end_weights=200 * FILTERS), 2
    yield costs.activation_sites(architecture), 1


def profiles(names, rng):
    """Learned widths of several kinds: spread out, at the bounds, whole, all the same."""
    yield dict(zip(names, rng.uniform(1, 8, len(names)), strict=True))
    yield dict(zip(names, rng.choice([2.0, 8.0], len(names)), strict=True))
    yield dict(zip(names, np.round(rng.normal(4, 1.5, len(names))), strict=True))
    yield dict.fromkeys(names, 3.0)


@pytest.mark.parametrize('mean', [2.2, 2.51, 2.91, 3.0, 4.5, 7.3])
def test_the_mean_is_at_most_the_budget_and_within_2_percent_of_it(mean):
    rng = np.random.default_rng(0)
    # the smallest network too: there one tensor, the filters, holds most of the weights
    smallest = TABLE1.architecture(['e1k3', 'identity', 'identity'] * 2)
    for architecture in (smallest, TABLE1.largest(), *(TABLE1.sample(rng) for _ in range(4))):
        for sizes, minimum in sites(architecture):
            for learned in profiles(list(sizes), rng):
                bits = allocate_bits(learned, sizes, mean=mean, minimum=minimum)
                assert set(bits) == set(sizes)
                assert all(isinstance(b, int) and minimum <= b <= 8 for b in bits.values())
                assert 0.98 * mean <= costs.mean_bits(bits, sizes) <= mean


@pytest.mark.parametrize('seed', range(4))
def test_nothing_as_close_to_the_budget_is_closer_to_the_profile(seed):
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(10, 200)) for name in 'abcd'}
    learned = {name: float(rng.uniform(2, 6)) for name in sizes}
    count, mean = sum(sizes.values()), 3.7
    bits = allocate_bits(learned, sizes, mean=mean)
    # the mean of the profile is far from the bounds, so the shift is the plain difference
    shift = mean - costs.mean_bits(learned, sizes)

    def distance(widths):
        return sum((b - learned[name] - shift) ** 2 for name, b in widths.items())

    every = (
        dict(zip(sizes, widths, strict=True)) for widths in itertools.product(range(1, 9), repeat=4)
    )
    spent = ((costs.mean_bits(w, sizes) * count, w) for w in every)
    best = min(distance(w) for used, w in spent if 0.991 * mean * count <= used <= mean * count - 2)
    assert distance(bits) <= best + 1e-9


def test_a_profile_that_meets_the_budget_is_kept():
    learned = {'a': 2.0, 'b': 5.0, 'c': 3.0}
    sizes = {'a': 100, 'b': 200, 'c': 300}
    mean = (200 + 1000 + 900) / 600
    assert allocate_bits(learned, sizes, mean=mean) == {'a': 2, 'b': 5, 'c': 3}


def test_a_large_budget_gives_the_largest_width_and_the_smallest_budget_the_smallest():
    sizes = {'a': 7, 'b': 9}
    learned = {'a': 3.0, 'b': 4.0}
    assert allocate_bits(learned, sizes, mean=20) == {'a': 8, 'b': 8}
    assert allocate_bits(learned, sizes, mean=20, maximum=4) == {'a': 4, 'b': 4}
    minimum = {'a': 1, 'b': 3}
    least = (7 + 27) / 16
    assert allocate_bits(learned, sizes, mean=least, minimum=minimum) == minimum


def test_a_budget_below_the_smallest_widths_is_an_error_that_names_them():
    with pytest.raises(ValueError, match=r'mean must be at least 2 bits.*got 1.9'):
        allocate_bits({'a': 3.0}, {'a': 5}, mean=1.9, minimum=2)


def test_greedy_takes_bits_where_each_freed_one_costs_least():
    # lowering a 8 -> 7 frees 100 bits of storage for 0.2, b 10 bits for 0.05: a is cheaper each
    losses = {'a': {7: 0.2, 8: 0.0}, 'b': {7: 0.05, 8: 0.0}}
    sizes = {'a': 100, 'b': 10}
    assert greedy_bits(losses, sizes, mean=7.95) == {'a': 7, 'b': 8}
    assert greedy_bits(losses, sizes, mean=7) == {'a': 7, 'b': 7}
    assert greedy_bits(losses, sizes, mean=8) == {'a': 8, 'b': 8}
    # a has to give a bit, frees 100 bits where 60 are needed; b gets back what it gave before
    losses['b'][7] = 0.001
    assert greedy_bits(losses, sizes, mean=8 - 60 / 110) == {'a': 7, 'b': 8}
    with pytest.raises(ValueError, match='mean must be at least 7 bits, got 6'):
        greedy_bits(losses, sizes, mean=6)


def test_greedy_is_optimal_where_every_bit_costs_more_than_the_one_before():
    """Convex losses and equal sizes: compared with all allocations."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = 'abc'
        losses = {
            name: dict(zip(range(8, 3, -1), np.cumsum(np.sort(rng.uniform(size=5))), strict=True))
            for name in names
        }
        found = greedy_bits(losses, dict.fromkeys(names, 1), mean=6)
        best = min(
            sum(losses[name][bits] for name, bits in zip(names, widths, strict=True))
            for widths in itertools.product(range(4, 9), repeat=3)
            if sum(widths) <= 18
        )
        assert sum(losses[name][found[name]] for name in names) == pytest.approx(best)
