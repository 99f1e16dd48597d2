"""Depthwise convolution and its gradients, in the form that is fast on the platform at hand.

TPU and GPU get XLA's grouped convolution. XLA:CPU has no fast one, so CPUs get a kernel of our
own (`depthwise.cc`), compiled at first use; where there is no compiler, a sum of shifted products
in JAX with a hand-written gradient takes over, slower and with a line in the log.

`KWS_JAX_DEPTHWISE` forces a form, as the `backend` argument does: `ffi`, `jax` or `platform`. It is
read when a function is traced. Inside `shard_map`, CPUs need `check_vma=False`; under `jit`, arrays
sharded over several CPU devices are gathered for the kernel.
"""

import functools
import itertools
import logging
import os
import pathlib
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BACKENDS = ('auto', 'ffi', 'jax', 'platform')
FFI_WIDTHS = (1, 3, 5, 7)  # kernel widths that depthwise.cc is compiled for
FFI_STRIDES = (1, 2)

class Clip(NamedTuple):
    """What is done to the input before it is convolved: `clip(x + offset, low, high)`.

    After a batch norm folded into the layer before, with its offset, `low=0` and `high=6` make a
    ReLU6 of it. The CPU kernel clips while it reads, so that no clipped image is ever stored.

    Attributes:
      offset: `[channels]`; it receives a gradient.
      low, high: scalars, may be traced; no gradient goes to them, and none through them to the
        input, nor at the bounds themselves.
    """

    offset: jax.Array
    low: jax.Array | float
    high: jax.Array | float


_SOURCE = pathlib.Path(__file__).with_name('depthwise.cc')
_log = logging.getLogger(__name__)


def depthwise_conv(
    x: jax.Array,
    w: jax.Array,
    *,
    stride: int = 1,
    clip: Clip | None = None,
    causal: bool = False,
    backend: str | None = None,
) -> jax.Array:
    """Correlates each channel of `x` with its own kernel, zero padding of half a kernel around.

    Args:
      x: `[batch, height, width, channels]`; the fast CPU kernel takes float32.
      w: `[kernel height, kernel width, channels]`, both extents odd.
      stride: step of the kernel, in pixels, along height and width.
      clip: what is done to `x` first, see `Clip`; the padding stays zero.
      causal: pad rows above alone, so that row t of the output sees none behind `t * stride`; that
        costs a copy of `x`. Bounds of `clip` must then have zero between them.
      backend: `auto`, `ffi`, `jax` or `platform`; by default `$KWS_JAX_DEPTHWISE`, or else `auto`.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), channels]`.

    Raises:
      ValueError: shapes, stride or backend are not as above, or `ffi` has no such kernel.
      RuntimeError: backend `ffi` was asked for and can't be built.

    >>> x = jnp.arange(1.0, 6.0).reshape(1, 1, 5, 1)
    >>> w = jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1)
    >>> print(depthwise_conv(x, w).ravel())
    [210. 321. 432. 543.  54.]
    >>> print(depthwise_conv(x, w, stride=2).ravel())
    [210. 432.  54.]
    >>> print(depthwise_conv(x.reshape(1, 5, 1, 1), w.reshape(3, 1, 1), causal=True).ravel())
    [100. 210. 321. 432. 543.]
    """
    _check(x, w, stride)
    height, half = -(-x.shape[1] // stride), w.shape[0] // 2
    x = _delayed(x, half, half, clip) if causal else x
    every_tap = np.array([-1, x.shape[-1]], np.int32)
    y = _depthwise(x, w, every_tap, _gate(clip), stride, _choose_backend(backend), False)
    return y[:, :height] if causal else y


def depthwise_conv_dynamic(
    x: jax.Array,
    w: jax.Array,
    active_kernel: jax.Array | int,
    active_channels: jax.Array | int,
    *,
    stride: int = 1,
    clip: Clip | None = None,
    causal: bool = False,
    backend: str | None = None,
) -> jax.Array:
    """`depthwise_conv` with only the centre of the kernel and the first channels; no recompiling.

    Equals `depthwise_conv` with the weights outside of the centred square and those of later
    channels set to zero, gradients included, whatever these weights are. The CPU kernel skips them.

    Args:
      x: `[batch, height, width, channels]`.
      w: `[kernel, kernel, channels]`, kernel odd.
      active_kernel: int32 scalar, odd, at most `kernel`: side of the square of taps in use. If it
        is an array, only the CPU kernel finds out that it is even or too large.
      active_channels: int32 scalar in `0..channels`. May be traced.
      stride: step of the kernel, in pixels.
      clip, causal, backend: as in `depthwise_conv`.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), channels]`, zero in later channels.

    Raises:
      ValueError, RuntimeError: as `depthwise_conv`; `w` is not square.

    >>> x = jnp.ones((1, 1, 3, 2))
    >>> w = jnp.ones((5, 5, 2))
    >>> print(depthwise_conv_dynamic(x, w, 3, 1)[0, 0])
    [[2. 0.]
     [3. 0.]
     [2. 0.]]
    """
    _check(x, w, stride)
    if w.shape[0] != w.shape[1]:
        raise ValueError(f'w must have a square kernel, got shape {w.shape}; pad it with zeros')
    if isinstance(active_kernel, int) and active_kernel not in range(1, w.shape[0] + 1, 2):
        raise ValueError(f'active_kernel must be odd, in 1..{w.shape[0]}, got {active_kernel}')
    if isinstance(active_channels, int) and not 0 <= active_channels <= w.shape[2]:
        raise ValueError(f'active_channels must be in 0..{w.shape[2]}, got {active_channels}')
    height = -(-x.shape[1] // stride)
    x = _delayed(x, active_kernel // 2, w.shape[0] // 2, clip) if causal else x
    active = jnp.stack([jnp.asarray(v, jnp.int32) for v in (active_kernel, active_channels)])
    y = _depthwise(x, w, active, _gate(clip), stride, _choose_backend(backend), True)
    return y[:, :height] if causal else y


def _delayed(x, rows, most, clip):
    """`x` moved down by `rows` (may be traced, at most `most`), `most` rows longer; new rows become
    zero in `clip`, and pass no gradient on."""
    zero = jnp.zeros(x.shape[-1:], x.dtype) if clip is None else -clip.offset
    edge = jnp.broadcast_to(zero, (x.shape[0], most, *x.shape[2:]))
    padded = jnp.concatenate([edge, x, edge], axis=1)
    return jax.lax.dynamic_slice_in_dim(padded, most - rows, x.shape[1] + most, axis=1)


def _gate(clip):
    """`()`, or `(offset, bounds)` with bounds float32 `[2]`."""
    if clip is None:
        return ()
    bounds = jnp.stack([jnp.asarray(v, jnp.float32) for v in (clip.low, clip.high)])
    return clip.offset, jax.lax.stop_gradient(bounds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _depthwise(x, w, active, gate, stride, backend, dynamic):
    run = _run('forward', backend, stride, w.shape, x.shape)
    return run(x, _mask(w, active, dynamic), active, *gate)


def _depthwise_forward(x, w, active, gate, stride, backend, dynamic):
    return _depthwise(x, w, active, gate, stride, backend, dynamic), (x, w, active, gate)


def _depthwise_backward(stride, backend, dynamic, saved, g):
    x, w, active, gate = saved
    run = functools.partial(_run, backend=backend, stride=stride, w_shape=w.shape, x_shape=x.shape)
    passage = (x, *gate) if gate else ()
    dx, d_offset = run('input_gradient')(g, _mask(w, active, dynamic), active, *passage)
    dw = run('weight_gradient')(x, g, active, *gate)
    d_gate = (d_offset, jnp.zeros(2)) if gate else ()
    return dx, _mask(dw, active, dynamic), None, d_gate


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _mask(w, active, dynamic):
    if not dynamic:
        return w
    kernel, _, channels = w.shape
    from_centre = jnp.abs(jnp.arange(kernel) - kernel // 2)
    tap = from_centre <= active[0] // 2
    channel = jnp.arange(channels) < active[1]
    keep = tap[:, None, None] & tap[None, :, None] & channel[None, None, :]
    return jnp.where(keep, w, 0)


def _check(x, w, stride):
    if x.ndim != 4 or w.ndim != 3 or x.shape[-1] != w.shape[-1]:
        raise ValueError(
            'x must be [batch, height, width, channels] and w [kernel height, kernel width, '
            f'channels] with the same channels, got x {x.shape} and w {w.shape}'
        )
    if w.shape[0] % 2 == 0 or w.shape[1] % 2 == 0:
        raise ValueError(f'w must have odd kernel extents, got shape {w.shape}; pad it with zeros')
    if x.dtype != w.dtype:
        raise ValueError(f'x and w must have one dtype, got {x.dtype} and {w.dtype}')
    if stride < 1:
        raise ValueError(f'stride must be at least 1, got {stride}')


def _choose_backend(backend):
    backend = backend or os.environ.get('KWS_JAX_DEPTHWISE') or 'auto'
    if backend not in BACKENDS:
        raise ValueError(
            f'backend (or KWS_JAX_DEPTHWISE) must be one of {", ".join(BACKENDS)}, got {backend!r}'
        )
    return backend


def _run(operation, backend, stride, w_shape, x_shape) -> Callable:
    """The function of one of the three operations, of two arrays and the extents in use."""

    def of(form):
        return functools.partial(
            getattr(form, operation), stride=stride, w_shape=w_shape, x_shape=x_shape
        )

    if backend != 'auto':
        return of({'ffi': ffi_form, 'jax': jax_form, 'platform': platform_form}[backend])

    def on_cpu(a, b, active, *gate):
        known = w_shape[1] in FFI_WIDTHS and stride in FFI_STRIDES and a.dtype == jnp.float32
        # A process with an accelerator lowers this branch too, but hardly ever runs it.
        fast = known and jax.default_backend() == 'cpu' and not ffi_problem()
        return of(ffi_form if fast else jax_form)(a, b, active, *gate)

    return functools.partial(jax.lax.platform_dependent, cpu=on_cpu, default=of(platform_form))


class Form(NamedTuple):
    """One way to compute a depthwise convolution, as three pure functions.

    `forward(x, w, active, *gate)`, `input_gradient(g, w, active, *passage) -> (dx, d_offset)` and
    `weight_gradient(x, g, active, *gate)`, each with keywords `stride`, `w_shape`, `x_shape`; `g`
    is the gradient of the output. `active`, int32 `[2]`, is (side of the centred square of taps in
    use, -1 for all; channels in use): `w` is zero elsewhere already, and what the gradient of the
    weight is there doesn't matter. `gate` is nothing, or `offset, bounds` of a `Clip`, `passage`
    nothing or `x, offset, bounds`.
    """

    forward: Callable
    input_gradient: Callable
    weight_gradient: Callable


def _clipping(forward, input_gradient, weight_gradient) -> Form:
    """The form of three functions that know nothing of clips."""

    def clipped(x, *gate):
        if not gate:
            return x
        offset, bounds = gate
        return jnp.clip(x + offset.reshape(1, 1, 1, -1), bounds[0], bounds[1])

    def clipped_forward(x, w, active, *gate, **shapes):
        return forward(clipped(x, *gate), w, active, **shapes)

    def gated_input_gradient(g, w, active, *passage, **shapes):
        dx = input_gradient(g, w, active, **shapes)
        if passage:
            x, offset, bounds = passage
            shifted = x + offset.reshape(1, 1, 1, -1)
            dx = jnp.where((shifted > bounds[0]) & (shifted < bounds[1]), dx, 0)
        return dx, jnp.sum(dx, axis=(0, 1, 2))

    def clipped_weight_gradient(x, g, active, *gate, **shapes):
        return weight_gradient(clipped(x, *gate), g, active, **shapes)

    return Form(clipped_forward, gated_input_gradient, clipped_weight_gradient)


# ------------------------------------------------------------------- XLA's grouped convolution


def _platform_forward(x, w, active, *, stride, w_shape, x_shape):
    kh, kw, channels = w_shape
    return jax.lax.conv_general_dilated(
        x,
        w[:, :, None, :],
        window_strides=(stride, stride),
        padding=((kh // 2, kh // 2), (kw // 2, kw // 2)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=channels,
    )


def _platform_input_gradient(g, w, active, *, stride, w_shape, x_shape):
    forward = functools.partial(
        _platform_forward, w=w, active=active, stride=stride, w_shape=w_shape, x_shape=x_shape
    )
    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(x_shape, g.dtype))(g)[0]


def _platform_weight_gradient(x, g, active, *, stride, w_shape, x_shape):
    def forward(w):
        return _platform_forward(x, w, active, stride=stride, w_shape=w_shape, x_shape=x_shape)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(w_shape, g.dtype))(g)[0]


platform_form = _clipping(
    _platform_forward, _platform_input_gradient, _platform_weight_gradient
)


# --------------------------------------------------------------------- sums of shifted products


def _sum_of_taps(padded, w, height, width, stride):
    kh, kw, channels = w.shape
    total = 0
    for ky, kx in itertools.product(range(kh), range(kw)):
        rows = slice(ky, ky + (height - 1) * stride + 1, stride)
        columns = slice(kx, kx + (width - 1) * stride + 1, stride)
        total = total + padded[:, rows, columns] * w[ky, kx].reshape(1, 1, 1, channels)
    return total


def _pad(x, w_shape):
    ph, pw = w_shape[0] // 2, w_shape[1] // 2
    return jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def _jax_forward(x, w, active, *, stride, w_shape, x_shape):
    height, width = (-(-extent // stride) for extent in x_shape[1:3])
    return _sum_of_taps(_pad(x, w_shape), w, height, width, stride)


def _jax_input_gradient(g, w, active, *, stride, w_shape, x_shape):
    # Zeros between the columns undo the stride; then the kernel reversed is convolved with them.
    edges = [(0, 0, 0)]
    for extent, out, kernel in zip(x_shape[1:3], g.shape[1:3], w_shape[:2]):
        after = extent - ((out - 1) * stride + 1)
        edges.append((kernel // 2, kernel // 2 + after, stride - 1))
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), [*edges, (0, 0, 0)])
    return _sum_of_taps(spread, w[::-1, ::-1], *x_shape[1:3], 1)


def _jax_weight_gradient(x, g, active, *, stride, w_shape, x_shape):
    kh, kw, channels = w_shape
    _, height, width, _ = g.shape
    extent = ((height - 1) * stride + 1, (width - 1) * stride + 1, channels)

    # Image by image, since the batch doesn't fit a cache, and tap by tap, since XLA:CPU is slow at
    # several reductions fused into one loop.
    def add(total, pair):
        image, g_image = pair

        def one_tap(tap):
            under = jax.lax.dynamic_slice(image, (tap // kw, tap % kw, 0), extent)
            return jnp.sum(under[::stride, ::stride] * g_image, axis=(0, 1))

        return total + jax.lax.map(one_tap, jnp.arange(kh * kw)), None

    start = jnp.zeros((kh * kw, channels), g.dtype)
    total, _ = jax.lax.scan(add, start, (_pad(x, w_shape), g))
    return total.reshape(w_shape)


jax_form = _clipping(_jax_forward, _jax_input_gradient, _jax_weight_gradient)


# --------------------------------------------------------------------------- the CPU kernel


@functools.cache
def ffi_problem() -> str:
    """Why the CPU kernel can't be used, or '' once it is built, loaded and known to XLA."""
    from kws_jax.layers import ffi_build

    try:
        operations = 'Forward', 'InputGradient', 'WeightGradient'
        ffi_build.register(_SOURCE, tuple(f'KwsDepthwise{name}' for name in operations))
    except ffi_build.BuildError as error:
        _log.warning(
            'The fast CPU kernel for depthwise convolutions is not available, a slower form in '
            'JAX takes over: %s',
            error,
        )
        return str(error)
    return ''


def _ffi_call(handler, shapes, *operands, gated, stride, w_shape):
    dtype = operands[0].dtype
    if w_shape[1] not in FFI_WIDTHS or stride not in FFI_STRIDES or dtype != jnp.float32:
        raise ValueError(
            f"backend='ffi' has float32 kernels of width {FFI_WIDTHS} and strides {FFI_STRIDES}, "
            f"got w {w_shape}, {dtype} and stride {stride}; use backend='auto' or 'jax'"
        )
    if problem := ffi_problem():
        raise RuntimeError(f"backend='ffi' can't be built: {problem}; use backend='auto' or 'jax'")
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    call = jax.ffi.ffi_call(f'KwsDepthwise{handler}', results, vmap_method='sequential')
    return tuple(call(*operands, stride=np.int64(stride), gated=np.int64(gated)))


def _gate_operands(gate, channels):
    return gate or (np.zeros(channels, np.float32), np.zeros(2, np.float32))


def _ffi_forward(x, w, active, *gate, stride, w_shape, x_shape):
    batch, height, width, channels = x_shape
    shape = (batch, -(-height // stride), -(-width // stride), channels)
    operands = x, w, active, *_gate_operands(gate, channels)
    return _ffi_call(
        'Forward', [shape], *operands, gated=bool(gate), stride=stride, w_shape=w_shape
    )[0]


def _ffi_input_gradient(g, w, active, *passage, stride, w_shape, x_shape):
    x, *gate = passage or (g,)  # without a clip it is not read
    operands = g, w, active, x, *_gate_operands(gate, x_shape[3])
    shapes = x_shape, x_shape[3:]
    return _ffi_call(
        'InputGradient', shapes, *operands, gated=bool(gate), stride=stride, w_shape=w_shape
    )


def _ffi_weight_gradient(x, g, active, *gate, stride, w_shape, x_shape):
    operands = x, g, active, *_gate_operands(gate, x_shape[3])
    return _ffi_call(
        'WeightGradient', [w_shape], *operands, gated=bool(gate), stride=stride, w_shape=w_shape
    )[0]


ffi_form = Form(_ffi_forward, _ffi_input_gradient, _ffi_weight_gradient)
