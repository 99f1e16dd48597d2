"""Typical values of a float network, and quantizers that start from them."""

import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import quantizers
from kws_jax.quantizers.calibrate import SAMPLE
from kws_jax.quantizers.forms import FORMS


def test_collected_values_hold_both_extremes_and_every_channel():
    # 64 images of 26 x 10 with 128 channels: a plain stride over these would see few channels
    x = np.broadcast_to(np.arange(128.0), (64, 26, 10, 128)).astype(np.float32).copy()
    x[5, 3, 2, 1], x[7, 3, 2, 1] = -50.0, 900.0

    def run(quant, x):
        return quant('a.0.project', 'activation', x)

    (key, values), *rest = quantizers.collect(run, x).items()
    assert key == ('a.0.project', 'activation') and not rest
    assert values.min() == -50 and values.max() == 900
    assert set(values) == {-50, 900, *range(128)}
    assert SAMPLE <= len(values) <= 2 * SAMPLE + 2


def test_weights_are_collected_as_they_are():
    def run(quant, w):
        return quant('stem', 'weight', w)

    w = np.random.default_rng(0).normal(size=(3, 3, 1, 10)).astype(np.float32)
    np.testing.assert_array_equal(quantizers.collect(run, w)['stem', 'weight'], w)


def test_front_end_filters_are_rounded_each_by_its_own_peak():
    taps = jnp.array([[0.5, -20.0], [-1.0, 10.0], [0.25, 0.0]])
    seen = {}

    def run(quant, taps):
        return quant('frontend', 'weight', taps)

    values = quantizers.collect(run, taps)['frontend', 'weight']
    form = FORMS['range_bits']
    params = quantizers.init_quant_params(
        form, {('frontend', 'weight'): values}, {'frontend': {'weight': 3}}
    )
    bits = {'frontend': {'weight': 3}}
    quant = quantizers.make_quant(form, quantizers.fix_bits(form, params, bits), bits)
    seen = quant('frontend', 'weight', taps)  # thirds of each filter's own peak
    np.testing.assert_allclose(seen, [[2 / 3, -20.0], [-1.0, 40 / 3], [1 / 3, 0.0]], rtol=1e-5)


@pytest.mark.parametrize('name', FORMS)
def test_parameters_start_at_the_bits_asked_for_one_set_for_each_tensor(name):
    rng = np.random.default_rng(2)
    samples = {
        ('stem', 'weight'): rng.normal(size=200),
        ('stem', 'activation'): np.abs(rng.normal(size=200)),
        ('input', 'activation'): rng.normal(size=200),
    }
    bits = {'stem': {'weight': 6, 'activation': 3}, 'input': {'activation': 5}}
    form = FORMS[name]
    params = quantizers.init_quant_params(form, samples, bits)
    assert {n: set(own) for n, own in params.items()} == {n: set(own) for n, own in bits.items()}
    for kind in ('weight', 'activation'):
        for layer, width in quantizers.learned_bits(form, params, kind).items():
            assert float(width) == pytest.approx(bits[layer][kind], abs=1e-3)


def test_uniform_bits_tell_weights_from_activations():
    assert quantizers.uniform_bits(
        {'stem': 9}, {'stem': 5, 'input': 7}, weight=1, activation=8
    ) == {
        'stem': {'weight': 1, 'activation': 8},
        'input': {'activation': 8},
    }
