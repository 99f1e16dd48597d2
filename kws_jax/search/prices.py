"""What a search pays for cost: how the gradients of loss and of cost are put together.

A price returns two factors: the arch params move along
`loss_factor * d loss / d arch + cost_factor * d cost / d arch`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Price(NamedTuple):
    """A price on the expected cost.

    Attributes:
      init: `init() -> state`, a float32 scalar.
      factors: `factors(state, *, loss, cost, loss_norm, cost_norm) -> (loss_factor, cost_factor,
        state)`, all float32 scalars; `loss` is in nats, `cost` in the unit of the cost table, the
        norms are those of the two gradients to the arch params.
    """

    init: Callable
    factors: Callable


def mul_log(*, beta: float, reference: float) -> Price:
    """`loss * (log cost / log reference)^beta` (ProxylessNAS as used by Peter et al. 2020).

    It depends on the unit of cost: a million MACs and one mega-MAC give different searches.

    Args:
      beta: exponent; 0 ignores the cost.
      reference: a cost above 1, in the unit of the cost table.
    """

    def factors(state, *, loss, cost, loss_norm, cost_norm):
        del loss_norm, cost_norm
        ratio = jnp.log(cost) / jnp.log(reference)
        slope = beta * ratio ** (beta - 1.0) / (cost * jnp.log(reference))
        return ratio**beta, loss * slope, state

    return Price(lambda: jnp.zeros(()), factors)


def linear(*, weight: float, reference: float) -> Price:
    """`loss + weight * cost / reference`.

    Args:
      weight: nats that a cost of `reference` is worth.
      reference: in the unit of the cost table.
    """

    def factors(state, *, loss, cost, loss_norm, cost_norm):
        del loss, cost, loss_norm, cost_norm
        return jnp.ones(()), jnp.full((), weight / reference), state

    return Price(lambda: jnp.zeros(()), factors)


def target(*, cost: float, proportional: float = 20.0, integral: float = 0.5) -> Price:
    """Steers the expected cost to `cost`, whatever its unit and whatever the scale of the loss.

    Both gradients are brought to norm one; the price is what a controller sets:
    `proportional * r + sum of integral * r` with `r = log(expected / cost)`, within ±2. Above the
    target cost gets dearer, below it cheaper, until loss and price balance on it.

    Args:
      cost: the target, in the unit of the cost table.
      proportional, integral: gains of the controller.
    """
    # With both norms one, a price of one outweighs any loss; twice that leaves room for what Adam's
    # scaling does. More would only fill Adam's second moments and slow down what follows.
    bound, most = 2.0, 1.0

    def factors(state, *, loss, cost: jax.Array, loss_norm, cost_norm):
        del loss
        off = jnp.log(cost / goal)
        summed = jnp.clip(state + integral * off, -most, most)
        # The arch params start out slow, so the sum may only grow where the price is not at its
        # bound; what it gathers on the way would carry the cost far past the target.
        free = jnp.abs(proportional * off + summed) < bound
        state = jnp.where(free, summed, state)
        weight = jnp.clip(proportional * off + state, -bound, bound)
        tiny = 1e-12
        return 1.0 / (loss_norm + tiny), weight / (cost_norm + tiny), state

    goal = cost
    return Price(lambda: jnp.zeros(()), factors)


def make(name: str, *, reference: float, beta: float = 1.0, weight: float = 1.0) -> Price:
    """A price by name: 'target' (the default of every config), 'mul_log' or 'linear'.

    Args:
      name: of the price.
      reference: target or reference cost, in the unit of the cost table.
      beta: of 'mul_log'.
      weight: of 'linear'.

    Raises:
      ValueError: another name, or a reference that is not positive (above 1 for 'mul_log').
    """
    if not reference > (name == 'mul_log'):
        least = '1, where the logarithm changes sign' if name == 'mul_log' else '0'
        raise ValueError(f'reference must be above {least}, got {reference}')
    if name == 'target':
        return target(cost=reference)
    if name == 'mul_log':
        return mul_log(beta=beta, reference=reference)
    if name == 'linear':
        return linear(weight=weight, reference=reference)
    raise ValueError(f"price must be 'target', 'mul_log' or 'linear', got {name!r}")
