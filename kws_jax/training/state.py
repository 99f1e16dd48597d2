"""What a run carries from step to step, as one pytree."""

from typing import Any

import flax.struct
import jax
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; checkpoints hold all of it.

    Attributes:
      step: int32 scalar, updates done.
      params: weights.
      averages: batch-norm running means and variances.
      opt: optimizer state of the weights.
      arch: arch params `{stage: [layers, candidates]}`, or None.
      arch_opt: optimizer state of the arch params, or None.
      price: state of the search's price, or None.
      quant: quant params `{layer: {weight, activation}}`, or None.
      quant_opt: optimizer state of the quant params, or None.
      ema: exponential moving average of (params, averages), or None.
    """

    step: jax.Array
    params: Any
    averages: Any
    opt: Any
    arch: Any = None
    arch_opt: Any = None
    price: Any = None
    quant: Any = None
    quant_opt: Any = None
    ema: Any = None


def sgd(
    *, lr: float, steps: int, warmup_steps: int = 0, weight_decay: float, momentum: float = 0.9
):
    """SGD with Nesterov momentum, weight decay, linear warm-up (shorter than
    the run) and a cosine down to zero."""
    warmup_steps = min(warmup_steps, steps - 1)
    if warmup_steps > 0:
        schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps, steps)
    else:
        schedule = optax.cosine_decay_schedule(lr, max(steps, 1))
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


def decayed(params):
    """Convolution and classifier weights decay; batch norm, biases and cut-offs do not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'w', params)


def adam_cosine(*, lr: float, steps: int):
    """Adam with a cosine down to zero, for quant params."""
    return optax.adam(optax.cosine_decay_schedule(lr, max(steps, 1)))


def move_average(ema, new, step: jax.Array, decay: float):
    """The moving average after one more step; the decay starts small so that it follows early."""
    rate = jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: rate * a + (1.0 - rate) * b, ema, new)
