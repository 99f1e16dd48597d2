"""LiteRT exports run by ai-edge-litert: the float network as it is, the integer one in int8 and
bit for bit."""

import dataclasses

import integer_models
import numpy as np
import pytest

from kws_jax import deploy
from kws_jax.deploy import export_litert, export_litert_exact
from kws_jax.deploy.execute import image_code

interpreter = pytest.importorskip('ai_edge_litert.interpreter', reason='pip install ai-edge-litert')


def run(content, audio, output='logits'):
    """Logits of all clips at once."""
    made = interpreter.Interpreter(model_content=content)
    (given,) = made.get_input_details()
    (found,) = [detail for detail in made.get_output_details() if detail['name'] == output]
    assert given['dtype'] == np.int16 and list(given['shape']) == [1, 16000]
    made.resize_tensor_input(given['index'], audio.shape)
    made.allocate_tensors()
    made.set_tensor(given['index'], audio)
    made.invoke()
    return made.get_tensor(found['index'])


@pytest.mark.parametrize(
    ('front_end', 'causal'),
    [*((name, False) for name in sorted(integer_models.FRONT_ENDS)), ('pairs', True)],
)
def test_a_float_model_gives_its_own_logits(front_end, causal):
    made, audio = integer_models.make(front_end, causal=causal), integer_models.clips()
    model = type(made)(made.front_end, made.architecture, made.labels, made.params, made.averages)
    expected = np.asarray(model.predictor()(audio))
    found = run(export_litert.from_float(model), audio)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
@pytest.mark.parametrize(
    ('weight', 'activation', 'causal'), [(1, 2, False), (3, 4, False), (8, 8, False), (8, 8, True)]
)
def test_a_quantized_model_gives_nearly_the_logits_of_its_integers(
    front_end, weight, activation, causal
):
    model = integer_models.make(front_end, weight=weight, activation=activation, causal=causal)
    network, audio = deploy.from_model(model), integer_models.clips(30)
    expected = deploy.run(network, audio) * network.logit_step
    found = run(export_litert.from_network(network), audio)
    # few levels turn a sum that is rounded otherwise into another code, and that is heard
    least = {2: 0.7, 4: 0.95, 8: 0.999}[activation]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] >= least
    if activation == 8:
        assert np.abs(found - expected).max() <= 0.08 * np.abs(expected).max()


@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
@pytest.mark.parametrize(
    ('weight', 'activation', 'causal'), [(1, 2, False), (2, 3, True), (4, 8, False), (8, 4, False)]
)
def test_the_exact_form_gives_the_integers_bit_for_bit(front_end, weight, activation, causal):
    model = integer_models.make(front_end, weight=weight, activation=activation, causal=causal)
    network, audio = deploy.from_model(model), integer_models.clips(12)
    content, expected = export_litert_exact.from_network(network), deploy.run(network, audio)
    np.testing.assert_array_equal(run(content, audio, 'integers'), expected)
    np.testing.assert_array_equal(
        run(content, audio), expected.astype(np.float32) * np.float32(network.logit_step)
    )


def test_logits_beyond_what_float32_holds_are_exact_too():
    network, audio = deploy.from_model(integer_models.make(activation=8)), integer_models.clips(12)
    last = network.classifier
    # as if the map were a thousand times as large
    head = dataclasses.replace(
        network.head, rescale=dataclasses.replace(network.head.rescale, base=6), high=2**20
    )
    weights = np.where(last.weights < 0, -127, 127).astype(np.int8)
    network = dataclasses.replace(
        network, head=head, classifier=dataclasses.replace(last, weights=weights)
    )
    expected = deploy.run(network, audio)
    assert np.abs(expected).max() > 2**24 and (expected % 2).any()
    found = run(export_litert_exact.from_network(network), audio, 'integers')
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
def test_a_code_is_reached_at_its_threshold_and_not_one_below(front_end):
    made = deploy.from_model(integer_models.make(front_end, activation=4)).front_end
    least = export_litert_exact.thresholds(made)
    codes = np.arange(-made.high + 1, made.high + 1)
    assert least.shape == (made.filters, len(codes)) and (np.diff(least, axis=1) >= 0).all()
    bottom = -(2**31) if made.magnitude == 'plain' and not made.pairs else 0
    for i, wanted in enumerate(codes):
        at = least[:, i]
        reached = at < 2**62
        assert (image_code(made, np.minimum(at, 2**31)) >= wanted)[reached].all()
        assert (image_code(made, np.maximum(at - 1, bottom)) < wanted)[at > bottom].all()


def test_numbers_that_do_not_fit_64_bits_are_an_error_that_names_the_layer():
    network = deploy.from_model(integer_models.make())
    # a multiplier of 2^30 times what it was
    rescale = dataclasses.replace(network.head.rescale, base=network.head.rescale.base - 30)
    head = dataclasses.replace(network.head, rescale=rescale, fraction=0)
    with pytest.raises(ValueError, match='head: .* too large to be exact in LiteRT'):
        export_litert_exact.from_network(dataclasses.replace(network, head=head))
    falling = dataclasses.replace(network.front_end, factor=-network.front_end.factor)
    with pytest.raises(ValueError, match='frontend: image codes that fall with the response'):
        export_litert_exact.from_network(dataclasses.replace(network, front_end=falling))


def test_weights_have_a_byte_each_and_the_file_says_what_it_holds():
    network = deploy.from_model(integer_models.make(weight=2, activation=4))
    content = export_litert.from_network(network)
    assert content[4:8] == b'TFL3'
    weights = [layer.weights for name, layer in network.layers().items() if name != 'classifier']
    least = network.front_end.taps.size + sum(w.size for w in weights)
    assert least <= len(content) <= least + 40_000
    stored = export_litert.stored_bits(network)
    assert stored['frontend'] == 8 and stored['classifier'] == 32
    assert {bits for name, bits in stored.items() if name != 'classifier'} == {8}


def test_what_has_no_form_is_named():
    quantized = integer_models.make()
    with pytest.raises(ValueError, match='the model is quantized'):
        export_litert.from_float(quantized)


def test_sums_that_float32_does_not_hold_are_an_error_that_names_the_layer():
    network = deploy.from_model(integer_models.make('abs'))
    front_end = dataclasses.replace(network.front_end, top=2**24)
    with pytest.raises(ValueError, match=r'frontend: its sums may exceed 2\^24 .* in LiteRT'):
        export_litert_exact.from_network(dataclasses.replace(network, front_end=front_end))
