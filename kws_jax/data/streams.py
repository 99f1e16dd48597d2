"""Long recordings for evaluation: words at known times in running background noise."""

from typing import NamedTuple

import numpy as np

from kws_jax.data.cache import SAMPLE_RATE
from kws_jax.detection import Event

_FADE = SAMPLE_RATE // 50  # 20 ms at the edges of a clip, so that it does not click
_FRAME = SAMPLE_RATE // 100


class Stream(NamedTuple):
    """A recording and what is said in it.

    Attributes:
      audio: int16 `[samples]` at 16 kHz.
      events: every word in order, other words as `unknown`.
    """

    audio: np.ndarray
    events: tuple[Event, ...]

    @property
    def hours(self) -> float:
        """Its length."""
        return len(self.audio) / SAMPLE_RATE / 3600


def word_bounds(clip: np.ndarray) -> tuple[int, int]:
    """First and last sample of the word in a clip: 10 ms frames within 20 dB of the loudest.

    >>> clip = np.zeros(16000, np.int16)
    >>> clip[4000:6000] = 1000
    >>> word_bounds(clip)
    (4000, 6080)
    """
    whole = len(clip) // _FRAME * _FRAME
    energy = np.square(clip[:whole].reshape(-1, _FRAME).astype(np.float64)).mean(axis=1)
    loud = np.flatnonzero(energy >= 0.01 * energy.max())
    return int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME


def _background(clips, samples, rng, volume):
    """Seconds of noise one after the other, each fading into the next."""
    length = clips.shape[1]
    step = length - _FADE
    ramp = np.ones(length, np.float32)
    ramp[:_FADE] = np.linspace(0, 1, _FADE, endpoint=False)
    ramp[-_FADE:] = 1 - ramp[:_FADE]
    out = np.zeros(samples + length, np.float32)
    gain = 1.0
    for number, at in enumerate(range(0, samples, step)):
        if number % 10 == 0:
            gain = rng.uniform(0.0, volume)
        out[at : at + length] += gain * ramp * clips[rng.integers(len(clips))]
    return out[:samples]


def build(
    audio: np.ndarray,
    labels: np.ndarray,
    names,
    *,
    seconds: float,
    seed: int,
    gap: float = 2.0,
    keyword_share: float = 0.5,
    noise_volume: float = 1.0,
) -> Stream:
    """A stream of recorded clips, the same for the same seed.

    Args:
      audio, labels: int16 `[clips, 16000]` and int32 `[clips]`, as `Dataset.evaluation` gives them.
      names: of the labels; `silence` clips are the background, `unknown` the other words.
      seconds: length.
      seed: of everything that is drawn: which clips, when, how loud (words -6 to +6 dB).
      gap: mean pause between two clips, in seconds, beside half a second that is always there.
      keyword_share: of the words; the others are `unknown`.
      noise_volume: the noise's largest; it is drawn anew every ten seconds.

    Raises:
      ValueError: there are no clips of noise, of keywords or of other words; or no time for any.
    """
    names = list(names)
    kinds = {
        'noise': np.flatnonzero(labels == (names.index('silence') if 'silence' in names else -1)),
        'other words': np.flatnonzero(
            labels == (names.index('unknown') if 'unknown' in names else -1)
        ),
    }
    kinds['keywords'] = np.setdiff1d(np.arange(len(labels)), np.concatenate(list(kinds.values())))
    for kind, rows in kinds.items():
        if not len(rows):
            raise ValueError(f'no clips of {kind}; a stream needs noise, other words and keywords')
    samples, length = int(seconds * SAMPLE_RATE), audio.shape[1]
    if samples < 4 * length:
        raise ValueError(f'seconds must be at least {4 * length / SAMPLE_RATE:g}, got {seconds:g}')
    rng = np.random.default_rng([seed, samples])
    mixed = _background(audio[kinds['noise']], samples, rng, noise_volume)
    fade = np.ones(length, np.float32)
    fade[:_FADE] = np.linspace(0, 1, _FADE, endpoint=False)
    fade[-_FADE:] = fade[:_FADE][::-1]
    events, at = [], 2 * length  # nothing is said in the first window
    while at + length <= samples:
        kind = 'keywords' if rng.random() < keyword_share else 'other words'
        row = int(rng.choice(kinds[kind]))
        mixed[at : at + length] += 10 ** (rng.uniform(-6, 6) / 20) * fade * audio[row]
        first, last = word_bounds(audio[row])
        events.append(Event(names[labels[row]], at + first, at + last))
        at += length + int((0.5 + rng.exponential(gap)) * SAMPLE_RATE)
    mixed = np.clip(np.round(mixed), -32768, 32767).astype(np.int16)
    return Stream(mixed, tuple(events))
