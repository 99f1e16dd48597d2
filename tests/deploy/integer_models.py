"""Small quantized models of several front ends and forms, for the tests of integer networks."""

import dataclasses
import functools

import jax
import numpy as np
import small

from kws_jax import costs, frontends, network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.layers.basic import BN_MOMENTUM
from kws_jax.model import Model, quantized_taps
from kws_jax.quantizers.calibrate import collect, init_quant_params
from kws_jax.space import SearchSpace

FRONT_ENDS = {
    'pairs': {'name': 'sinc', 'filters': 8, 'stride': 320, 'quadrature': True},
    'log': {'name': 'sinc', 'filters': 8, 'stride': 320, 'compression': 'log'},
    'abs': {'name': 'sinc', 'filters': 6, 'kernel': 401, 'stride': 320, 'compression': 'abs'},
    'relu': {'name': 'conv', 'filters': 6, 'stride': 320, 'compression': 'relu'},
    'none': {'name': 'conv', 'filters': 6, 'stride': 320, 'compression': 'none'},
    'odd_pairs': {
        'name': 'sinc',
        'filters': 6,
        'kernel': 401,
        'stride': 320,
        'quadrature': True,
        'compression': 'log_plain',
    },
}


@functools.cache
def _float(front_end, causal):
    """An untrained float model with batch norms of some tones, and the values of its tensors."""
    spec = FRONT_ENDS[front_end]
    functions = frontends.make(**spec)
    space = SearchSpace.from_json(
        small.SPACE
        | {
            'image_shape': functions.image_shape,
            'classes': len(small.NAMES),
            'causal': causal,
            'stages': [
                small.SPACE['stages'][0] | {'candidates': ('e1k3', 'e2k3', 'e3k5'), 'layers': 3}
            ],
        }
    )
    architecture = space.architecture(['e2k3', 'e1k3', 'e3k5'])
    shapes = jax.eval_shape(
        lambda key: network.init(key, functions, architecture), jax.random.key(0)
    )
    params, averages = small.drawn(shapes, seed=3)
    params['frontend'] = functions.init(jax.random.key(1))
    audio = int16_to_float(small.tones(16, seed=3)[0])
    run = functools.partial(network.apply, front_end=functions, architecture=architecture)
    moved = jax.jit(functools.partial(run, train=True))(params, averages, audio)[1]
    rate = 1 - BN_MOMENTUM
    averages = jax.tree.map(lambda old, new: old + (new - old) / rate, averages, moved)
    samples = collect(lambda quant, p, a, x: run(p, a, x, quant=quant), params, averages, audio)
    return Model(spec, architecture, small.NAMES, params, averages), samples


@functools.cache
def make(
    front_end='pairs', form='step_range', weight=4, activation=4, inputs=8, causal=False
) -> Model:
    """An untrained model with batch norms of some tones and quantizers that fit them."""
    model, samples = _float(front_end, causal)
    rounding = quantizers.get_form(form)
    bits = quantizers.uniform_bits(
        costs.weight_sites(
            model.architecture, front_end_weights=quantized_taps(model.make_front_end())
        ),
        costs.activation_sites(model.architecture),
        weight=weight,
        activation=activation,
    )
    bits['input']['activation'] = inputs
    own = quantizers.fix_bits(rounding, init_quant_params(rounding, samples, bits), bits)
    quant = {'form': form, 'bits': bits, 'params': own}
    return dataclasses.replace(model, quant=quant)


def clips(count=6) -> np.ndarray:
    """Tones, noise at full scale, silence: int16 `[count + 2, 16000]`."""
    rng = np.random.default_rng(11)
    loud = rng.integers(-32768, 32768, (1, 16000)).astype(np.int16)
    return np.concatenate([small.tones(count, seed=12)[0], loud, np.zeros((1, 16000), np.int16)])
