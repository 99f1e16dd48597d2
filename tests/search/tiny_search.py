"""Fixtures for a search small enough to compile in seconds; tests name it in `pytest_plugins`."""

import jax
import numpy as np
import pytest

from kws_jax import frontends
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs


@pytest.fixture(scope='module')
def quick_compilation():
    """Has XLA compile fast rather than well."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def front_end():
    """Returns free filters that make an image of 20 frames and 8 filters.

    Without the logarithm, whose slope near zero would turn rounding into large differences.
    """
    return frontends.make('conv', filters=8, stride=800, compression='relu')


@pytest.fixture(scope='session')
def space():
    """Returns two layers of 4 candidates, the second with identity: 20 architectures."""
    return SearchSpace(
        image_shape=(20, 8),
        classes=4,
        stem=Stem(channels=3, kernel=(3, 3), stride=(2, 2)),
        stages=(Stage('a', channels=4, layers=2, stride=2, candidates=mbconvs((1, 2), (3, 5))),),
        head_channels=5,
    )


@pytest.fixture(scope='session')
def architectures(space):
    """Returns every architecture of the space."""
    first, second = (range(len(layer.choices)) for layer in space.layers)
    return [space.architecture((i, j)) for i in first for j in second]


@pytest.fixture(scope='session')
def batches():
    """Returns a function that makes batches of noise for a number of search steps."""

    def make(steps, batch=4, seed=0):
        rng = np.random.default_rng(seed)
        audio = rng.integers(-9000, 9000, (2, steps, batch, 16000)).astype(np.int16)
        label = rng.integers(0, 4, (2, steps, batch)).astype(np.int32)
        return {
            'audio': audio[0],
            'label': label[0],
            'is_silence': rng.random((steps, batch)) < 0.2,
            'validation_audio': audio[1],
            'validation_label': label[1],
        }

    return make
