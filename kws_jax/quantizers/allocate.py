"""From learned, real bit-widths to whole ones that meet a budget exactly."""

from collections.abc import Mapping

import numpy as np


def allocate_bits(
    learned: Mapping[str, float],
    sizes: Mapping[str, int],
    *,
    mean: float,
    minimum: int | Mapping[str, int] = 1,
    maximum: int = 8,
) -> dict[str, int]:
    """Whole bit-widths nearest to the learned profile whose weighted mean is at most `mean`.

    One shift is added to all learned widths, as large as the budget allows after rounding; what is
    left of the budget goes to the tensors that rounding took most from.

    Args:
      learned: real bit-width of each tensor.
      sizes: number of values of each tensor.
      mean: the largest mean bit-width allowed, weighted by size.
      minimum: smallest width, one for all or one for each tensor.
      maximum: largest width.

    Raises:
      ValueError: the budget is below what `minimum` bits everywhere take.

    >>> allocate_bits({'a': 2.4, 'b': 3.3}, {'a': 10, 'b': 10}, mean=3)
    {'a': 2, 'b': 4}
    """
    names = list(sizes)
    size = np.array([sizes[n] for n in names], float)
    real = np.array([float(learned[n]) for n in names])
    floor = np.array([minimum if isinstance(minimum, int) else minimum[n] for n in names])
    budget = mean * size.sum() + 1e-9
    if (floor * size).sum() > budget:
        least = (floor * size).sum() / size.sum()
        raise ValueError(
            f'a mean bit-width of {mean:g} is below the smallest possible, {least:.3g}; ask for more'
        )

    def rounded(shift):
        return np.clip(np.round(real + shift), floor, maximum)

    low, high = -16.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        if (rounded(middle) * size).sum() <= budget:
            low = middle
        else:
            high = middle
    bits = rounded(low)
    lost = real + low - bits
    for i in np.argsort(-lost, kind='stable'):
        if bits[i] < maximum and (bits * size).sum() + size[i] <= budget:
            bits[i] += 1
    return {name: int(b) for name, b in zip(names, bits, strict=True)}
