"""Rounding: values worked by hand, and gradients that are those of an ordinary function."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.quantizers import rounding
from kws_jax.quantizers.rounding import (
    binarize,
    largest_code,
    quantize,
    quantize_odd,
    round_through,
)

POINTS = {  # as many in each, so that they share compiled code
    'inside': [0.1, 0.26, 0.74, 1.2, -0.1, -0.26, -0.74, -1.2],
    'outside': [3.7, 50.0, -3.9, -50.0, 4.1, 1e6, -4.2, -1e6],
    'both': [-9.0, -1.1, -0.2, 0.05, 0.9, 9.0, 1.45, -1.55],
    'random': np.random.default_rng(0).normal(size=8) * 2,
    'many': np.random.default_rng(0).normal(size=50_001) * 2,
}


def held(x):
    """What of rounding `x` is held constant."""
    return jax.lax.stop_gradient(jnp.round(x) - x)


def ordinary_quantize(x, step, levels, signed):
    """`quantize` as ordinary autodiff sees it once the rounding residue is a constant."""
    v = jnp.clip(x / step, -levels if signed else 0.0, levels)
    return step * (v + held(v))


def ordinary_binarize(x, step):
    """`binarize`: the step times a constant sign, and `x` clipped less what it is now."""
    limit = 2 * jax.lax.stop_gradient(step)
    clipped = jnp.clip(x, -limit, limit)
    sign = jax.lax.stop_gradient(jnp.where(x >= 0, 1.0, -1.0))
    return step * sign + clipped - jax.lax.stop_gradient(clipped)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, cotangent, *arguments):
    values, pull = jax.vjp(function, *arguments)
    return values, pull(cotangent)


def squared(x):
    return 2.0 * round_through(3.0 * x) ** 2


def ordinary_squared(x):
    return 2.0 * (3.0 * x + held(3.0 * x)) ** 2


def same_function(ours, ordinary, *arguments):
    """Asserts equal values, and equal gradients to every argument for a random cotangent."""
    shape = arguments[0].shape
    cotangent = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    values, gradients = value_and_gradients(ours, cotangent, *arguments)
    expected, expected_gradients = value_and_gradients(ordinary, cotangent, *arguments)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(len(cotangent) / 100, 1))


QUANTIZE = {s: functools.partial(quantize, signed=s) for s in (True, False)}
ORDINARY = {s: functools.partial(ordinary_quantize, signed=s) for s in (True, False)}


@pytest.mark.parametrize('points', POINTS)
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('step, levels', [(0.5, 3.0), (0.3, 1.0), (0.25, 7.4), (0.013, 127.0)])
def test_quantize_has_the_gradients_of_autodiff_with_the_residue_held(points, signed, step, levels):
    same_function(
        QUANTIZE[signed],
        ORDINARY[signed],
        jnp.asarray(POINTS[points], jnp.float32),
        jnp.float32(step),
        jnp.float32(levels),
    )


@pytest.mark.parametrize('points', POINTS)
@pytest.mark.parametrize('step', [0.4, 1.3])
def test_binarize_has_the_gradients_of_autodiff_with_the_sign_held(points, step):
    same_function(
        binarize, ordinary_binarize, jnp.asarray(POINTS[points], jnp.float32), jnp.float32(step)
    )


@pytest.mark.parametrize('points', POINTS)
def test_round_through_has_the_gradients_of_autodiff_with_the_residue_held(points):
    same_function(squared, ordinary_squared, jnp.asarray(POINTS[points], jnp.float32))


@pytest.mark.parametrize(
    'signed, expected', [(True, [-1.5, -1.0, 0.0, 0.5, 1.5]), (False, [0.0, 0.0, 0.0, 0.5, 1.5])]
)
def test_quantize_gives_values_worked_by_hand(signed, expected):
    x = jnp.array([-7.0, -0.8, 0.2, 0.3, 1.9])
    np.testing.assert_array_equal(quantize(x, jnp.array(0.5), jnp.array(3.0), signed), expected)


def test_step_and_range_get_the_gradients_of_uhlich_et_al():
    # range 1.6 in steps of 0.5 is 3.2 levels, rounded to 3; to the range 1 outside, else 0; to the
    # step the rounding residue everywhere: 3 - 3.2 outside, 1 - 0.6 / 0.5 inside
    def at(x, step, limit):
        return quantize(jnp.array([x]), step, limit / step, True).sum()

    gradient = jax.jit(jax.grad(at, (0, 1, 2)))
    step, limit = jnp.array(0.5), jnp.array(1.6)
    np.testing.assert_allclose(gradient(5.0, step, limit), (0.0, -0.2, 1.0), atol=1e-6)
    np.testing.assert_allclose(gradient(-5.0, step, limit), (0.0, 0.2, -1.0), atol=1e-6)
    np.testing.assert_allclose(gradient(0.6, step, limit), (1.0, -0.2, 0.0), atol=1e-6)


def test_the_bounds_themselves_count_as_inside():
    x = jnp.array([-1.5, 0.0, 1.5])
    for signed, expected in ((True, [1, 1, 1]), (False, [0, 1, 1])):
        through = jax.jit(jax.grad(lambda x, s=signed: quantize(x, 0.5, 3.0, s).sum()))
        np.testing.assert_array_equal(through(x), expected)


def test_what_an_unsigned_range_cuts_off_below_zero_moves_nothing():
    gradients = jax.jit(jax.grad(lambda *a: quantize(*a, False).sum(), (0, 1, 2)))
    got = gradients(jnp.array([-0.1, -9.0]), jnp.array(0.5), jnp.array(3.0))
    assert all(float(jnp.abs(g).sum()) == 0 for g in got)


def test_binarize_lets_gradients_through_up_to_two_steps():
    x = jnp.array([-1.01, -1.0, 0.0, 1.0, 1.01])
    gradients = jax.jit(jax.grad(lambda x, s: binarize(x, s).sum(), (0, 1)))
    to_x, to_step = gradients(x, jnp.array(0.5))
    np.testing.assert_array_equal(to_x, [0, 1, 1, 1, 0])
    assert float(to_step) == 1.0  # two minus, three plus: zero is positive


def test_straight_through_functions_work_under_jit_and_vmap():
    x = jnp.asarray(POINTS['random'], jnp.float32).reshape(4, 2)
    steps = jnp.array([0.1, 0.2, 0.3, 0.4])

    def total(x, step):
        return quantize(x, step, 7.0, True).sum() + binarize(x, step).sum()

    rows = jax.jit(jax.vmap(jax.grad(total, 1)))(x, steps)
    alone = jax.jit(jax.grad(total, 1))
    single = [alone(x[i], steps[i]) for i in range(4)]
    np.testing.assert_allclose(rows, jnp.stack(single), rtol=1e-5, atol=1e-5)


def test_odd_codes_are_the_nearest_of_four_and_learn_as_the_others_do():
    # v = x / 0.5: inside (|v| <= 4) the gradient to the step is code - v, outside the code
    x = jnp.array([0.0, 0.4, -0.4, 0.9, 1.1, -1.9, 2.1, -7.0])
    codes = np.array([1, 1, -1, 1, 3, -3, 3, -3])
    v = np.asarray(x) / 0.5
    inside = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(quantize_odd(x, jnp.float32(0.5)), codes * 0.5)
    grids = 0.5 * np.array([-3.0, -1.0, 1.0, 3.0])
    best = np.abs(np.asarray(x)[1:, None] - grids).argmin(axis=1)  # 0 lies between two
    np.testing.assert_allclose(quantize_odd(x[1:], jnp.float32(0.5)), grids[best])
    g = jnp.arange(1.0, 9.0)
    _, pull = jax.vjp(quantize_odd, x, jnp.float32(0.5))
    to_x, to_step = pull(g)
    np.testing.assert_allclose(to_x, g * inside)
    np.testing.assert_allclose(to_step, (g * np.where(inside, codes - v, codes)).sum(), rtol=1e-6)


def test_largest_codes():
    assert [largest_code(b, True) for b in range(1, 9)] == [0, 1, 3, 7, 15, 31, 63, 127]
    assert [largest_code(b, False) for b in range(1, 9)] == [1, 3, 7, 15, 31, 63, 127, 255]


@pytest.mark.skipif(bool(rounding.ffi_problem()), reason='no C++ compiler')
@pytest.mark.parametrize('size', [1, 15, 16, 1000, 32768, 100_003])
@pytest.mark.parametrize(('signed', 'levels'), [(True, 7.0), (False, 3.6), (False, 65535.0)])
def test_the_cpu_kernel_gives_the_gradients_of_the_jax_form(size, signed, levels):
    rng = np.random.default_rng(size)
    x, g = rng.normal(size=(2, size)).astype(np.float32)
    x[::7] = np.float32(0.25) * rng.integers(-9, 9, len(x[::7]))  # ties, bounds
    operands = x, g, np.float32(0.25 if levels < 100 else 1e-4), np.float32(levels)
    with_kernel = jax.jit(functools.partial(rounding._gradient_on_cpu, signed=signed))
    assert 'KwsQuantizeGradient' in with_kernel.lower(*operands).as_text()
    got = with_kernel(*operands)
    wanted = rounding._gradient(*operands, signed=signed)
    np.testing.assert_array_equal(got[0], wanted[0])
    for a, b in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.sqrt(size))
    for a, b in zip(got, with_kernel(*operands), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_compiler_the_jax_form_takes_over_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    rounding.ffi_problem.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger=rounding.__name__):
            texts = [
                jax.jit(jax.grad(lambda x, s=signed: quantize(x, 0.5, 3.0, s).sum()))
                .lower(jnp.ones(3))
                .as_text()
                for signed in (True, False)
            ]
        assert not any('KwsQuantize' in text for text in texts)
        assert ['no-such-compiler' in r.getMessage() for r in caplog.records] == [True]
    finally:
        monkeypatch.undo()
        rounding.ffi_problem.cache_clear()
