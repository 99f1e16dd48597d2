"""Rounding with straight-through gradients: the arithmetic that every quantizer here is made of."""

import functools
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.layers import ffi_build

_SOURCE = pathlib.Path(__file__).with_name('quantize.cc')
_log = logging.getLogger(__name__)


@jax.custom_vjp
def round_through(x: jax.Array) -> jax.Array:
    """Rounds to the nearest integer (ties to even); the gradient passes as if it did not.

    >>> round_through(jnp.array([0.4, 1.6]))
    Array([0., 2.], dtype=float32)
    """
    return jnp.round(x)


round_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantize(x: jax.Array, step: jax.Array, levels: jax.Array, signed: bool) -> jax.Array:
    """Rounds `x` to multiples of `step` after clipping to `levels` steps; learns both.

    `step * round(clip(x / step, -levels if signed else 0, levels))`. With `levels` an integer this
    is LSQ (Esser et al. 2020, eq. 3); with `levels = range / step` it is the step-and-range form of
    Uhlich et al. 2020 (eq. 5); with `step = range / levels(bits)` the form of Peter et al. 2021.

    Args:
      x: any shape, float32.
      step: scalar > 0, in the unit of `x`.
      levels: scalar > 0, largest code; need not be an integer.
      signed: codes run from -levels, or from 0.

    Gradient, with the rounding residue `r = round(v) - v` of the clipped `v` held constant: to `x`
    1 inside the range and 0 outside; to `step` r inside and the rounded bound outside; to `levels`
    0 inside and ±step outside (0 below an unsigned range).

    >>> quantize(jnp.array([0.26, -2.0]), jnp.array(0.5), jnp.array(3.0), True)
    Array([ 0.5, -1.5], dtype=float32)
    """
    low = -levels if signed else jnp.zeros_like(levels)
    return step * jnp.round(jnp.clip(x / step, low, levels))


def _quantize_forward(x, step, levels, signed):
    return quantize(x, step, levels, signed), (x, step, levels)


def _quantize_backward(signed, saved, g):
    x, step, levels = saved
    to_x, to_step, side = jax.lax.platform_dependent(
        x,
        g,
        step,
        levels,
        cpu=functools.partial(_gradient_on_cpu, signed=signed),
        default=functools.partial(_gradient, signed=signed),
    )
    return to_x, to_step, side * step


def _gradient(x, g, step, levels, *, signed):
    v = x / step
    low = -levels if signed else jnp.zeros_like(levels)
    inside = (v >= low) & (v <= levels)
    code = jnp.round(jnp.clip(v, low, levels))
    side = (v > levels).astype(g.dtype) - ((v < low) & signed).astype(g.dtype)
    to_step = jnp.sum(g * jnp.where(inside, code - v, code))
    return jnp.where(inside, g, 0.0), to_step, jnp.sum(g * side)


def _gradient_on_cpu(x, g, step, levels, *, signed):
    """One sweep over `x` in a kernel of our own, where it can be built."""
    operands = x, g, step, levels
    plain = any(value.dtype != jnp.float32 for value in operands)
    if plain or jax.default_backend() != 'cpu' or ffi_problem():
        return _gradient(*operands, signed=signed)
    results = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((2,), x.dtype)
    call = jax.ffi.ffi_call('KwsQuantizeGradient', results, vmap_method='sequential')
    to_x, sums = call(*operands, is_signed=np.int64(signed))
    return to_x, sums[0], sums[1]


@functools.cache
def ffi_problem() -> str:
    """Why the CPU kernel can't be used, or '' once it is built, loaded and known to XLA."""
    try:
        ffi_build.register(_SOURCE, ('KwsQuantizeGradient',))
    except ffi_build.BuildError as error:
        _log.warning(
            'The fast CPU kernel for gradients of rounding is not available, a slower form in JAX '
            'takes over: %s',
            error,
        )
        return str(error)
    return ''


quantize.defvjp(_quantize_forward, _quantize_backward)


@jax.custom_vjp
def binarize(x: jax.Array, step: jax.Array) -> jax.Array:
    """`step * sign(x)` with sign(0) = 1: one signed bit; learns `step`.

    Args:
      x: any shape, float32.
      step: scalar > 0, in the unit of `x`.

    Gradient: to `x` 1 where |x| <= 2 step and 0 elsewhere (Hubara et al. 2016, with a clip in
    units of the step); to `step` the sign.

    >>> binarize(jnp.array([0.1, -3.0, 0.0]), jnp.array(0.5))
    Array([ 0.5, -0.5,  0.5], dtype=float32)
    """
    return jnp.where(x >= 0, step, -step).astype(x.dtype)


def _binarize_forward(x, step):
    return binarize(x, step), (x, step)


def _binarize_backward(saved, g):
    x, step = saved
    to_x = jnp.where(jnp.abs(x) <= 2 * step, g, 0.0)
    return to_x, jnp.sum(jnp.where(x >= 0, g, -g))


binarize.defvjp(_binarize_forward, _binarize_backward)


@jax.custom_vjp
def quantize_odd(x: jax.Array, step: jax.Array) -> jax.Array:
    """The nearest of `step * (-3, -1, 1, 3)`: two signed bits without a zero; learns `step`.

    Args:
      x: any shape, float32; zero becomes `step`.
      step: scalar > 0, in the unit of `x`.

    Gradient, as of `quantize`: to `x` 1 where |x| <= 4 step and 0 elsewhere; to `step` the code
    less `x / step` there, and the code elsewhere.

    >>> quantize_odd(jnp.array([0.1, -0.9, -1.1, 9.0]), jnp.array(0.5))
    Array([ 0.5, -0.5, -1.5,  1.5], dtype=float32)
    """
    return step * _odd_code(x / step)


def _odd_code(v):
    return 2 * jnp.clip(jnp.floor(v / 2), -2, 1) + 1


def _quantize_odd_backward(saved, g):
    x, step = saved
    v = x / step
    inside, code = jnp.abs(v) <= 4, _odd_code(v)
    return jnp.where(inside, g, 0.0), jnp.sum(g * jnp.where(inside, code - v, code))


quantize_odd.defvjp(lambda x, step: (quantize_odd(x, step), (x, step)), _quantize_odd_backward)


def largest_code(bits: jax.Array | int, signed: bool) -> jax.Array | int:
    """The largest code of a `bits`-wide grid: `2^(bits-1) - 1` signed (narrow), `2^bits - 1` not.

    >>> largest_code(8, True), largest_code(2, False)
    (127, 3)
    """
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1
