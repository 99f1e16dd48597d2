"""Times of several functions, taken in turn so that a noisy machine moves all of them alike."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

SETTLE = 0.01
LONG = 1.0


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, np.ndarray]:
    """Seconds of each call in every round; a round makes each call in turn.

    Calls of `SETTLE` seconds before the timed one are not counted: threads of what ran before may
    still be spinning, and the caches are full of its data. Without them, what runs after PyTorch
    takes up to twice as long. Calls that took longer than `LONG` seconds go without: it is little
    to them.

    Args:
      calls: functions without arguments; a result of JAX is waited for.
      rounds: how often each is timed.
      warmup: rounds before, which are not timed.

    Returns:
      float64 `[rounds]` for every call.

    Raises:
      ValueError: there is nothing to time.

    >>> seconds = interleaved({'a': lambda: None, 'b': lambda: None}, rounds=3)
    >>> sorted(seconds), seconds['a'].shape
    (['a', 'b'], (3,))
    """
    if not calls or rounds < 1:
        raise ValueError(f'needs calls and at least 1 round, got {len(calls)} and {rounds}')
    names = list(calls)
    seconds, lasted = {name: [] for name in names}, dict.fromkeys(names, 0.0)
    for number in range(warmup + rounds):
        for name in names:
            began = time.perf_counter()
            while lasted[name] < LONG:
                jax.block_until_ready(calls[name]())
                if time.perf_counter() - began >= SETTLE:
                    break
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            lasted[name] = time.perf_counter() - began
            if number >= warmup:
                seconds[name].append(lasted[name])
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(ours: np.ndarray, peer: np.ndarray) -> float:
    """Median over rounds of ours / peer: a slow spell of the machine hits both of a round.

    >>> ratio(np.array([1.0, 10.0, 1.0]), np.array([2.0, 20.0, 4.0]))
    0.5
    """
    return float(np.median(ours / peer))
