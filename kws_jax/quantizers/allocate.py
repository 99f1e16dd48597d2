"""From learned, real bit-widths to whole ones that meet a budget exactly."""

from collections.abc import Mapping

import numpy as np

BINS = 5_000  # of the bits that the budget leaves above the smallest widths
SHORT = 0.01  # the share of the budget that may be left over


def allocate_bits(
    learned: Mapping[str, float],
    sizes: Mapping[str, int],
    *,
    mean: float,
    minimum: int | Mapping[str, int] = 1,
    maximum: int = 8,
) -> dict[str, int]:
    """Whole bit-widths nearest to the learned profile whose weighted mean is at most `mean`.

    One shift is added to all learned widths so that they meet the budget. Of the whole widths that
    take 99 to 100 % of it, those with the least squared distance to the shifted ones are taken
    (dynamic programming over tensors); where none do, those that take most of it.

    Args:
      learned: real bit-width of each tensor.
      sizes: number of values of each tensor.
      mean: the largest mean bit-width allowed, weighted by size.
      minimum: smallest width, one for all or one for each tensor.
      maximum: largest width.

    Raises:
      ValueError: the budget is below what `minimum` bits everywhere take.

    >>> allocate_bits({'a': 2.4, 'b': 3.8}, {'a': 10, 'b': 10}, mean=3)
    {'a': 2, 'b': 4}
    >>> allocate_bits({'a': 3.0, 'b': 3.0}, {'a': 30, 'b': 10}, mean=2.5)
    {'a': 2, 'b': 4}
    """
    names = list(sizes)
    size = np.array([sizes[n] for n in names], float)
    real = np.array([float(learned[n]) for n in names])
    floor = np.array([minimum if isinstance(minimum, int) else minimum[n] for n in names])
    budget = mean * size.sum()
    spare = budget - (floor * size).sum()
    if spare < -1e-9 * size.sum():
        raise ValueError(
            f'mean must be at least {(floor * size).sum() / size.sum():.3g} bits, the smallest '
            f'widths, got {mean:g}; ask for more'
        )
    # Costs are rounded up to bins, so that no budget is ever exceeded.
    unit = max(spare, 1e-9) / BINS
    least = np.where(np.arange(BINS + 1) == 0, 0.0, np.inf)  # distance of those that take k bins
    choices = []
    targets = _shifted(real, size, floor, maximum, budget)
    for target, count, low in zip(targets, size, floor, strict=True):
        best, choice = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, int)
        for bits in range(low, maximum + 1):
            taken = int(np.ceil(count * (bits - low) / unit - 1e-6))
            if taken > BINS:
                break
            distance = least[: BINS + 1 - taken] + (bits - target) ** 2
            better = distance < best[taken:]
            best[taken:][better] = distance[better]
            choice[taken:][better] = bits
        least = best
        choices.append(choice)
    enough = max(int(np.ceil((spare - SHORT * budget) / unit)), 0)
    if np.isfinite(least[enough:]).any():
        at = enough + int(np.argmin(least[enough:]))
    else:
        at = int(np.flatnonzero(np.isfinite(least))[-1])
    whole = {}
    for name, choice, count, low in reversed(list(zip(names, choices, size, floor, strict=True))):
        whole[name] = int(choice[at])
        at -= int(np.ceil(count * (whole[name] - low) / unit - 1e-6))
    return {name: whole[name] for name in names}


def _shifted(real, size, floor, maximum, budget):
    """`real` plus one number, within floor and maximum, so that it takes the budget if it can."""
    low, high = -16.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        if (np.clip(real + middle, floor, maximum) * size).sum() <= budget:
            low = middle
        else:
            high = middle
    return np.clip(real + low, floor, maximum)
