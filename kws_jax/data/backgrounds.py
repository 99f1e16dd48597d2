"""What is in a recording beside the word: background noise, silence, the tone of the room.

Pure functions on whole batches that run inside jit. Every random quantity is drawn per example. A
function consumes the key that it is given.
"""

import math

import jax
import jax.numpy as jnp


def check_probability(argument: str, value: float) -> None:
    """Raises ValueError naming `argument` unless `value` is in 0..1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f'{argument} must be in 0..1, got {value}')


def check_not_negative(argument: str, value: float) -> None:
    """Raises ValueError naming `argument` unless `value` is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f'{argument} must be finite and at least 0, got {value}; 0 turns it off')


def int16_to_float(x: jax.Array) -> jax.Array:
    """Scales 16-bit samples of any shape to float32 in [-1, 1); floating point passes as float32.

    Raises:
      TypeError: `x` is neither int16 nor floating point.

    >>> int16_to_float(jnp.array([-32768, 0, 16384], jnp.int16))
    Array([-1. ,  0. ,  0.5], dtype=float32)
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    if x.dtype != jnp.int16:
        raise TypeError(f'x must be int16 or floating point, got {x.dtype}; convert it before')
    return x.astype(jnp.float32) / 32768.0


def cut_noise(key: jax.Array, noise: jax.Array, *, batch: int, samples: int) -> jax.Array:
    """Cuts pieces of background noise at uniformly random places.

    Args:
      key: random key.
      noise: int16 or float `[length]`, recordings one after the other; a cut may span two of them.
      batch: number of cuts.
      samples: length of a cut.

    Returns:
      float32 `[batch, samples]` in [-1, 1).

    Raises:
      ValueError: the noise is not one row of at least `samples`.
    """
    if noise.ndim != 1 or noise.shape[0] < samples:
        raise ValueError(
            f'noise must be one row of at least {samples} samples, got shape {list(noise.shape)}; '
            'concatenate the recordings, or repeat a short one'
        )
    start = jax.random.randint(key, (batch,), 0, noise.shape[0] - samples + 1)
    return int16_to_float(
        jax.vmap(lambda first: jax.lax.dynamic_slice(noise, (first,), (samples,)))(start)
    )


def add_noise(
    key: jax.Array,
    x: jax.Array,
    noise: jax.Array,
    *,
    probability: float = 0.8,
    max_volume: float = 0.1,
) -> jax.Array:
    """Mixes background noise into some: `x * (1 - v) + noise * v`, v uniform in [0, max_volume).

    The mixture of the Speech Commands recipe as Peter et al. 2020 release it.

    Args:
      key: random key.
      x: float32 `[batch, samples]`.
      noise: int16 or float `[length]`, see `cut_noise`.
      probability: share of the examples that get any noise.
      max_volume: largest share of noise in an example, at most 1.

    Raises:
      ValueError: an argument is out of range.
    """
    check_probability('probability', probability)
    check_probability('max_volume', max_volume)
    cut_key, volume_key, choice_key = jax.random.split(key, 3)
    batch, samples = x.shape
    volume = jax.random.uniform(volume_key, (batch, 1), maxval=max_volume)
    volume = jnp.where(jax.random.bernoulli(choice_key, probability, (batch, 1)), volume, 0.0)
    return x * (1.0 - volume) + cut_noise(cut_key, noise, batch=batch, samples=samples) * volume


def make_silence(
    key: jax.Array,
    x: jax.Array,
    is_silence: jax.Array,
    noise: jax.Array,
    *,
    max_volume: float = 1.0,
) -> jax.Array:
    """Replaces rows labelled silence by background noise, volume uniform in [0, max_volume).

    Args:
      key: random key.
      x: float32 `[batch, samples]`.
      is_silence: bool `[batch]`.
      noise: int16 or float `[length]`, see `cut_noise`.
      max_volume: 0 makes digital silence.

    Raises:
      ValueError: an argument is out of range.
    """
    check_not_negative('max_volume', max_volume)
    cut_key, volume_key = jax.random.split(key)
    batch, samples = x.shape
    volume = jax.random.uniform(volume_key, (batch, 1), maxval=max_volume)
    silence = cut_noise(cut_key, noise, batch=batch, samples=samples) * volume
    return jnp.where(is_silence[:, None], silence, x)


def room_tone(key: jax.Array, x: jax.Array) -> jax.Array:
    """For every row, what another clip of the batch holds beside its word, as long as the clip.

    The quietest fifth of that clip, played forwards and backwards in turn, at a gain uniform in
    ±10 dB. Rooms, microphones and breath sound unlike noise recordings: networks that know only
    these take a quiet room for words.

    Args:
      key: random key.
      x: float32 `[batch, samples]` of stored recordings, before anything is added to them. Digital
        zeros, which pad short recordings, are not taken for a room where there is anything else.

    Returns:
      float32 `[batch, samples]` in [-1, 1].
    """
    other_key, gain_key = jax.random.split(key)
    batch, samples = x.shape
    blocks, window = 20, 4  # of a fifth, at every twentieth
    size = -(-samples // blocks)
    other = jnp.pad(x, ((0, 0), (0, blocks * size - samples)))
    other = other[jax.random.permutation(other_key, batch)]
    energy = jnp.square(other).reshape(batch, blocks, size).sum(axis=2)
    energy = jnp.where(energy > 0, energy, jnp.inf)
    places = blocks - window + 1
    start = jnp.argmin(sum(energy[:, i : i + places] for i in range(window)), axis=1) * size
    tone = jax.vmap(lambda row, i: jax.lax.dynamic_slice(row, (i,), (window * size,)))(other, start)
    there_and_back = jnp.concatenate([tone, tone[:, ::-1]], axis=1)
    tone = jnp.tile(there_and_back, (1, -(-blocks // (2 * window))))[:, :samples]
    decibel = jax.random.uniform(gain_key, (batch, 1), minval=-10.0, maxval=10.0)
    return jnp.clip(tone * 10.0 ** (decibel / 20.0), -1.0, 1.0)
