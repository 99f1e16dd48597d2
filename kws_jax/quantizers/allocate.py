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
    targets = _shifted(real, size, floor, maximum, budget)
    # slots[k]: of the widths so far that take about k bins, those nearest to the targets
    unit, room = max(spare, 1e-9) / BINS, spare + 1e-9 * budget
    slots = BINS + len(names) + 1
    distance, spent = np.full(slots, np.inf), np.zeros(slots)
    distance[0] = 0.0
    choices = []
    for target, count, low in zip(targets, size, floor, strict=True):
        best, used, choice = np.full(slots, np.inf), np.zeros(slots), np.zeros(slots, int)
        for bits in range(low, maximum + 1):
            taken = round(count * (bits - low) / unit)
            if taken >= slots:
                break
            now = spent[: slots - taken] + count * (bits - low)
            gone = np.where(now <= room, distance[: slots - taken] + (bits - target) ** 2, np.inf)
            better = gone < best[taken:]
            best[taken:][better], used[taken:][better] = gone[better], now[better]
            choice[taken:][better] = bits
        distance, spent = best, used
        choices.append(choice)
    enough = np.isfinite(distance) & (spent >= spare - SHORT * budget)
    if enough.any():
        at = int(np.argmin(np.where(enough, distance, np.inf)))
    else:
        at = int(np.argmax(np.where(np.isfinite(distance), spent, -1.0)))
    whole = {}
    for name, choice, count, low in reversed(list(zip(names, choices, size, floor, strict=True))):
        whole[name] = int(choice[at])
        at -= round(count * (whole[name] - low) / unit)
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


def greedy_bits(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], *, mean: float
) -> dict[str, int]:
    """Whole bit-widths within a budget, one bit after the other taken where it hurts least.

    Begins with each tensor's largest width and, until the mean is met, lowers by one the tensor
    whose loss grows least for each bit of storage that this frees. What the last one frees beyond
    need is given back to those that still fit in.

    Args:
      losses: of each tensor, the loss at each width that it may have (consecutive widths).
      sizes: number of values of each tensor.
      mean: the largest mean bit-width allowed, weighted by size.

    Raises:
      ValueError: the budget is below what the smallest widths take.

    >>> losses = {'a': {2: 0.9, 3: 0.1}, 'b': {2: 0.3, 3: 0.1}}
    >>> greedy_bits(losses, {'a': 10, 'b': 10}, mean=2.5)
    {'a': 3, 'b': 2}
    """
    bits = {name: max(losses[name]) for name in sizes}
    left = mean * sum(sizes.values()) * (1 + 1e-9) - sum(bits[n] * sizes[n] for n in sizes)

    def gain(name, low):
        """What the bit above `low` is worth, for each bit of storage."""
        return (losses[name][low] - losses[name][low + 1]) / sizes[name]

    while left < 0:
        lower = [name for name in sizes if bits[name] - 1 in losses[name]]
        if not lower:
            least = sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
            raise ValueError(f'mean must be at least {least:.3g} bits, got {mean:g}')
        name = min(lower, key=lambda name: gain(name, bits[name] - 1))
        bits[name] -= 1
        left += sizes[name]
    while fits := [n for n in sizes if bits[n] + 1 in losses[n] and sizes[n] <= left]:
        name = max(fits, key=lambda name: gain(name, bits[name]))
        bits[name] += 1
        left -= sizes[name]
    return bits
