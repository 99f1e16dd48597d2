"""Where quantizers start: typical values of every tensor of a float network."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.quantizers.forms import Form, is_signed, weight_scale

SAMPLE = 4096


def collect(run: Callable, *inputs) -> dict[tuple[str, str], np.ndarray]:
    """Typical values of every weight and activation.

    Args:
      run: `run(quant, *inputs)` runs the network on some clips with that quantizer; traced once.
      *inputs: weights, averages and clips.

    Returns:
      For each (name, kind) a weight as it is, or at least 4,096 values of an activation (or all),
      taken evenly and from every channel, the extremes among them.
    """

    def traced(*inputs):
        seen = {}

        def quant(name, kind, x):
            if kind == 'weight':
                seen[f'{name}/{kind}'] = x
                return x
            flat = x.reshape(-1)
            every = max(1, flat.shape[0] // SAMPLE)
            # a stride that shares a factor with the channels would never see some of them
            while math.gcd(every, x.shape[-1]) > 1:
                every -= 1
            extremes = jnp.stack([flat.min(), flat.max()])
            seen[f'{name}/{kind}'] = jnp.concatenate([flat[::every], extremes])
            return x

        run(quant, *inputs)
        return seen

    values = jax.jit(traced)(*inputs)
    return {tuple(key.rsplit('/', 1)): np.asarray(v) for key, v in values.items()}


def init_quant_params(form: Form, samples: dict[tuple[str, str], np.ndarray], bits: dict) -> dict:
    """Quantizer parameters that fit `samples` with least squared error.

    Args:
      form: how to round.
      samples: what `collect` returned.
      bits: `{layer: {'weight': int, 'activation': int}}` to start from.

    Returns:
      `{layer: {'weight': {...}, 'activation': {...}}}`.
    """
    params = {}
    for (name, kind), sample in samples.items():
        if kind == 'weight':
            sample = sample / weight_scale(form, name, sample)
        params.setdefault(name, {})[kind] = form.init(
            sample, bits=bits[name][kind], signed=is_signed(name, kind), is_weight=kind == 'weight'
        )
    return params


def uniform_bits(
    weight_sites, activation_sites, *, weight: int | None, activation: int | None
) -> dict:
    """One bit-width for all weights and one for all activations, or None for learned ones.

    >>> uniform_bits({'stem': 90}, {'stem': 5, 'input': 9}, weight=4, activation=None)
    {'stem': {'weight': 4, 'activation': None}, 'input': {'activation': None}}
    """
    bits = {name: {'weight': weight} for name in weight_sites}
    for name in activation_sites:
        bits.setdefault(name, {})['activation'] = activation
    return bits
