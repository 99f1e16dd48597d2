"""ONNX exports run by onnxruntime: the float network as it is, the integer one in its codes."""

import dataclasses

import integer_models
import numpy as np
import pytest
import small

from kws_jax import deploy
from kws_jax.deploy import export_onnx

onnx = pytest.importorskip('onnx', reason='pip install onnx')
onnxruntime = pytest.importorskip('onnxruntime', reason='pip install onnxruntime')


def run(model, audio, output='logits'):
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    return session.run([output], {'samples': audio})[0]


def float_model(front_end, causal):
    """The integer tests' network before it was quantized."""
    model = integer_models.make(front_end, causal=causal)
    return type(model)(
        model.front_end, model.architecture, model.labels, model.params, model.averages
    )


@pytest.mark.parametrize(
    ('front_end', 'causal'),
    [*((name, False) for name in sorted(integer_models.FRONT_ENDS)), ('pairs', True)],
)
def test_a_float_model_gives_its_own_logits(front_end, causal):
    model, audio = float_model(front_end, causal), integer_models.clips()
    found = run(export_onnx.from_float(model), audio)
    expected = np.asarray(model.predictor()(audio))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
@pytest.mark.parametrize(
    ('weight', 'activation', 'causal'), [(1, 2, False), (3, 4, False), (8, 8, False), (3, 4, True)]
)
def test_a_quantized_model_gives_the_logits_of_its_integers(front_end, weight, activation, causal):
    model = integer_models.make(front_end, weight=weight, activation=activation, causal=causal)
    network, audio = deploy.from_model(model), integer_models.clips(30)
    exported, expected = export_onnx.from_network(network), deploy.run(network, audio)
    found = run(exported, audio, 'integers')
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(run(exported, audio), expected * network.logit_step, rtol=1e-6)


def test_weights_of_few_bits_are_stored_in_four():
    by_bits = {}
    for bits in (4, 8):
        network = deploy.from_model(integer_models.make(weight=bits))
        by_bits[bits] = len(export_onnx.from_network(network))
        assert set(export_onnx.stored_bits(network).values()) == {bits}
    weights = network.front_end.taps.size + sum(la.weights.size for la in network.layers().values())
    assert by_bits[8] - by_bits[4] == pytest.approx(weights / 2, abs=64)


def test_what_has_no_onnx_form_is_an_error_that_names_the_layer():
    with pytest.raises(ValueError, match='the model is quantized'):
        export_onnx.from_float(integer_models.make())
    model = small.model()
    fixed = {'name': 'log_mel', 'filters': 8}
    other = type(model)(fixed, model.architecture, model.labels, model.params, model.averages)
    with pytest.raises(ValueError, match='frontend: the fixed features log_mel have no ONNX form'):
        export_onnx.from_float(other)


def test_sums_that_float32_does_not_hold_are_an_error_that_names_the_layer():
    network = deploy.from_model(integer_models.make('abs'))
    front_end = dataclasses.replace(network.front_end, top=2**24)
    with pytest.raises(ValueError, match=r'frontend: its sums may exceed 2\^24 .* in ONNX'):
        export_onnx.from_network(dataclasses.replace(network, front_end=front_end))
