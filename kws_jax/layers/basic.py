"""Batch norm, pointwise and small convolutions: arithmetic on NHWC images, nothing else."""

import functools

import jax
import jax.numpy as jnp

BN_MOMENTUM = 0.9
BN_EPSILON = 1e-3


def relu6(x: jax.Array) -> jax.Array:
    """`min(max(x, 0), 6)`, any shape.

    >>> print(relu6(jnp.array([-1.0, 2.0, 7.0])))
    [0. 2. 6.]
    """
    return jnp.clip(x, 0.0, 6.0)


def batch_norm(params, state, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict]:
    """Normalizes the last axis of `x` (Ioffe and Szegedy 2015), momentum 0.1, epsilon 1e-3.

    Args:
      params: `{'scale', 'bias'}`, each `[channels]`; `{}` normalizes without learned values.
      state: running `{'mean', 'var'}`, each `[channels]`; the variance is the unbiased one.
      x: `[..., channels]`.
      train: use this batch's statistics and return updated averages, or use the averages; may be
        traced.

    Returns:
      The normalized `x`, and the state to use next (the same object when not training).
    """
    channels = x.shape[-1]
    if train is False:
        statistics = None
    else:
        flat = x.reshape(-1, channels)
        mean = jnp.mean(flat, axis=0)
        var = jnp.maximum(jnp.mean(jnp.square(flat), axis=0) - jnp.square(mean), 0.0)
        statistics = mean, var, flat.shape[0]
    factor, offset, new_state = _normalizer(params, state, statistics, train=train)
    shape = (1,) * (x.ndim - 1) + (channels,)
    return x * factor.reshape(shape) + offset.reshape(shape), new_state


def _normalizer(params, state, statistics, *, train):
    """Factor and offset of a batch norm, and its new state, from (mean, var, count) of a batch."""
    if train is False:
        mean, var, new_state = state['mean'], state['var'], state
    else:
        mean, var, count = statistics
        unbiased = var * (count / max(count - 1, 1))
        moved = jax.lax.stop_gradient({'mean': mean, 'var': unbiased})
        rate = (1 - BN_MOMENTUM) * jnp.float32(train)
        new_state = jax.tree.map(lambda old, new: old + rate * (new - old), state, moved)
        if train is not True:
            mean, var = (
                jnp.where(train, batch, state[name])
                for name, batch in (('mean', mean), ('var', var))
            )
    factor = jax.lax.rsqrt(var + BN_EPSILON)
    if params:
        factor = factor * params['scale']
        return factor, params['bias'] - mean * factor, new_state
    return factor, -mean * factor, new_state


def fold_batch_norm(
    params, state, x: jax.Array, w: jax.Array, *, train: bool
) -> tuple[jax.Array, jax.Array, dict]:
    """What `batch_norm(params, state, pointwise_conv(x, w))` is as another `w` and an offset.

    Mean and variance of `x w` follow from the mean m and covariance C of `x`, as `m w` and `w' C w`
    per column, so that neither the forward nor the backward pass reads the output for statistics.

    Args:
      params, state, train: as `batch_norm`, of the output's channels.
      x: `[batch, h, w, in]`.
      w: `[in, out]`.

    Returns:
      The folded `w`, the offset `[out]`, and the state to use next: the norm of the convolution is
      `pointwise_conv(x, folded) + offset`.
    """
    statistics = None
    if train is not False:
        flat = x.reshape(-1, x.shape[-1])
        mean = jnp.mean(flat, axis=0)
        centred = flat - mean[None, :]
        covariance = jax.lax.dot_general(centred, centred, (((0,), (0,)), ((), ())))
        var = jnp.maximum(jnp.sum(w * (covariance / flat.shape[0] @ w), axis=0), 0.0)
        statistics = mean @ w, var, flat.shape[0]
    factor, offset, new_state = _normalizer(params, state, statistics, train=train)
    return w * factor[None, :], offset, new_state


def pointwise_batch_norm(
    params, state, x: jax.Array, w: jax.Array, *, train: bool
) -> tuple[jax.Array, dict]:
    """`batch_norm(params, state, pointwise_conv(x, w))`, folded where that saves work.

    Arguments as `fold_batch_norm`. Where `w` narrows, statistics of the output are cheaper.

    Returns:
      `[batch, h, w, out]`, and the state to use next.
    """
    if train is not False and w.shape[0] > w.shape[1]:
        return batch_norm(params, state, pointwise_conv(x, w), train=train)
    folded, offset, new_state = fold_batch_norm(params, state, x, w, train=train)
    return pointwise_conv(x, folded) + offset[None, None, None, :], new_state


def batch_norm_init(channels: int, *, learned: bool = True) -> tuple[dict, dict]:
    """Parameters and running averages of `batch_norm`, each value `[channels]`.

    Args:
      channels: extent of the last axis.
      learned: whether there are a scale (ones) and a bias (zeros).

    Returns:
      `params` (`{}` if not learned), and `state` with mean zero and variance one.
    """
    params = {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)} if learned else {}
    return params, {'mean': jnp.zeros(channels), 'var': jnp.ones(channels)}


@jax.custom_vjp
def pointwise_conv(x: jax.Array, w: jax.Array) -> jax.Array:
    """1x1 convolution: `[batch, h, w, in]` times `[in, out]` is `[batch, h, w, out]`."""
    return jax.lax.dot_general(x, w, (((3,), (0,)), ((), ())))


def _pointwise_forward(x, w):
    return pointwise_conv(x, w), (x, w)


def _pointwise_backward(saved, g):
    # As two plain matrix products; what autodiff makes of it has XLA:CPU transpose whole images.
    x, w = saved
    flat_x, flat_g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    to_w = jax.lax.dot_general(flat_x, flat_g, (((0,), (0,)), ((), ())))
    to_x = jax.lax.dot_general(flat_g, w, (((1,), (1,)), ((), ())))
    return to_x.reshape(x.shape), to_w


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


def small_conv(
    x: jax.Array, w: jax.Array, *, stride: tuple[int, int], causal: bool = False
) -> jax.Array:
    """2-D convolution of an image with few channels, padded by half a kernel.

    Args:
      x: `[batch, h, w, in]`.
      w: `[kh, kw, in, out]`, odd kernel.
      stride: along h and w.
      causal: pad rows above alone, so that row t of the output sees none behind `t * stride`.

    Returns:
      `[batch, ceil(h / stride), ceil(w / stride), out]`.

    >>> x = jnp.arange(1.0, 6.0).reshape(1, 1, 5, 1)
    >>> w = jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    >>> print(small_conv(x, w, stride=(1, 2)).ravel())
    [210. 432.  54.]
    """
    return _small_conv(x, w, stride, w.shape[0] - 1 if causal else w.shape[0] // 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _small_conv(x, w, stride, above):
    if x.shape[-1] > 1:
        return _product_of_patches(x, w, stride, above)
    # one fused loop on the CPU, six times as fast forwards as a product of patches
    taps = w.reshape(-1, 1, 1, 1, w.shape[-1])
    return sum(patch * tap for patch, tap in zip(_patches(x, w, stride, above), taps, strict=True))


def _patches(x, w, stride, above):
    """What lies under each tap, `[batch, h', w', in]` each."""
    kh, kw = w.shape[:2]
    h, width = (-(-x.shape[i + 1] // stride[i]) for i in range(2))
    padded = jnp.pad(x, ((0, 0), (above, kh - 1 - above), (kw // 2, kw // 2), (0, 0)))
    return [
        padded[
            :,
            i : i + (h - 1) * stride[0] + 1 : stride[0],
            j : j + (width - 1) * stride[1] + 1 : stride[1],
        ]
        for i in range(kh)
        for j in range(kw)
    ]


def _product_of_patches(x, w, stride, above):
    patches = jnp.concatenate(_patches(x, w, stride, above), axis=-1)
    return pointwise_conv(patches, w.reshape(-1, w.shape[-1]))


def _small_conv_forward(x, w, stride, above):
    return _small_conv(x, w, stride, above), (x, w)


def _small_conv_backward(stride, above, saved, g):
    return jax.vjp(lambda x, w: _product_of_patches(x, w, stride, above), *saved)[1](g)


_small_conv.defvjp(_small_conv_forward, _small_conv_backward)


def he_normal(key: jax.Array, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """Normal values of variance `2 / fan_out` (He et al. 2015).

    `fan_out` is how many outputs one input reaches: kernel area times output channels (of its
    group).
    """
    return jax.random.normal(key, shape) * jnp.sqrt(2.0 / fan_out)
