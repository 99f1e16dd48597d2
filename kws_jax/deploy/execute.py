"""Runs integer networks: the reference in NumPy, and the same arithmetic jitted by JAX.

The reference is written as plainly as it can be. Every runtime gives these numbers, bit for bit.
What the two forms share takes `xp`, the module of its arrays.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.deploy.network import (
    LOG_FRACTION,
    LOG_TABLE_BITS,
    FrontEnd,
    Layer,
    Network,
    log_table,
)
from kws_jax.frontends.base import frame_product
from kws_jax.layers.basic import small_conv
from kws_jax.layers.depthwise import depthwise_conv


def rounded_shift(value, shift):
    """`floor(value / 2^shift + 1/2)` of int64 values; shifts of 0 change nothing."""
    shift = np.asarray(shift, np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (value + half) >> shift


def shifted(value, shift: np.ndarray, xp=np):
    """`value / 2^shift` rounded down; a negative shift multiplies."""
    return xp.where(shift >= 0, value >> np.maximum(shift, 0), value << np.maximum(-shift, 0))


def _across(values: np.ndarray, like) -> np.ndarray:
    """One value a channel, in as many dimensions as `like`."""
    return np.asarray(values, np.int64).reshape((1,) * (like.ndim - 1) + (-1,))


def rescale(layer: Layer, total, block_input=None, xp=np):
    """Sums `[..., out]` to output codes."""
    shift = _across(layer.rescale.shift, total)
    value = total.astype(np.int64) * _across(layer.rescale.mantissa, total)
    value = value + (_across(layer.offset, total) << (shift - layer.fraction))
    if layer.residual is not None:
        more = block_input.astype(np.int64) * int(layer.residual.mantissa[0])
        value = value + shifted(more, int(layer.residual.shift[0]) - shift, xp)
    return xp.clip(rounded_shift(value, shift), layer.low, layer.high)


def integer_sqrt(value, xp=np):
    """`floor(sqrt(value))` of int64 values from 0 on, exactly."""
    root = xp.sqrt(value.astype(np.float64)).astype(np.int64)
    root = xp.where(root * root > value, root - 1, root)
    return xp.where((root + 1) * (root + 1) <= value, root + 1, root)


def log2(value, fraction: int, xp=np):
    """`2^16 log2(value / 2^fraction)` of int64 values from 1 on, by a table of 257 entries."""
    high = xp.frexp(value.astype(np.float64))[1].astype(np.int64) - 1  # of the leading one
    # the 24 bits behind the leading one
    below = xp.maximum(24 - high, 0)
    behind = xp.where(high >= 24, value >> xp.maximum(high - 24, 0), value << below) & 0xFFFFFF
    at, rest = behind >> (24 - LOG_TABLE_BITS), behind & ((1 << (24 - LOG_TABLE_BITS)) - 1)
    table = xp.asarray(log_table().astype(np.int64))
    between = rounded_shift((table[at + 1] - table[at]) * rest, 24 - LOG_TABLE_BITS)
    return ((high - fraction) << LOG_FRACTION) + table[at] + between


def quantize_samples(front_end: FrontEnd, samples, xp=np):
    """int16 samples to codes."""
    multiplier = front_end.input
    value = samples.astype(np.int64) * int(multiplier.mantissa[0])
    return xp.clip(rounded_shift(value, int(multiplier.shift[0])), -front_end.top, front_end.top)


def image_row(front_end: FrontEnd, sums, xp=np):
    """Sums of the filters `[..., columns]` to image codes `[..., filters]`."""
    sums = sums.astype(np.int64)
    mantissa, shift = (_across(getattr(front_end.columns, k), sums) for k in ('mantissa', 'shift'))
    scaled = rounded_shift(sums * mantissa, shift)
    if front_end.pairs:
        first, second = xp.split(scaled, 2, axis=-1)
        response = integer_sqrt(first * first + second * second + front_end.floor, xp)
    else:
        size = {'abs': xp.abs, 'relu': lambda v: xp.maximum(v, 0), 'plain': lambda v: v}
        response = size[front_end.magnitude](scaled)
    return image_code(front_end, response, xp)


def image_code(front_end: FrontEnd, response, xp=np):
    """Responses `[..., filters]` to image codes."""
    if front_end.log:
        response = log2(response + (1 << front_end.fraction), front_end.fraction, xp)
    apart = front_end.factor_fraction - front_end.offset_fraction
    offset = _across(front_end.offset, response) << apart
    value = response * _across(front_end.factor, response) + offset
    code = rounded_shift(value, front_end.factor_fraction)
    return xp.clip(code, -front_end.high, front_end.high)


def image(front_end: FrontEnd, samples: np.ndarray) -> np.ndarray:
    """int16 `[batch, samples]` to image codes `[batch, frames, filters]`."""
    codes = quantize_samples(front_end, samples)
    frames = np.lib.stride_tricks.sliding_window_view(codes, front_end.kernel, axis=1)
    return image_of_frames(front_end, frames[:, :: front_end.stride])


def image_of_frames(front_end: FrontEnd, frames: np.ndarray) -> np.ndarray:
    """Sample codes `[..., frames, kernel]` to image codes `[..., frames, filters]`."""
    # whole numbers below 2^53: exact in float64, where NumPy has a fast product
    return image_row(front_end, frames.astype(np.float64) @ front_end.taps.astype(np.float64))


def convolve(layer: Layer, x, rows=(0, 0), xp=np):
    """Sums of a layer `[batch, h', w', out]`; `rows` of zeros are added above and below `x`."""
    if layer.kind == 'pointwise':
        return (x.astype(np.float64) @ layer.weights.astype(np.float64)).astype(np.int64)
    kh, kw, _ = layer.weights.shape
    (sh, sw), width = layer.stride, x.shape[2]
    padded = xp.pad(x, ((0, 0), rows, (kw // 2, kw // 2), (0, 0)))
    out_h, out_w = (padded.shape[1] - kh) // sh + 1, -(-width // sw)
    total = 0
    for i in range(kh):
        for j in range(kw):
            under = padded[:, i : i + (out_h - 1) * sh + 1 : sh, j : j + (out_w - 1) * sw + 1 : sw]
            total = total + under * _across(layer.weights[i, j], under)
    return total


def logits_of_image(network: Network, codes: np.ndarray) -> np.ndarray:
    """Image codes `[batch, frames, filters]` to int32 logits `[batch, classes]`."""
    stem, x = network.stem, codes.astype(np.int64)[..., None]
    x = rescale(stem, convolve(stem, x, network.padding(stem)))
    for block in network.blocks:
        y, deep = x, block.depthwise
        if block.expand is not None:
            y = rescale(block.expand, convolve(block.expand, y))
        y = rescale(deep, convolve(deep, y, network.padding(deep)))
        x = rescale(block.project, convolve(block.project, y), x)
    return classify(network, rescale(network.head, convolve(network.head, x)).sum(axis=(1, 2)))


def classify(network: Network, sums):
    """Sums of the head's codes over the map, int64 `[..., channels]`, to int32 logits."""
    classifier = network.classifier
    logits = sums @ classifier.weights.astype(np.int64)
    return (logits + _across(classifier.offset, logits)).astype(np.int32)


def run(network: Network, samples: np.ndarray, batch: int = 64) -> np.ndarray:
    """Logits of whole windows.

    Args:
      network: what to run.
      samples: int16 `[clips, network.samples]`.
      batch: clips at once, which is a matter of memory alone.

    Returns:
      int32 `[clips, classes]`.

    Raises:
      ValueError: wrong type or shape.
    """
    if samples.dtype != np.int16 or samples.ndim != 2 or samples.shape[1] != network.samples:
        raise ValueError(
            f'samples must be int16 [clips, {network.samples}], got {samples.dtype} {samples.shape}'
        )
    parts = [
        logits_of_image(network, image(network.front_end, samples[i : i + batch]))
        for i in range(0, len(samples), batch)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(network.labels)), np.int32)


def _whole(total):
    return total.astype(jnp.int64)


def _real(codes):
    return codes.astype(jnp.float32)


def _pointwise(layer, x, block_input=None):
    total = jax.lax.dot_general(
        _real(x), layer.weights.astype(np.float32), (((3,), (0,)), ((), ()))
    )
    return rescale(layer, _whole(total), block_input, jnp)


def jax_image(front_end: FrontEnd, codes: jax.Array) -> jax.Array:
    """Sample codes `[batch, samples]` to image codes `[batch, frames, filters]`, in JAX, with
    64-bit types enabled.

    Sums of products are whole numbers below 2^24, which float32 holds exactly, so that the kernels
    of training serve here and in `jax_logits`; all else is int64.
    """
    taps = front_end.taps.astype(np.float32)
    sums = frame_product(_real(codes), taps, stride=front_end.stride)
    return image_row(front_end, _whole(sums), jnp)


def jax_logits(network: Network, image: jax.Array) -> jax.Array:
    """`logits_of_image` in JAX, with 64-bit types enabled."""
    stem = network.stem
    total = small_conv(
        _real(image)[..., None],
        stem.weights.astype(np.float32)[:, :, None],
        stride=stem.stride,
        causal=network.causal,
    )
    x = rescale(stem, _whole(total), xp=jnp)
    for block in network.blocks:
        y = x if block.expand is None else _pointwise(block.expand, x)
        w, (stride, _) = block.depthwise.weights, block.depthwise.stride
        w = jnp.asarray(w, jnp.float32)
        total = depthwise_conv(_real(y), w, stride=stride, causal=network.causal)
        y = rescale(block.depthwise, _whole(total), xp=jnp)
        x = _pointwise(block.project, y, x)
    return classify(network, _pointwise(network.head, x).sum(axis=(1, 2)))


def jitted(network: Network) -> Callable:
    """The same numbers, fast: `run(int16 [clips, samples]) -> int32 logits [clips, classes]`.

    Raises:
      ValueError: a layer's sums may be larger than float32 holds exactly; names it.
    """
    network.check_float32('JAX')

    @jax.jit
    def run(samples):
        codes = quantize_samples(network.front_end, samples, jnp)
        return jax_logits(network, jax_image(network.front_end, codes))

    @functools.wraps(run)
    def with_int64(samples):
        with jax.enable_x64(True):
            return np.asarray(run(samples))

    return with_int64
