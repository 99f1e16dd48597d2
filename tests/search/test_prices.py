"""Prices on cost: gradients of what they claim to minimize, and a target that is met."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kws_jax import costs
from kws_jax.search import arch as arch_lib
from kws_jax.search import prices
from kws_jax.search.step import arch_adam
from kws_jax.space import table1_space

pytest_plugins = ('tiny_search',)
pytestmark = pytest.mark.usefixtures('quick_compilation')
SPACE = table1_space()
MACS = costs.macs_table(SPACE, front_end_macs=400 * 60 * 98)


def cross_entropy(arch):
    """Some smooth positive function of the arch params."""
    rows = jax.tree.leaves(arch)
    return 1.5 + sum(jnp.mean(jnp.sin(3 * row)) for row in rows) / 4


def expected_macs(arch):
    return MACS.expected(arch_lib.probabilities(SPACE, arch))


@pytest.fixture(scope='module')
def arch():
    rng = np.random.default_rng(0)
    return {s.name: jnp.asarray(rng.normal(size=(3, 19)), jnp.float32) for s in SPACE.stages}


@pytest.mark.parametrize('beta', [0.0, 1.0, 4.0, 16.0])
def test_mul_log_moves_along_the_gradient_of_the_published_objective(arch, beta):
    # Peter et al. 2020: CE * (log E[ops] / log ops_ref) ** beta
    price = prices.make('mul_log', reference=20e6, beta=beta)
    check_gradient(
        price,
        arch,
        lambda a: cross_entropy(a) * (jnp.log(expected_macs(a)) / jnp.log(20e6)) ** beta,
    )


def test_linear_moves_along_the_gradient_of_the_weighted_sum(arch):
    price = prices.make('linear', reference=13.6e6, weight=0.7)
    check_gradient(price, arch, lambda a: cross_entropy(a) + 0.7 * expected_macs(a) / 13.6e6)


def check_gradient(price, arch, objective):
    @jax.jit
    def both(arch):
        loss, of_loss = jax.value_and_grad(cross_entropy)(arch)
        cost, of_cost = jax.value_and_grad(expected_macs)(arch)
        loss_factor, cost_factor, _ = price.factors(
            price.init(),
            loss=loss,
            cost=cost,
            loss_norm=optax.tree.norm(of_loss),
            cost_norm=optax.tree.norm(of_cost),
        )
        got = jax.tree.map(lambda a, b: loss_factor * a + cost_factor * b, of_loss, of_cost)
        return got, jax.grad(objective)(arch)

    got, wanted = both(arch)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), got, wanted
    )


# ---------------------------------------------------------------------------------- the target


def factors(price, state, cost, loss_norm=2.0, cost_norm=5.0):
    return price.factors(
        jnp.float32(state),
        loss=jnp.float32(1.0),
        cost=jnp.float32(cost),
        loss_norm=jnp.float32(loss_norm),
        cost_norm=jnp.float32(cost_norm),
    )


def test_the_price_of_a_target_by_hand():
    price = prices.target(cost=100.0, proportional=10.0, integral=0.1)
    off = np.log(1.1)
    loss_factor, cost_factor, state = factors(price, 0.3, 110.0)
    # both gradients to norm one; the sum takes a tenth of the deviation
    assert loss_factor == pytest.approx(1 / 2)
    assert state == pytest.approx(0.3 + 0.1 * off, rel=1e-5)
    assert cost_factor == pytest.approx((10 * off + 0.3 + 0.1 * off) / 5, rel=1e-5)
    # below the target cost is rewarded, on it the sum alone decides
    assert factors(price, 0.0, 90.0)[1] < 0
    assert factors(price, 0.4, 100.0)[1] == pytest.approx(0.4 / 5, rel=1e-5)


def test_far_from_the_target_the_price_is_bounded_and_the_sum_waits():
    price = prices.target(cost=100.0)
    for cost, weight in ((300.0, 2.0), (30.0, -2.0)):
        _, cost_factor, state = factors(price, 0.25, cost)
        assert cost_factor == pytest.approx(weight / 5, rel=1e-5)
        assert state == 0.25


def simulate(*, updates, lr, macs, unit, scale, favour, noise):
    """Arch params under the price of a target, without a network.

    The loss falls by `favour` where the largest operation is sure rather than none, and has random
    gradients of `noise`, anew at each update; all of it times `scale`. Costs are counted in `unit`.

    Returns:
      Expected MACs over the target after each update, and the last arch params.
    """
    table = costs.CostTable(MACS.fixed * unit, tuple(row * unit for row in MACS.layers))
    sizes = [jnp.asarray(row / row.max(), jnp.float32) for row in MACS.layers]
    price = prices.target(cost=macs * unit)
    optimizer = arch_adam(lr=lr, warmup_steps=0, steps=5 * updates, every=5)

    def loss(arch, key):
        rows = arch_lib.probabilities(SPACE, arch)
        keys = jax.random.split(key, len(rows))
        return scale * sum(
            jnp.dot(p, noise * jax.random.normal(k, p.shape) - favour * size)
            for p, k, size in zip(rows, keys, sizes, strict=True)
        )

    def expected(arch):
        return table.expected(arch_lib.probabilities(SPACE, arch))

    def update(carry, key):
        arch, opt, state = carry
        value, of_loss = jax.value_and_grad(loss)(arch, key)
        cost, of_cost = jax.value_and_grad(expected)(arch)
        loss_factor, cost_factor, state = price.factors(
            state,
            loss=value,
            cost=cost,
            loss_norm=optax.tree.norm(of_loss),
            cost_norm=optax.tree.norm(of_cost),
        )
        gradient = jax.tree.map(lambda a, b: loss_factor * a + cost_factor * b, of_loss, of_cost)
        moves, opt = optimizer.update(gradient, opt, arch)
        arch = optax.apply_updates(arch, moves)
        return (arch, opt, state), expected(arch) / (macs * unit)

    arch = arch_lib.init(jax.random.key(0), SPACE)
    keys = jax.random.split(jax.random.key(1), updates)
    (arch, _, _), ratios = jax.lax.scan(update, (arch, optimizer.init(arch), price.init()), keys)
    return ratios, arch


@functools.cache
def simulation(updates, lr):
    """Many simulations at once, compiled once; each argument is an array."""

    def run(macs, unit, scale, favour, noise):
        return simulate(
            updates=updates, lr=lr, macs=macs, unit=unit, scale=scale, favour=favour, noise=noise
        )

    return jax.jit(jax.vmap(run))


@pytest.mark.parametrize(('updates', 'lr'), [(272, 0.05), (100, 0.15)])
def test_the_expected_cost_ends_within_five_percent_of_the_target(updates, lr):
    """On the published space, from 11.2M expected MACs at the start, as fast as configs search."""
    # a loss that wants more, that knows nothing, that wants less; with and without noise
    losses = [(1.0, 0.0), (1.0, 1.0), (0.3, 1.0), (0.0, 1.0), (-1.0, 1.0)]
    targets = [5e6, 9e6, 13.6e6, 19e6]
    cases = np.array([(m, 1.0, 1.0, *loss) for m in targets for loss in losses], np.float32)
    ratios = np.asarray(simulation(updates, lr)(*cases.T)[0])
    assert np.all(np.abs(ratios[:, 0] - 1) > 0.1)
    assert np.all(np.abs(ratios[:, -1] - 1) <= 0.05), ratios[:, -1].round(3)
    assert np.abs(ratios[:, -1] - 1).mean() < 0.015


def test_the_unit_of_cost_and_the_scale_of_the_loss_change_nothing():
    units = [(1.0, 1.0), (1e6, 1.0), (1e-6, 1.0), (1.0, 1e3), (1.0, 1e-3)]
    cases = np.array([(13.6e6, *unit, 1.0, 1.0) for unit in units], np.float32)
    ratios, arch = simulation(100, 0.15)(*cases.T)
    assert abs(ratios[0, -1] - ratios[0, 0]) > 0.1
    for other in range(1, len(units)):
        np.testing.assert_allclose(ratios[other], ratios[0], rtol=1e-4)
        for rows in arch.values():
            np.testing.assert_allclose(rows[other], rows[0], atol=1e-3)


# ------------------------------------------------------------------------------------- by name


def test_an_unknown_price_or_an_impossible_reference_is_refused():
    with pytest.raises(ValueError, match="must be 'target', 'mul_log' or 'linear', got 'log'"):
        prices.make('log', reference=1e6)
    with pytest.raises(ValueError, match='reference must be above 0, got 0'):
        prices.make('target', reference=0)
    with pytest.raises(ValueError, match='reference must be above 1, .*, got 0.9'):
        prices.make('mul_log', reference=0.9)
