"""Batch norm and small convolutions, against NumPy and XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kws_jax.layers.basic import (
    batch_norm,
    batch_norm_init,
    he_normal,
    pointwise_batch_norm,
    pointwise_conv,
    relu6,
    small_conv,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def layer():
    """Parameters and averages that are not those of the start."""
    params = {'scale': normal(1, 5), 'bias': normal(2, 5)}
    state = {'mean': normal(3, 5), 'var': jnp.square(normal(4, 5)) + 0.5}
    return params, state


def by_numpy(x, mean, var, params):
    params = jax.tree.map(np.asarray, params)
    y = (np.asarray(x) - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-3)
    return y * params['scale'] + params['bias'] if params else y


# ------------------------------------------------------------------------------------ batch norm


@pytest.mark.parametrize('learned', [True, False])
def test_training_normalizes_by_the_batch_and_moves_the_averages_a_tenth(layer, learned):
    params, state = layer
    params = params if learned else {}
    x = 3.0 + 2.0 * normal(0, 4, 3, 2, 5)
    y, new = batch_norm(params, state, x, train=True)
    flat = np.asarray(x).reshape(-1, 5)
    np.testing.assert_allclose(y, by_numpy(x, flat.mean(0), flat.var(0), params), atol=1e-5)
    np.testing.assert_allclose(new['mean'], 0.9 * state['mean'] + 0.1 * flat.mean(0), rtol=1e-5)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(new['var'], 0.9 * state['var'] + 0.1 * unbiased, rtol=1e-5)


@pytest.mark.parametrize('learned', [True, False])
def test_evaluation_normalizes_by_the_averages_and_keeps_them(layer, learned):
    params, state = layer
    params = params if learned else {}
    x = normal(0, 4, 3, 5)
    y, new = batch_norm(params, state, x, train=False)
    np.testing.assert_allclose(y, by_numpy(x, state['mean'], state['var'], params), atol=1e-5)
    assert new is state


def test_train_may_be_traced(layer):
    params, state = layer
    x = normal(0, 6, 5)
    traces = []

    @jax.jit
    def traced(train):
        traces.append(train)
        return batch_norm(params, state, x, train=train)

    for train in (True, False):
        y, new = batch_norm(params, state, x, train=train)
        got, got_new = traced(train)
        np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got_new, new)
    assert len(traces) == 1


def test_batch_norm_gradient_is_the_numerical_one_and_none_reaches_the_averages(layer):
    params, state = layer
    x = normal(0, 4, 5)
    check_grads(
        lambda p, x: batch_norm(p, state, x, train=True)[0], (params, x), 1, ['rev'], rtol=2e-2
    )
    moved = jax.grad(
        lambda x: sum(v.sum() for v in batch_norm({}, state, x, train=True)[1].values())
    )
    assert not jnp.any(moved(x))


def test_a_constant_channel_stays_finite():
    params, state = batch_norm_init(2)
    x = jnp.full((3, 2), 1000.0)

    def total(x):
        y, new = batch_norm(params, state, x, train=True)
        return y.sum(), (y, new)

    grad, (y, new) = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_allclose(y, 0.0, atol=1e-3)
    assert jnp.isfinite(grad).all() and (new['var'] >= 0).all()


def test_batch_norm_starts_as_the_identity():
    params, state = batch_norm_init(3)
    x = normal(0, 2, 3)
    np.testing.assert_allclose(
        batch_norm(params, state, x, train=False)[0], x / np.sqrt(1.001), rtol=1e-6
    )
    assert batch_norm_init(3, learned=False)[0] == {}


# ---------------------------------------------------------------------------------- convolutions


def test_relu6_clips_at_zero_and_six():
    assert relu6(jnp.array([-0.5, 0.0, 3.0, 6.0, 6.5])).tolist() == [0, 0, 3, 6, 6]


def test_pointwise_conv_and_its_gradients_are_those_of_einsum():
    x, w, g = normal(0, 2, 3, 4, 5), normal(1, 5, 6), normal(2, 2, 3, 4, 6)

    def plain(x, w):
        return jnp.einsum('nhwi,io->nhwo', x, w)

    got, back = jax.vjp(pointwise_conv, x, w)
    wanted, plain_back = jax.vjp(plain, x, w)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(back(g), plain_back(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('train', [True, False, 'traced'])
@pytest.mark.parametrize('channels', [5, 9], ids=['widens', 'narrows'])
def test_pointwise_batch_norm_is_the_norm_of_the_convolution(layer, channels, train):
    params, state = layer
    x, w = 1.5 + normal(0, 4, 3, 2, channels), normal(1, channels, 5)
    if channels == 5:
        params = {name: jnp.tile(v, 2) for name, v in params.items()}
        state = {name: jnp.tile(v, 2) for name, v in state.items()}
        w = normal(1, channels, 10)
    g = normal(5, 4, 3, 2, w.shape[1])

    def plain(params, x, w, train):
        return batch_norm(params, state, pointwise_conv(x, w), train=train)

    def joined(params, x, w, train):
        return pointwise_batch_norm(params, state, x, w, train=train)

    results = []
    for form in (plain, joined):
        if train == 'traced':
            call = lambda *inputs, form=form: jax.jit(form)(*inputs, True)  # noqa: E731
        else:
            call = lambda *inputs, form=form: form(*inputs, train)  # noqa: E731
        y, pull, new = jax.vjp(call, params, x, w, has_aux=True)
        results.append((y, new, pull(g)))
    for got, wanted in zip(*map(jax.tree.leaves, results[::-1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize(
    ('kernel', 'stride', 'extent'),
    [
        ((3, 3), (2, 2), (8, 7)),
        ((3, 3), (2, 2), (5, 4)),
        ((11, 5), (2, 1), (9, 4)),
        ((1, 3), (1, 1), (2, 5)),
    ],
)
def test_small_conv_is_the_convolution_padded_by_half_a_kernel_or_above(
    kernel, stride, extent, channels, causal
):
    x, w = normal(0, 2, *extent, channels), normal(1, *kernel, channels, 3)

    def wanted(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            stride,
            [(kernel[0] - 1, 0) if causal else (kernel[0] // 2,) * 2, (kernel[1] // 2,) * 2],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    ours = jax.jit(lambda x, w: small_conv(x, w, stride=stride, causal=causal))
    y, pull = jax.vjp(ours, x, w)
    assert y.shape == (2, -(-extent[0] // stride[0]), -(-extent[1] // stride[1]), 3)
    plain, plain_pull = jax.vjp(wanted, x, w)
    g = normal(2, *y.shape)
    for a, b in zip((y, *pull(g)), (plain, *plain_pull(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_he_normal_has_variance_two_over_fan_out():
    w = he_normal(jax.random.key(0), (100, 100), 8)
    # the standard error of the variance is 0.25 * sqrt(2 / 10000)
    assert jnp.var(w) == pytest.approx(0.25, abs=5 * 0.25 * np.sqrt(2 / 10000))
    assert abs(jnp.mean(w)) < 5 * 0.5 / 100
