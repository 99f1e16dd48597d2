"""SincConv: a bank of band-pass filters of which only the cut-offs are learned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.frontends import base

_LOWEST = 10.0  # Hz; no band starts below it or ends above the Nyquist frequency less it
_FIRST_EDGE = 30.0  # Hz; where the mel-spaced bank starts, as in SincNet


class _Bank(NamedTuple):
    """Constants of a bank in Hz: its bounds, and where its unbounded parameters start."""

    narrowest: float
    highest: float
    softness: float
    start: np.ndarray  # [filters]
    start_width: np.ndarray  # [filters]
    unit: np.ndarray  # [filters] what a step of 1 in a parameter moves


def mel_bands(
    filters: int, *, kernel: int = 400, sample_rate: int = 16000
) -> tuple[np.ndarray, np.ndarray]:
    """Cut-offs in Hz of the starting bank: `(low, high)`, each float64 `[filters]`.

    The low cut-offs are equally spaced in mel (2595 log10(1 + f / 700)) from 30 Hz up to 2.5 %
    below the Nyquist frequency. A band ends where the next starts, but is never narrower than twice
    the resolution `sample_rate / kernel` of the window, below which a filter cannot get narrower,
    only weaker.

    >>> low, high = mel_bands(60)
    >>> [round(float(f)) for f in (low[0], high[0], high[59])]
    [30, 110, 7800]
    """

    def mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    last = 0.975 * sample_rate / 2
    edges = 700.0 * (10.0 ** (np.linspace(mel(_FIRST_EDGE), mel(last), filters + 1) / 2595.0) - 1.0)
    low = edges[:-1]
    width = np.maximum(np.diff(edges), 2.0 * sample_rate / kernel)
    return low, low + np.minimum(width, last - low)


def _soft_clip(x, low, high, softness):
    """Smooth clip into (low, high): slope 1 inside, tails that fall off over `softness`."""
    return low + softness * (
        jax.nn.softplus((x - low) / softness) - jax.nn.softplus((x - high) / softness)
    )


def _soft_clip_inverse(y, low, high, softness):
    """The x that `_soft_clip` takes to y; float64 numpy."""
    return y + softness * (
        np.log1p(-np.exp((low - y) / softness)) - np.log1p(-np.exp((y - high) / softness))
    )


def _bank(filters: int, kernel: int, sample_rate: int) -> _Bank:
    narrowest = sample_rate / kernel
    highest = sample_rate / 2 - _LOWEST
    softness = narrowest / 2
    low, high = mel_bands(filters, kernel=kernel, sample_rate=sample_rate)
    width = high - low
    if np.min(width) <= narrowest:
        raise ValueError(
            f'filters must leave each band wider than sample_rate / kernel = {narrowest:g} Hz, '
            f'got {filters} filters of {kernel} taps; take a longer kernel or fewer filters'
        )
    return _Bank(
        narrowest=narrowest,
        highest=highest,
        softness=softness,
        start=_soft_clip_inverse(low, _LOWEST, highest - narrowest, softness),
        start_width=_soft_clip_inverse(width, narrowest, highest - low, softness),
        unit=width,
    )


def _cut_offs(params: dict, bank: _Bank) -> tuple[jax.Array, jax.Array]:
    start = (
        jnp.asarray(bank.start, jnp.float32) + jnp.asarray(bank.unit, jnp.float32) * params['low']
    )
    low = _soft_clip(start, _LOWEST, bank.highest - bank.narrowest, bank.softness)
    width = (
        jnp.asarray(bank.start_width, jnp.float32)
        + jnp.asarray(bank.unit, jnp.float32) * params['band']
    )
    return low, low + _soft_clip(width, bank.narrowest, bank.highest - low, bank.softness)


def cut_offs(
    params: dict, *, kernel: int = 400, sample_rate: int = 16000
) -> tuple[jax.Array, jax.Array]:
    """Cut-offs `(low, high)` in Hz, each float32 `[filters]`, of SincConv parameters.

    Args:
      params: `{'low': float32[filters], 'band': float32[filters]}`. Both are 0 at the start, where
        the bank is `mel_bands`; a step of 1 in `low` moves the band up by its starting width, a
        step of 1 in `band` widens it by its starting width. So the two learn at the rate of
        ordinary weights, and weight decay draws towards the mel-spaced bank instead of towards 0
        Hz.
      kernel: taps of a filter; sets the narrowest band, `sample_rate / kernel`.
      sample_rate: in Hz.

    Whatever the parameters, `10 Hz <= low`, `low + sample_rate / kernel <= high <= sample_rate / 2
    - 10 Hz` up to float32 rounding. The bounds are approached by a softplus with a softness of half
    the narrowest band, so a band that runs into one keeps a gradient, if a small one, and decay
    towards 0 brings it back.

    >>> low, high = cut_offs({'low': jnp.zeros(40), 'band': jnp.zeros(40)})
    >>> bool(jnp.all(low < high)), round(float(low[0])), round(float(high[-1]))
    (True, 30, 7800)
    """
    return _cut_offs(params, _bank(params['low'].shape[0], kernel, sample_rate))


def band_pass_taps(
    low: jax.Array, high: jax.Array, *, kernel: int, sample_rate: int, quadrature: bool = False
) -> jax.Array:
    """Taps of Hamming-windowed ideal band-pass filters, scaled to a peak of 1 at the centre.

    With centre c, width B (cycles per sample) and t the time from the middle of the kernel, half
    samples for an even kernel: `g(t) = sinc(B t) cos(2 pi c t) hamming(t)`, which is the difference
    of two low-pass sincs `(2 f2 sinc(2 f2 t) - 2 f1 sinc(2 f1 t)) / (2 B)` (Ravanelli and Bengio
    2018, eq. 4 and 7). Times `2 B` it has unit gain in the pass band.

    Args:
      low, high: float32 `[filters]`, cut-offs in Hz.
      kernel: number of taps.
      sample_rate: in Hz.
      quadrature: also returns the sine phase of each filter, its Hilbert transform.

    Returns:
      float32 `[kernel, filters]`, every column symmetric; with `quadrature` `[kernel, 2 *
      filters]`, the second half antisymmetric.

    >>> taps = band_pass_taps(jnp.array([1000.]), jnp.array([2000.]), kernel=5, sample_rate=16000)
    >>> bool(jnp.all(taps == taps[::-1])), round(float(taps[2, 0]), 3)
    (True, 1.0)
    """
    half = (kernel + 1) // 2
    time = np.arange(half) + (
        0.5 if kernel % 2 == 0 else 0.0
    )  # the right half, from the middle outwards
    window = 0.54 + 0.46 * np.cos(2.0 * np.pi * time / (kernel - 1))
    time = jnp.asarray(time, jnp.float32)[:, None]
    envelope = (
        jnp.sinc(((high - low) / sample_rate)[None, :] * time)
        * jnp.asarray(window, jnp.float32)[:, None]
    )
    phase = 2.0 * jnp.pi * ((low + high) / (2.0 * sample_rate))[None, :] * time

    def whole(right, sign):
        left = right[kernel % 2 :][::-1]
        return jnp.concatenate([sign * left, right])

    cosine = whole(envelope * jnp.cos(phase), 1.0)
    if not quadrature:
        return cosine
    return jnp.concatenate([cosine, whole(envelope * jnp.sin(phase), -1.0)], axis=1)


def sinc(
    *,
    filters: int = 60,
    kernel: int = 400,
    stride: int = 160,
    sample_rate: int = 16000,
    samples: int = 16000,
    compression: str = 'log',
    log_gain: float = 1000.0,
    scaling: str = 'gain',
    quadrature: bool = False,
    hops: int = 1,
) -> base.FrontEnd:
    """SincConv front end (Ravanelli and Bengio 2018; first layer of Peter et al. 2022, table 1).

    Args:
      filters: number of band-pass filters.
      kernel: taps of a filter, and samples of a frame; nothing is padded.
      stride: samples from one frame to the next.
      sample_rate: in Hz.
      samples: length of the clips that `image_shape` and `macs` are for; `apply` takes any length.
      compression: `'none'`, `'relu'`, `'abs'`, `'log'`: `log(1 + log_gain * |response|)`, or
        `'log_plain'`: the same with a gain of 1 (Mittermaier et al. 2020).
      log_gain: of `'log'`. 1000 puts the knee between linear and logarithmic at -60 dB of full
        scale, near the noise floor of close-talk recordings, so speech is compressed and silence
        stays near 0.
      scaling: `'gain'` for unit gain in the pass band, or `'tap'` for a centre tap of 1 (SincNet),
        which amplifies a band of width B Hz by `sample_rate / (2 B)`. The taps are the same; the
        gain is applied to the response, so one quantization step fits the filters of all widths.
      quadrature: each filter is a pair of equal cut-offs in cosine and sine phase, and the response
        is the magnitude of the pair: the energy in the band, whatever the phase. MACs double,
        parameters do not.
      hops: magnitudes at this many positions per frame are averaged before compression. MACs grow
        alike.

    Returns:
      A FrontEnd with params `{'low': float32[filters], 'band': float32[filters]}`, see `cut_offs`.

    Raises:
      ValueError: an argument is out of range; the message says which and what would do.

    >>> front_end = sinc(filters=60)
    >>> front_end.image_shape, front_end.macs, front_end.parameters, front_end.stored_weights
    ((98, 60), 2352000, 120, 12000)
    """
    frames = base.check_filterbank(
        filters=filters,
        kernel=kernel,
        stride=stride,
        sample_rate=sample_rate,
        samples=samples,
        compression=compression,
        log_gain=log_gain,
        hops=hops,
    )
    base.check_choice('scaling', scaling, ('gain', 'tap'))
    bank = _bank(filters, kernel, sample_rate)
    columns = 2 * filters if quadrature else filters

    def init(key: jax.Array) -> dict:
        del key  # the start is the mel-spaced bank
        return {'low': jnp.zeros(filters), 'band': jnp.zeros(filters)}

    def taps(params: dict) -> jax.Array:
        low, high = _cut_offs(params, bank)
        return band_pass_taps(
            low, high, kernel=kernel, sample_rate=sample_rate, quadrature=quadrature
        )

    def gains(params: dict) -> jax.Array:
        if scaling == 'tap':
            return jnp.ones(columns)
        low, high = _cut_offs(params, bank)
        return jnp.tile(2.0 * (high - low) / sample_rate, columns // filters)

    def apply(params, waveform, *, quantize_weight=base.identity, quantize_input=base.identity):
        base.check_waveform(waveform, kernel)
        return base.filterbank_image(
            quantize_input(waveform),
            quantize_weight(taps(params)),
            gains(params),
            stride=stride,
            compression=compression,
            log_gain=log_gain,
            quadrature=quadrature,
            hops=hops,
        )

    return base.FrontEnd(
        name='sinc',
        init=init,
        apply=apply,
        image_shape=(frames, filters),
        macs=kernel * columns * frames * hops,
        parameters=2 * filters,
        # A symmetric column needs its centre tap, an antisymmetric one has a zero there.
        stored_weights=(kernel + 1) // 2 * filters + (kernel // 2 * filters if quadrature else 0),
        taps=taps,
        gains=gains,
    )
