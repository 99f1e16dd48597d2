"""Augmentation of whole batches, as pure functions that run inside jit.

Every random quantity is drawn per example. A function consumes the key that it is given.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.data.backgrounds import (
    add_noise,
    check_not_negative,
    check_probability,
    int16_to_float,
    make_silence,
    room_tone,
)


def shift(x: jax.Array, offset: jax.Array, *, max_shift: int) -> jax.Array:
    """Delays each row by its own number of samples; zeros come in, what leaves is lost.

    Args:
      x: `[batch, samples]`.
      offset: int32 `[batch]`, in `-max_shift..max_shift`; positive is later.
      max_shift: bound of `offset` in samples; an offset beyond it acts as the bound.

    >>> shift(jnp.array([[1., 2., 3.], [1., 2., 3.]]), jnp.array([1, -2]), max_shift=2)
    Array([[0., 1., 2.],
           [3., 0., 0.]], dtype=float32)
    """
    check_not_negative('max_shift', max_shift)
    padded = jnp.pad(x, ((0, 0), (max_shift, max_shift)))
    # One slice per row: XLA turns it into a gather of contiguous rows, twice as fast as
    # element by element.
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (x.shape[1],)))(
        padded, max_shift - offset
    )


def time_shift(key: jax.Array, x: jax.Array, *, max_shift: int = 1600) -> jax.Array:
    """Shifts each example by a whole number of samples in `[-max_shift, max_shift)`; zeros fill.

    Args:
      key: random key.
      x: `[batch, samples]`, any type.
      max_shift: in samples; 1600 is the 100 ms of the Speech Commands recipe. 0 changes nothing.

    Raises:
      ValueError: `max_shift` is negative.

    >>> time_shift(jax.random.key(0), jnp.ones((1, 4)), max_shift=0)
    Array([[1., 1., 1., 1.]], dtype=float32)
    """
    check_not_negative('max_shift', max_shift)
    if max_shift == 0:
        return x
    offset = jax.random.randint(key, (x.shape[0],), -max_shift, max_shift)
    return shift(x, offset, max_shift=max_shift)


def gain(key: jax.Array, x: jax.Array, *, low_db: float, high_db: float) -> jax.Array:
    """Scales each example by a gain uniform in decibels; clips at full scale, like a converter.

    Args:
      key: random key.
      x: float32 `[batch, samples]` in [-1, 1).
      low_db, high_db: bounds of the gain.

    Raises:
      ValueError: `low_db` is above `high_db`.

    >>> gain(jax.random.key(0), jnp.array([[0.25, -1.0]]), low_db=20.0, high_db=20.0)
    Array([[ 1., -1.]], dtype=float32)
    """
    if not low_db <= high_db:
        raise ValueError(f'low_db must be at most high_db, got {low_db} and {high_db}; swap them')
    decibel = jax.random.uniform(key, (x.shape[0], 1), minval=low_db, maxval=high_db)
    return jnp.clip(x * 10.0 ** (decibel / 20.0), -1.0, 1.0)


def change_speed(x: jax.Array, speed: jax.Array) -> jax.Array:
    """Plays each row at its own speed about its middle: linear interpolation, zeros outside.

    Args:
      x: float32 `[batch, samples]`.
      speed: float32 `[batch]`; 2 makes a sound half as long and an octave higher.

    Returns:
      float32 `[batch, samples]`; sample n is x at `middle + (n - middle) * speed`, `middle =
      (samples - 1) / 2`.

    >>> change_speed(jnp.array([[0., 1., 2., 3., 4.]]), jnp.array([0.5]))
    Array([[1. , 1.5, 2. , 2.5, 3. ]], dtype=float32)
    """
    samples = x.shape[1]
    middle = (samples - 1) / 2.0
    position = middle + (jnp.arange(samples) - middle)[None, :] * speed[:, None]
    before = jnp.floor(position)
    share = position - before
    index = jnp.clip(before, -2, samples).astype(jnp.int32) + 2
    padded = jnp.pad(x, ((0, 0), (2, 2)))  # two zeros a side: a pair of neighbours may be outside

    def read(i):
        return jnp.take_along_axis(padded, i, axis=1, mode='clip')

    return read(index) * (1.0 - share) + read(index + 1) * share


def resample_speed(key: jax.Array, x: jax.Array, *, max_change: float = 0.1) -> jax.Array:
    """Changes speed, and pitch with it, by a factor uniform in `[1 - max_change, 1 + max_change)`.

    Args:
      key: random key.
      x: float32 `[batch, samples]`.
      max_change: below 1; 0 changes nothing.

    Raises:
      ValueError: `max_change` is not in [0, 1).

    Speed perturbation of Ko et al. 2015, about the middle of the clip, so that a word stays where
    it is. Linear interpolation dulls what lies between samples: up to 3 dB at 4 kHz.
    """
    if not 0.0 <= max_change < 1.0:
        raise ValueError(
            f'max_change must be at least 0 and below 1, got {max_change}; 0.1 is customary'
        )
    if max_change == 0.0:
        return x
    speed = jax.random.uniform(key, (x.shape[0],), minval=1.0 - max_change, maxval=1.0 + max_change)
    return change_speed(x, speed)


def _bands(key: jax.Array, *, batch: int, size: int, count: int, width: int) -> jax.Array:
    """Bool `[batch, size]`: True in any of `count` bands, width uniform in 0..width, anywhere."""
    width_key, start_key = jax.random.split(key)
    widths = jax.random.randint(width_key, (batch, count, 1), 0, width + 1)
    start = jnp.floor(
        jax.random.uniform(start_key, (batch, count, 1)) * (size - widths + 1)
    ).astype(jnp.int32)
    place = jnp.arange(size)[None, None, :]
    return jnp.any((place >= start) & (place < start + widths), axis=1)


def spec_augment(
    key: jax.Array,
    image: jax.Array,
    *,
    time_masks: int = 2,
    time_width: int = 20,
    frequency_masks: int = 2,
    frequency_width: int = 7,
) -> jax.Array:
    """Masks bands of time and of frequency with the mean of the example.

    SpecAugment, Park et al. 2019, sect. 2, without the time warp.

    Args:
      key: random key.
      image: float32 `[batch, frames, filters, channels]`.
      time_masks, frequency_masks: how many bands; they may overlap.
      time_width, frequency_width: largest width in frames and in filters; each is uniform from 0 to
        it.

    Raises:
      ValueError: a count is negative, or a width is not in 0..size of its axis.
    """
    batch, frames, filters, _ = image.shape
    for argument, value, size in (
        ('time_width', time_width, frames),
        ('frequency_width', frequency_width, filters),
    ):
        if not 0 <= value <= size:
            raise ValueError(f'{argument} must be in 0..{size}, got {value}')
    check_not_negative('time_masks', time_masks)
    check_not_negative('frequency_masks', frequency_masks)
    time_key, frequency_key = jax.random.split(key)
    in_time = _bands(time_key, batch=batch, size=frames, count=time_masks, width=time_width)
    in_frequency = _bands(
        frequency_key, batch=batch, size=filters, count=frequency_masks, width=frequency_width
    )
    masked = (in_time[:, :, None] | in_frequency[:, None, :])[..., None]
    return jnp.where(masked, jnp.mean(image, axis=(1, 2, 3), keepdims=True), image)


def mixup(
    key: jax.Array, x: jax.Array, labels: jax.Array, *, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example and its label with those of another; own share from Beta(alpha, alpha).

    Zhang et al. 2018, eq. 1. The other example comes from a random permutation of the batch, and
    may be the same.

    Args:
      key: random key.
      x: float32 `[batch, ...]`.
      labels: float32 `[batch, classes]`, one-hot or smoothed.
      alpha: at least 0; 0 mixes nothing, 1 draws shares uniformly.

    Raises:
      ValueError: `alpha` is negative.
    """
    check_not_negative('alpha', alpha)
    if alpha == 0:
        return x, labels
    share_key, other_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, (x.shape[0],))
    other = jax.random.permutation(other_key, x.shape[0])

    def mix(array):
        own = share.reshape((-1,) + (1,) * (array.ndim - 1))
        return array * own + array[other] * (1.0 - own)

    return mix(x), mix(labels)


def equalize(key: jax.Array, x: jax.Array, *, max_db: float) -> jax.Array:
    """Gives every clip a random frequency response, as microphones and rooms do.

    A smooth curve through nine gains uniform in [-max_db, max_db], one per octave from 31 Hz up to
    8 kHz at 16 kHz sampling.

    Args:
      key: random key.
      x: float32 `[batch, samples]`.
      max_db: 0 changes nothing.

    Raises:
      ValueError: an argument is out of range.
    """
    check_not_negative('max_db', max_db)
    batch, samples = x.shape
    points = jax.random.uniform(key, (batch, 9), minval=-max_db, maxval=max_db)
    bins = samples // 2 + 1
    octave = np.clip(8.0 + np.log2(np.maximum(np.arange(bins), 1) / (bins - 1)), 0.0, 8.0)
    low = np.minimum(octave.astype(np.int32), 7)
    share = (octave - low).astype(np.float32)[None]
    share = share * share * (3.0 - 2.0 * share)  # no kinks
    decibels = points[:, low] * (1.0 - share) + points[:, low + 1] * share
    return jnp.fft.irfft(jnp.fft.rfft(x) * 10.0 ** (decibels / 20.0), samples)


def splice(
    key: jax.Array, x: jax.Array, is_unknown: jax.Array, *, probability: float
) -> jax.Array:
    """Makes new other words: in rows of other words, the first half of one clip of the batch and
    the second half of another.

    Where training has recordings of few other words, a network learns these words and takes the
    rest for keywords; halves of two words are speech that is none of them.

    Args:
      key: random key.
      x: float32 `[batch, samples]`.
      is_unknown: bool `[batch]`, the rows that may be replaced.
      probability: of each of them.

    Raises:
      ValueError: an argument is out of range.
    """
    check_probability('probability', probability)
    pick_key, first_key, second_key, cut_key = jax.random.split(key, 4)
    batch, samples = x.shape
    first = x[jax.random.permutation(first_key, batch)]
    second = x[jax.random.permutation(second_key, batch)]
    cut = jax.random.randint(cut_key, (batch, 1), 3 * samples // 8, 5 * samples // 8)
    over = 160 / 2  # samples over which one fades into the other
    fade = jnp.clip((jnp.arange(samples)[None] - cut) / over + 0.5, 0.0, 1.0)
    chosen = is_unknown & (jax.random.uniform(pick_key, (batch,)) < probability)
    return jnp.where(chosen[:, None], first * (1.0 - fade) + second * fade, x)


def augment(
    key: jax.Array,
    audio: jax.Array,
    is_silence: jax.Array,
    noise: jax.Array,
    *,
    max_shift: int = 1600,
    noise_probability: float = 0.8,
    noise_volume: float = 0.1,
    silence_volume: float | None = None,
    max_speed_change: float = 0.0,
    low_db: float = 0.0,
    high_db: float = 0.0,
    equalize_db: float = 0.0,
    is_unknown: jax.Array | None = None,
    splice_probability: float = 0.0,
    room_tone_share: float = 0.0,
) -> jax.Array:
    """Stored samples to training waveforms: splice, speed, shift, gain, noise, silence, equalizer.

    The defaults are the recipe of Peter et al. 2020: shift by up to 100 ms, noise with probability
    0.8 at a volume up to 0.1, and silence made of digital zeros to which the same noise is added. A
    stronger recipe turns on the rest, for example `max_speed_change=0.1, low_db=-10.0, high_db=6.0,
    silence_volume=1.0`.

    Args:
      key: random key.
      audio: int16 or float `[batch, samples]`.
      is_silence: bool `[batch]`, the rows labelled silence; what `audio` holds there is ignored.
      noise: int16 or float `[length]`, see `cut_noise`.
      max_shift: see `time_shift`.
      noise_probability, noise_volume: see `add_noise`.
      silence_volume: rows of silence are noise at a volume up to this, see `make_silence`; None
        leaves them zeros with added noise like any other row.
      max_speed_change: see `resample_speed`.
      low_db, high_db: see `gain`; 0 and 0 turn it off.
      equalize_db: see `equalize`; 0 turns it off.
      is_unknown: bool `[batch]`, rows of other words, for `splice_probability` above 0.
      splice_probability: see `splice`.
      room_tone_share: share of the rows of silence that get the `room_tone` of another clip.

    Returns:
      float32 `[batch, samples]` in [-1, 1].

    Raises:
      ValueError: an argument is out of range.
    """
    speed_key, shift_key, gain_key, noise_key, silence_key = jax.random.split(key, 5)
    stored = x = jnp.where(is_silence[:, None], 0.0, int16_to_float(audio))
    if splice_probability > 0:
        x = splice(jax.random.fold_in(key, 5), x, is_unknown, probability=splice_probability)
    x = resample_speed(speed_key, x, max_change=max_speed_change)
    x = time_shift(shift_key, x, max_shift=max_shift)
    if (low_db, high_db) != (0.0, 0.0):
        x = gain(gain_key, x, low_db=low_db, high_db=high_db)
    if noise_probability > 0 and noise_volume > 0:
        x = add_noise(noise_key, x, noise, probability=noise_probability, max_volume=noise_volume)
    if silence_volume is not None:
        x = make_silence(silence_key, x, is_silence, noise, max_volume=silence_volume)
    check_probability('room_tone_share', room_tone_share)
    if room_tone_share > 0:
        tone_key, choice_key = jax.random.split(jax.random.fold_in(key, 7))
        chosen = is_silence & jax.random.bernoulli(choice_key, room_tone_share, is_silence.shape)
        x = jnp.where(chosen[:, None], room_tone(tone_key, stored), x)
    if equalize_db > 0:
        x = equalize(jax.random.fold_in(key, 6), x, max_db=equalize_db)
    return jnp.clip(x, -1.0, 1.0)
