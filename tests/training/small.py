"""A small network, a small data set and short configurations, for tests that train."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import frontends, network
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.dataset import Dataset
from kws_jax.data.labels import LabelSet
from kws_jax.data.pools import Pools
from kws_jax.layers.basic import BN_MOMENTUM
from kws_jax.model import Model
from kws_jax.space import SearchSpace

FRONT_END = {'name': 'sinc', 'filters': 8, 'stride': 640, 'compression': 'log'}
SPACE = {
    'stem': {'channels': 4, 'kernel': (3, 3), 'stride': (2, 2)},
    'stages': (
        {
            'name': 'a',
            'channels': 6,
            'layers': 2,
            'stride': 2,
            'candidates': ('e1k3', 'e2k3', 'identity'),
        },
    ),
    'head_channels': 8,
}
NAMES = ('low', 'high', 'silence')
AUGMENT = {'max_shift': 800, 'noise_probability': 0.0, 'silence_volume': 1.0}


def space(*, layers=2) -> SearchSpace:
    """Searched layers of six channels."""
    shape = frontends.make(**FRONT_END).image_shape
    stages = [SPACE['stages'][0] | {'layers': layers}]
    whole = SPACE | {'image_shape': shape, 'classes': len(NAMES), 'stages': stages}
    return SearchSpace.from_json(whole)


def tones(count, *, seed=0):
    """Noisy tones int16 [count, 16000] of 400 or 1,500 Hz, and their labels int32 [count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count).astype(np.int32)
    hertz = np.where(labels == 0, 400.0, 1500.0) * rng.uniform(0.8, 1.2, count)
    phase = 2 * np.pi * hertz[:, None] * np.arange(16000)[None] / 16000
    audio = 4000 * rng.uniform(0.3, 1, (count, 1)) * np.sin(phase)
    return (audio + 800 * rng.normal(size=phase.shape)).astype(np.int16), labels


def batches(steps, batch=4, *, seed=0):
    """What `training_source` gives: leaves [steps, batch, ...], the last clip silence."""
    audio, labels = tones(steps * batch, seed=seed)
    audio, labels = audio.reshape(steps, batch, -1), labels.reshape(steps, batch)
    silent = np.broadcast_to(np.arange(batch) == batch - 1, labels.shape)
    return {'audio': audio, 'label': np.where(silent, 2, labels), 'is_silence': np.array(silent)}


def noise():
    """Background noise int16 [32000]."""
    return np.random.default_rng(5).integers(-2000, 2000, 32000).astype(np.int16)


def data(*, clips=24) -> Dataset:
    """A data set of tones and silence: `clips` of each split in a row."""
    audio, labels = tones(3 * clips, seed=9)
    rows = np.arange(3 * clips, dtype=np.int32).reshape(3, clips)
    splits = ('training', 'validation', 'testing')
    none = np.zeros(0, np.int32)
    return Dataset(
        labels=LabelSet(NAMES, NAMES[:2], 2, None),
        audio=audio,
        pools=Pools(
            {s: (r, labels[r]) for s, r in zip(splits, rows, strict=True)},
            dict.fromkeys(splits, none),
            none,
        ),
        noise={split: [noise()] for split in splits},
        unknown_percent=0.0,
        silence_percent=10.0,
        fingerprint='tones',
    )


def drawn(shapes, *, seed=0):
    """Weights and averages of these shapes; drawn here, as the draws of `init` compile slowly."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        spread = {'w': 0.4, 'scale': 0.1, 'bias': 0.1, 'b': 0.1}.get(path[-1].key, 0.0)
        centre = float(path[-1].key in ('scale', 'var'))
        return jnp.asarray(centre + spread * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def model(choices=('e2k3', 'e1k3'), *, seed=0) -> Model:
    """An untrained float model; its batch norms hold the averages of some tones."""
    architecture = space().architecture(choices)
    front_end = frontends.make(**FRONT_END)
    shapes = jax.eval_shape(
        lambda key: network.init(key, front_end, architecture), jax.random.key(0)
    )
    params, averages = drawn(shapes, seed=seed)

    @jax.jit
    def run(params, averages, audio):
        return network.apply(
            params,
            averages,
            int16_to_float(audio),
            front_end=front_end,
            architecture=architecture,
            train=True,
        )[1]

    moved = run(params, averages, tones(16, seed=3)[0])
    rate = 1 - BN_MOMENTUM  # one step towards the statistics of the batch; go all the way
    averages = jax.tree.map(lambda old, new: old + (new - old) / rate, averages, moved)
    return Model(FRONT_END, architecture, NAMES, params, averages)


@contextlib.contextmanager
def quick_compilation():
    """Context in which XLA optimizes little: a few steps are quicker than their compilation."""
    jax.config.update('jax_disable_most_optimizations', True)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', False)
