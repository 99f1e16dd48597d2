"""What front ends share: their type, the framing product, compression, checked arguments."""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class FrontEnd(NamedTuple):
    """A front end: waveform `[batch, samples]` in [-1, 1) -> image `[batch, frames, filters, 1]`.

    Attributes:
      name: the name that `make` knows it by.
      init: `init(key) -> params`, a dict of float32 arrays; `{}` if nothing is learned.
      apply: `apply(params, waveform, *, quantize_weight, quantize_input) -> image`.
        `quantize_input` is called on the waveform, `quantize_weight` on the formed taps `[kernel,
        columns]` of `sinc` and `conv`; the fixed features `mfcc` and `log_mel` have no weights to
        quantize and never call it.
      image_shape: `(frames, filters)` for a clip of the length given to the factory.
      macs: multiply-accumulates for one clip, each counted once.
      parameters: how many numbers are learned.
      stored_weights: how many constants a device stores; symmetric taps count once.
      taps: `taps(params) -> float32[kernel, columns]`, what `quantize_weight` receives; None for
        fixed features.
      normalize: whether the network normalizes each filter of the image by its running averages,
        which an export folds into the scale of the response.
      gains: `gains(params) -> float32[columns]`, the factor of each column's response. It is
        applied after the product, so a device folds it into the scale of the response and it costs
        neither a MAC nor a tap.
    """

    name: str
    init: Callable[[jax.Array], dict]
    apply: Callable[..., jax.Array]
    image_shape: tuple[int, int]
    macs: int
    parameters: int
    stored_weights: int
    taps: Callable[[dict], jax.Array] | None = None
    gains: Callable[[dict], jax.Array] | None = None
    normalize: bool = True


def identity(x: jax.Array) -> jax.Array:
    """Returns `x`: the quantizer of a float network."""
    return x


def check_choice(argument: str, value, choices: Iterable) -> None:
    """Raises ValueError if `value` is none of `choices`, naming the nearest one.

    >>> check_choice('compression', 'lgo', ('none', 'log'))
    Traceback (most recent call last):
    ValueError: compression must be 'none' or 'log', got 'lgo'; did you mean 'log'?
    """
    choices = tuple(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.0)
    listed = ' or '.join(filter(None, (', '.join(map(repr, choices[:-1])), repr(choices[-1]))))
    raise ValueError(f'{argument} must be {listed}, got {value!r}; did you mean {near[0]!r}?')


def check_at_least(argument: str, value: int, least: int) -> None:
    """Raises ValueError naming `argument` if `value` is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f'{argument} must be a whole number of at least {least}, got {value!r}; try {least}'
        )


def check_waveform(waveform: jax.Array, least: int) -> None:
    """Raises ValueError unless `waveform` is float `[batch, samples]` with `samples >= least`."""
    if waveform.ndim != 2 or not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise ValueError(
            'waveform must be floating point [batch, samples], got '
            f'{waveform.dtype}{list(waveform.shape)}; '
            'int16 audio goes through kws_jax.data.backgrounds.int16_to_float first'
        )
    if waveform.shape[1] < least:
        raise ValueError(
            f'waveform must have at least {least} samples (one frame), got {waveform.shape[1]}'
        )


def count_frames(samples: int, *, kernel: int, stride: int) -> int:
    """Number of frames of `kernel` samples, one every `stride`, in a clip of `samples`, unpadded.

    >>> count_frames(16000, kernel=400, stride=160)
    98
    """
    return (samples - kernel) // stride + 1


def frame_product(waveform: jax.Array, taps: jax.Array, *, stride: int) -> jax.Array:
    """Inner product of each frame with each column of taps (correlation, valid framing).

    Args:
      waveform: float32 `[batch, samples]`.
      taps: float32 `[kernel, columns]`.
      stride: samples from one frame to the next.

    Returns:
      float32 `[batch, frames, columns]`; `out[b, t, c] = sum_k waveform[b, t * stride + k] *
      taps[k, c]`.

    >>> waveform = jnp.array([[1., 2., 3., 4., 5.]])
    >>> frame_product(waveform, jnp.array([[1.], [10.]]), stride=2)[0, :, 0]
    Array([21., 43.], dtype=float32)
    """
    kernel, columns = taps.shape
    batch, samples = waveform.shape
    # Kernel and stride are multiples of a common block, so the blocks can be the input channels of
    # a short convolution. XLA:CPU then sees a matrix product per block in the gradient to the
    # waveform as well, where the one-channel form of the same convolution takes four times as long.
    block = math.gcd(kernel, stride)
    whole = samples - samples % block
    return jax.lax.conv_general_dilated(
        waveform[:, :whole].reshape(batch, whole // block, block),
        taps.reshape(kernel // block, block, columns),
        window_strides=(stride // block,),
        padding='VALID',
        dimension_numbers=('NWC', 'WIO', 'NWC'),
    )


def _log(response: jax.Array, *, log_gain: float) -> jax.Array:
    return jnp.log1p(log_gain * jnp.abs(response))


COMPRESSIONS = {
    'none': lambda response, *, log_gain: response,
    'relu': lambda response, *, log_gain: jax.nn.relu(response),
    'abs': lambda response, *, log_gain: jnp.abs(response),
    'log': _log,
    'log_plain': lambda response, *, log_gain: _log(response, log_gain=1.0),
}

# Below -100 dB of full scale a magnitude is as good as zero; the square root needs a floor to have
# a gradient there.
MAGNITUDE_FLOOR = 1e-10


def filterbank_image(
    waveform: jax.Array,
    taps: jax.Array,
    gains: jax.Array | None,
    *,
    stride: int,
    compression: str,
    log_gain: float,
    quadrature: bool,
    hops: int,
) -> jax.Array:
    """Image of a bank of filters: product, gain, magnitude of pairs, mean over hops, compression.

    Args:
      waveform: float32 `[batch, samples]`.
      taps: float32 `[kernel, filters]`, or `[kernel, 2 * filters]` with `quadrature`: first all the
        cosine phases, then all the sine phases.
      gains: float32 `[columns]`, the factor of each column, or None.
      stride: samples from one frame to the next.
      compression: a key of `COMPRESSIONS`.
      log_gain: factor inside `log(1 + log_gain * |response|)`.
      quadrature: whether columns are pairs whose magnitude is the response.
      hops: positions per frame, `stride / hops` apart, over which the magnitude is averaged.

    Returns:
      float32 `[batch, frames, filters, 1]`.
    """
    response = frame_product(waveform, taps, stride=stride // hops)
    if gains is not None:
        response = response * gains[None, None, :]
    if quadrature:
        cosine, sine = jnp.split(response, 2, axis=2)
        response = jnp.sqrt(cosine * cosine + sine * sine + MAGNITUDE_FLOOR)
    if hops > 1:
        batch, positions, filters = response.shape
        frames = positions // hops
        # Signed responses of shifted windows cancel; only their magnitudes may be averaged.
        response = (
            jnp.abs(response[:, : frames * hops]).reshape(batch, frames, hops, filters).mean(axis=2)
        )
    return COMPRESSIONS[compression](response, log_gain=log_gain)[..., None]


def check_filterbank(
    *, filters, kernel, stride, sample_rate, samples, compression, log_gain, hops
) -> int:
    """Checks the arguments that `sinc` and `conv` share; returns the number of frames of a clip."""
    check_at_least('filters', filters, 1)
    check_at_least('kernel', kernel, 2)
    check_at_least('stride', stride, 1)
    check_at_least('sample_rate', sample_rate, 1)
    check_at_least('samples', samples, kernel)
    check_at_least('hops', hops, 1)
    check_choice('compression', compression, COMPRESSIONS)
    if not log_gain > 0:
        raise ValueError(
            f'log_gain must be above 0, got {log_gain}; 1000 puts the knee at -60 dB of full scale'
        )
    if stride % hops:
        divisors = [d for d in range(1, stride + 1) if stride % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - hops))
        raise ValueError(
            f'hops must divide stride {stride}, got {hops}; the nearest that does is {nearest}'
        )
    return count_frames(samples, kernel=kernel, stride=stride // hops) // hops
