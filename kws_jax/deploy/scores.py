"""Integer logits to scores in integers, as in the C runtime; thresholds are held against them.

A score is a class's share of powers of two, whose exponents have 16 bits behind the point, by a
table of 33 entries; in units of `1 / SCORE_ONE`. It is the softmax to within 0.0002.
"""

import functools
import math

import numpy as np

SCORE_ONE = 1 << 15
_EXPONENT, _STEPS = 16, 5  # bits behind the point of an exponent; log2 of the table's intervals


@functools.cache
def exp2_table() -> np.ndarray:
    """`65536 * 2^(-i / 32)` for i from 0 to 32, rounded, int64."""
    return np.rint(2.0 ** (16 - np.arange((1 << _STEPS) + 1) / (1 << _STEPS))).astype(np.int64)


def score_multiplier(logit_step: float) -> tuple[int, int]:
    """`(mantissa, shift)`: a unit of a logit is `mantissa / 2^shift` units of an exponent.

    Raises:
      ValueError: a step so small or large that 64 bits do not do.

    >>> score_multiplier(math.log(2.0))
    (1073741824, 14)
    """
    unit = logit_step * math.log2(math.e) * (1 << _EXPONENT)
    shift = 30 - math.floor(math.log2(unit))
    if not 0 <= shift < 64:
        raise ValueError(f'logits in steps of {logit_step:g} have no scores in integers')
    return round(unit * 2.0**shift), shift


def scores(logits: np.ndarray, logit_step: float) -> np.ndarray:
    """Scores int64 `[..., classes]`, in units of `1 / SCORE_ONE`.

    Args:
      logits: int32 `[..., classes]`.
      logit_step: of the network they are from.

    >>> scores(np.array([[5, 4, 5]]), math.log(2.0))
    array([[13107,  6554, 13107]])
    """
    mantissa, shift = score_multiplier(logit_step)
    logits = logits.astype(np.int64)
    below = (logits.max(axis=-1, keepdims=True) - logits).astype(np.uint64)
    exponent = (below * np.uint64(mantissa) >> np.uint64(shift)).astype(np.int64)
    whole, rest = exponent >> _EXPONENT, exponent & ((1 << _EXPONENT) - 1)
    between = _EXPONENT - _STEPS
    at, rest = rest >> between, rest & ((1 << between) - 1)
    table = exp2_table()
    share = table[at] - ((table[at] - table[at + 1]) * rest >> between) >> np.minimum(whole, 17)
    total = share.sum(axis=-1, keepdims=True)
    return (share * SCORE_ONE + total // 2) // total
