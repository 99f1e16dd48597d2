"""MFCC and log-mel, the fixed features that SincConv is compared with, as librosa has them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.frontends import base

MEL_SCALES = ('slaney', 'htk')
FRAMINGS = ('valid', 'center', 'fft')


def _hertz_to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == 'htk':
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    # Slaney's Auditory Toolbox: linear to 1 kHz, then 27 steps to each factor of 6.4.
    logarithmic = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * 27.0 / np.log(6.4)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, logarithmic)


def _mel_to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == 'htk':
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(
        mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0)
    )


def mel_weights(
    *,
    mels: int,
    n_fft: int,
    sample_rate: int = 16000,
    low: float = 0.0,
    high: float | None = None,
    mel_scale: str = 'slaney',
    area_norm: bool = True,
) -> np.ndarray:
    """Triangular mel filters over the bins of a power spectrum, float32 `[n_fft // 2 + 1, mels]`.

    Args:
      mels: number of triangles.
      n_fft: length of the transform.
      sample_rate, low, high: in Hz; the triangles span `low` to `high`, by default half the sample
        rate.
      mel_scale: `'slaney'` or `'htk'`.
      area_norm: each triangle is scaled to unit area in Hz instead of a peak of 1.

    Raises:
      ValueError: the scale is unknown or the span is empty or passes the Nyquist frequency.

    >>> weights = mel_weights(mels=2, n_fft=8, sample_rate=8, mel_scale='htk', area_norm=False)
    >>> weights.round(2).tolist()
    [[0.0, 0.0], [0.75, 0.0], [0.5, 0.5], [0.0, 0.75], [0.0, 0.0]]
    """
    base.check_choice('mel_scale', mel_scale, MEL_SCALES)
    high = sample_rate / 2 if high is None else high
    if not 0.0 <= low < high <= sample_rate / 2:
        raise ValueError(
            f'low and high must hold 0 <= low < high <= {sample_rate / 2:g} Hz, '
            f'got {low} and {high}'
        )
    ends = _hertz_to_mel(np.array([low, high], np.float64), mel_scale)
    corners = _mel_to_hertz(np.linspace(ends[0], ends[1], mels + 2), mel_scale)
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    rise = (bins[:, None] - corners[None, :-2]) / np.diff(corners)[None, :-1]
    fall = (corners[None, 2:] - bins[:, None]) / np.diff(corners)[None, 1:]
    weights = np.maximum(0.0, np.minimum(rise, fall))
    if area_norm:
        weights *= 2.0 / (corners[2:] - corners[:-2])[None, :]
    return weights.astype(np.float32)


def cosine_transform(mels: int, coefficients: int) -> np.ndarray:
    """First `coefficients` columns of the orthonormal DCT-II, float32 `[mels, coefficients]`.

    >>> (cosine_transform(2, 2) * np.sqrt(2)).round(3).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    angle = np.pi / mels * (np.arange(mels)[:, None] + 0.5) * np.arange(coefficients)[None, :]
    matrix = np.sqrt(2.0 / mels) * np.cos(angle)
    matrix[:, 0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def fft_macs(n_fft: int) -> int:
    """MACs counted for a real FFT of `n_fft` points: `n_fft * (log2(n_fft) + 1)`, rounded up.

    A real transform is a complex one of half the length, `n/4 * log2(n/2)` radix-2 butterflies, and
    `n/2` complex products that untangle it; a complex product counts 4 MACs. For lengths that are
    no power of two the same formula stands for the mixed radices.

    >>> fft_macs(512)
    5120
    """
    return math.ceil(n_fft * (math.log2(n_fft) + 1))


def power_spectrum(
    waveform: jax.Array,
    *,
    window: int,
    hop: int,
    n_fft: int,
    framing: str = 'valid',
    pad_mode: str = 'constant',
) -> jax.Array:
    """Power of the short-time Fourier transform with a periodic Hann window.

    Args:
      waveform: float32 `[batch, samples]`.
      window: length of the window in samples.
      hop: samples from one frame to the next.
      n_fft: length of the transform, at least `window`.
      framing: `'valid'`, windows that lie within the clip; `'center'`, frame t is centred on sample
        `t * hop` of the clip padded by `n_fft // 2` on both sides (librosa's `center=True`);
        `'fft'`, frames of `n_fft` samples with the window in their middle lie within the clip
        (librosa's `center=False`).
      pad_mode: of `'center'`: `'constant'` for zeros, or `'reflect'`.

    Returns:
      float32 `[batch, frames, n_fft // 2 + 1]`.
    """
    # The window's place inside its transform turns phases only, so frames are as long as the
    # window, not n_fft.
    margin = (n_fft - window) // 2
    samples = waveform.shape[1]
    frames = _frame_count(samples, window=window, hop=hop, n_fft=n_fft, framing=framing)
    if framing == 'center':
        waveform = jnp.pad(waveform, ((0, 0), (n_fft // 2, n_fft // 2)), mode=pad_mode)
    first = 0 if framing == 'valid' else margin
    index = first + hop * np.arange(frames)[:, None] + np.arange(window)[None, :]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    framed = (
        jnp.take(waveform, index, axis=1, mode='clip')
        * jnp.asarray(hann, jnp.float32)[None, None, :]
    )
    spectrum = jnp.fft.rfft(framed, n=n_fft, axis=2)
    return spectrum.real**2 + spectrum.imag**2


def _frame_count(samples, *, window, hop, n_fft, framing):
    if framing == 'valid':
        return base.count_frames(samples, kernel=window, stride=hop)
    padded = samples + 2 * (n_fft // 2) if framing == 'center' else samples
    return base.count_frames(padded, kernel=n_fft, stride=hop)


def power_to_db(power: jax.Array, *, top_db: float | None) -> jax.Array:
    """Decibels of a power re 1, at least -100, and at most `top_db` below the loudest of its clip.

    Args:
      power: float32 `[batch, frames, bands]`.
      top_db: range kept below the maximum of each clip, or None to keep all.

    >>> power_to_db(jnp.array([[[1.0, 1e-3], [1e-12, 100.0]]]), top_db=80.0)[0]
    Array([[  0., -30.],
           [-60.,  20.]], dtype=float32)
    """
    decibel = 10.0 * jnp.log10(jnp.maximum(power, 1e-10))
    if top_db is None:
        return decibel
    return jnp.maximum(decibel, jnp.max(decibel, axis=(1, 2), keepdims=True) - top_db)


def _check(*, filters, kernel, stride, sample_rate, samples, n_fft, mels, framing, pad_mode):
    base.check_at_least('filters', filters, 1)
    base.check_at_least('kernel', kernel, 2)
    base.check_at_least('stride', stride, 1)
    base.check_at_least('sample_rate', sample_rate, 1)
    base.check_at_least('n_fft', n_fft, kernel)
    base.check_at_least('mels', mels, filters)
    base.check_choice('framing', framing, FRAMINGS)
    base.check_choice('pad_mode', pad_mode, ('constant', 'reflect'))
    base.check_at_least('samples', samples, _least_samples(kernel, n_fft, framing))


def _least_samples(kernel, n_fft, framing):
    # Reflection needs more samples than it pads.
    return {'valid': kernel, 'center': n_fft // 2 + 1, 'fft': n_fft}[framing]


def log_mel(
    *,
    filters: int = 40,
    kernel: int = 400,
    stride: int = 160,
    sample_rate: int = 16000,
    samples: int = 16000,
    n_fft: int | None = None,
    framing: str = 'valid',
    pad_mode: str = 'constant',
    low: float = 0.0,
    high: float | None = None,
    mel_scale: str = 'slaney',
    area_norm: bool = True,
    compression: str = 'log',
    log_floor: float = 1e-6,
    top_db: float | None = None,
) -> base.FrontEnd:
    """Log-mel front end: the log of the power in mel bands; nothing is learned.

    Args:
      filters: number of mel bands.
      kernel: length of the Hann window in samples; 400 is 25 ms, 480 is 30 ms.
      stride: samples from one frame to the next.
      sample_rate: in Hz.
      samples: length of the clips that `image_shape` and `macs` are for.
      n_fft: length of the transform; by default the power of two from `kernel` up.
      framing, pad_mode: see `power_spectrum`.
      low, high, mel_scale, area_norm: see `mel_weights`.
      compression: `'log'`, the natural log of power plus `log_floor`; `'db'`, see `power_to_db`; or
        `'none'`.
      log_floor: power that `'log'` adds. 1e-6 is about the power in a band of a recording's noise
        floor.
      top_db: of `'db'`.

    Returns:
      A FrontEnd without parameters.

    Raises:
      ValueError: an argument is out of range; the message says which and what would do.

    >>> front_end = log_mel()
    >>> front_end.image_shape, front_end.parameters
    ((98, 40), 0)
    """
    base.check_at_least('kernel', kernel, 2)
    n_fft = 2 ** math.ceil(math.log2(kernel)) if n_fft is None else n_fft
    _check(
        filters=filters,
        kernel=kernel,
        stride=stride,
        sample_rate=sample_rate,
        samples=samples,
        n_fft=n_fft,
        mels=filters,
        framing=framing,
        pad_mode=pad_mode,
    )
    base.check_choice('compression', compression, ('none', 'log', 'db'))
    if not log_floor > 0:
        raise ValueError(f'log_floor must be above 0, got {log_floor}; 1e-6 is the default')
    weights = mel_weights(
        mels=filters,
        n_fft=n_fft,
        sample_rate=sample_rate,
        low=low,
        high=high,
        mel_scale=mel_scale,
        area_norm=area_norm,
    )
    frames = _frame_count(samples, window=kernel, hop=stride, n_fft=n_fft, framing=framing)
    least = _least_samples(kernel, n_fft, framing)

    def apply(params, waveform, *, quantize_weight=base.identity, quantize_input=base.identity):
        del params, quantize_weight  # nothing is learned and nothing is stored at low precision
        base.check_waveform(waveform, least)
        power = power_spectrum(
            quantize_input(waveform),
            window=kernel,
            hop=stride,
            n_fft=n_fft,
            framing=framing,
            pad_mode=pad_mode,
        )
        image = jnp.dot(power, jnp.asarray(weights), precision='highest')
        if compression == 'log':
            image = jnp.log(image + log_floor)
        elif compression == 'db':
            image = power_to_db(image, top_db=top_db)
        return image[..., None]

    return base.FrontEnd(
        name='log_mel',
        init=lambda key: {},
        apply=apply,
        image_shape=(frames, filters),
        macs=frames * _frame_macs(kernel, n_fft, weights),
        parameters=0,
        stored_weights=(kernel + 1) // 2 + int(np.count_nonzero(weights)),
    )


def _frame_macs(window: int, n_fft: int, weights: np.ndarray) -> int:
    """MACs of one frame: window, FFT, re^2 + im^2, and the mel weights that are not zero."""
    return window + fft_macs(n_fft) + 2 * (n_fft // 2 + 1) + int(np.count_nonzero(weights))


def mfcc(
    *,
    filters: int = 10,
    kernel: int = 640,
    stride: int = 320,
    sample_rate: int = 16000,
    samples: int = 16000,
    n_fft: int = 640,
    mels: int = 128,
    framing: str = 'center',
    pad_mode: str = 'reflect',
    low: float = 0.0,
    high: float | None = None,
    mel_scale: str = 'htk',
    area_norm: bool = False,
    top_db: float | None = 80.0,
) -> base.FrontEnd:
    """MFCC front end: the orthonormal DCT-II of mel bands in decibels; nothing is learned.

    The defaults are those of the MFCC networks of Peter et al. 2020 (torchaudio's): windows of 40
    ms every 20 ms, 128 HTK mel bands without area normalisation, 51 frames.

    Args:
      filters: number of coefficients, 10 to 40 there.
      kernel, stride, sample_rate, samples: as for `log_mel`.
      n_fft: length of the transform, at least `kernel`.
      mels: number of mel bands, at least `filters`.
      framing, pad_mode: see `power_spectrum`.
      low, high, mel_scale, area_norm: see `mel_weights`.
      top_db: see `power_to_db`.

    Returns:
      A FrontEnd without parameters.

    Raises:
      ValueError: an argument is out of range; the message says which and what would do.

    >>> front_end = mfcc(filters=20)
    >>> front_end.image_shape, front_end.parameters
    ((51, 20), 0)
    """
    _check(
        filters=filters,
        kernel=kernel,
        stride=stride,
        sample_rate=sample_rate,
        samples=samples,
        n_fft=n_fft,
        mels=mels,
        framing=framing,
        pad_mode=pad_mode,
    )
    spectrogram = log_mel(
        filters=mels,
        kernel=kernel,
        stride=stride,
        sample_rate=sample_rate,
        samples=samples,
        n_fft=n_fft,
        framing=framing,
        pad_mode=pad_mode,
        low=low,
        high=high,
        mel_scale=mel_scale,
        area_norm=area_norm,
        compression='db',
        top_db=top_db,
    )
    transform = cosine_transform(mels, filters)
    frames = spectrogram.image_shape[0]

    def apply(params, waveform, *, quantize_weight=base.identity, quantize_input=base.identity):
        bands = spectrogram.apply(
            params, waveform, quantize_weight=quantize_weight, quantize_input=quantize_input
        )
        return jnp.dot(bands[..., 0], jnp.asarray(transform), precision='highest')[..., None]

    return base.FrontEnd(
        name='mfcc',
        init=lambda key: {},
        apply=apply,
        image_shape=(frames, filters),
        macs=spectrogram.macs + frames * mels * filters,
        parameters=0,
        stored_weights=spectrogram.stored_weights + mels * filters,
    )
