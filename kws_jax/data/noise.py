"""Background noise: the part of each split, seconds cut from it, and seconds put together again."""

import hashlib

import numpy as np

from kws_jax.data import index as index_lib
from kws_jax.data.cache import SAMPLES

_SHARE = {'training': 0.8, 'validation': 0.1, 'testing': 0.1}  # of every recording, in this order
_HOP = SAMPLES // 2  # by which the seconds that TFDS cuts overlap


def split(noise):
    """Gives every split its own part of each recording.

    The first 80 % serve training, the next 10 % validation and the last 10 % testing.

    Args:
      noise: list of int16 [n].

    Returns:
      {split: list of int16 [m]}, no sample in two of them.

    >>> [len(parts[0]) for parts in split([np.zeros(105, np.int16)]).values()]
    [84, 10, 11]
    """
    parts = {name: [] for name in index_lib.SPLITS}
    for samples in noise:
        start = 0
        for name, share in _SHARE.items():
            end = len(samples) if name == 'testing' else start + int(share * len(samples))
            parts[name].append(samples[start:end])
            start = end
    return parts


def cut(noise, count, rng):
    """Cuts seconds from recordings at random places, at volumes uniform in 0..1.

    Args:
      noise: list of int16 [n], any lengths above 0; shorter ones than a second are repeated. Long
        recordings are drawn more often, as their length says.
      count: int.
      rng: numpy Generator.

    Returns:
      int16 [count, 16000]; zeros when there is no noise.
    """
    cuts = np.zeros((count, SAMPLES), np.int16)
    if not noise:
        return cuts
    length = np.array([len(n) for n in noise], np.float64)
    for second, which in zip(
        cuts, rng.choice(len(noise), count, p=length / length.sum()), strict=True
    ):
        source = noise[which]
        if len(source) < SAMPLES:
            source = np.resize(source, SAMPLES)
        start = rng.integers(len(source) - SAMPLES + 1)
        second[:] = np.rint(source[start : start + SAMPLES] * rng.uniform())
    return cuts


def join(seconds):
    """Puts the half-overlapping seconds that TFDS cut noise into together again.

    Args:
      seconds: int16 [n, 16000], in any order.

    Returns:
      list of int16 [m]: every longest run in which the second half of each is the first half of the
      next.

    >>> tape = np.arange(40000, dtype=np.uint16).astype(np.int16)
    >>> [len(x) for x in join(np.stack([tape[8000:24000], tape[16000:32000], tape[:16000]]))]
    [32000]
    """
    heads = [hashlib.blake2b(np.ascontiguousarray(s[:_HOP])).digest() for s in seconds]
    tails = [hashlib.blake2b(np.ascontiguousarray(s[_HOP:])).digest() for s in seconds]
    starting = {}
    for i, head in enumerate(heads):
        starting.setdefault(head, i)
    follows = [starting.get(tail) for tail in tails]
    followed = {after for i, after in enumerate(follows) if after is not None and after != i}
    order = [i for i in range(len(seconds)) if i not in followed] + sorted(followed)
    joined, used = [], set()
    for at in order:
        run = []
        while at is not None and at not in used:
            used.add(at)
            run.append(seconds[at][:_HOP])
            last, at = at, follows[at]
        if run:
            joined.append(np.concatenate([*run, seconds[last][_HOP:]]))
    return joined
