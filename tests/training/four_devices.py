"""Takes one float, one quantized and one search step on one device and on all; prints, as JSON, how
many devices there are and the largest difference of each step's results."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import small

from kws_jax import costs, frontends, quantizers
from kws_jax.search import prices
from kws_jax.search.step import arch_adam, init_search_state, make_search_chunk, supernet_sgd
from kws_jax.training import quantized_runs
from kws_jax.training.devices import Placement
from kws_jax.training.state import adam_cosine, sgd
from kws_jax.training.steps import Quantization, Recipe, init_train_state, make_train_chunk

RECIPE = Recipe(augment=small.AUGMENT)


def train_chunk(model, optimizer, **options):
    """The chunk of a training of `model`."""
    return make_train_chunk(
        front_end=model.make_front_end(),
        architecture=model.architecture,
        optimizer=optimizer,
        recipe=RECIPE,
        noise=jnp.asarray(small.noise()),
        **options,
    )


def float_step():
    """State and chunk of a float training."""
    model, optimizer = small.model(('e2k3', 'identity')), sgd(lr=0.1, steps=10, weight_decay=1e-4)
    chunk = train_chunk(model, optimizer)
    return init_train_state(model.params, model.averages, optimizer, recipe=RECIPE), chunk


def quantized_step():
    """State and chunk of a training whose bit-widths are learned."""
    model, form = small.model(('e2k3', 'identity')), quantizers.FORMS['step_range']
    sites, optimizer = quantized_runs._sites(model), sgd(lr=0.1, steps=10, weight_decay=1e-4)
    start = quantizers.uniform_bits(*sites.values(), weight=8, activation=8)
    quantization = Quantization(
        form=form,
        bits=quantizers.uniform_bits(*sites.values(), weight=None, activation=None),
        optimizer=adam_cosine(lr=0.01, steps=10),
        **sites,
    )
    chunk = train_chunk(model, optimizer, quantization=quantization)
    state = init_train_state(
        model.params,
        model.averages,
        optimizer,
        recipe=RECIPE,
        quant=quantized_runs.start_quantizers(model, data=small.data(), form=form, bits=start),
        quant_optimizer=quantization.optimizer,
    )
    return state, chunk


def search_step():
    """State and chunk of a search whose first step already moves the arch params."""
    front_end, space = frontends.make(**small.FRONT_END), small.space(layers=1)
    shared = {
        'front_end': front_end,
        'space': space,
        'price': prices.make('target', reference=70_000.0),
        'optimizer': supernet_sgd(lr=0.1, warmup_lr=0.1, warmup_steps=1, steps=9, weight_decay=0.0),
        'arch_optimizer': arch_adam(lr=0.1, warmup_steps=0, steps=9, every=1),
    }
    chunk = make_search_chunk(
        table=costs.macs_table(space, front_end_macs=front_end.macs),
        recipe=RECIPE,
        noise=jnp.asarray(small.noise()),
        warmup_steps=0,
        arch_every=1,
        **shared,
    )
    start = functools.partial(init_search_state, **shared)
    empty = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(start, jax.random.key(0))
    )
    params, averages = small.drawn((empty.params, empty.averages))
    return empty.replace(params=params, averages=averages), chunk


def difference(state, chunk):
    """Largest difference between one and all devices, relative to each array's largest value."""
    batches = small.batches(1, batch=8)
    clips, labels = small.tones(8, seed=4)
    batches |= {'validation_audio': clips[None], 'validation_label': labels[None]}
    results = []
    for placement in (Placement(jax.local_devices()[:1]), Placement()):
        placed = placement.batches(batches)
        assert len(placed['audio'].sharding.device_set) == len(placement.devices)
        results.append(jax.device_get(chunk(placement.state(jax.device_get(state)), placed)))
    before, after = (jax.tree.leaves((s.params, s.arch)) for s in (state, results[0][0]))
    moved = [float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)]
    assert sum(x > 1e-4 for x in moved) > len(moved) / 4  # or there was nothing to compare

    def relative(a, b):
        return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-3))

    return max(jax.tree.leaves(jax.tree.map(relative, *results)))


if __name__ == '__main__':
    steps = {'float': float_step, 'quantized': quantized_step, 'search': search_step}
    found = {name: difference(*step()) for name, step in steps.items()}
    print(json.dumps(found | {'devices': jax.local_device_count()}))
