"""Models: saved and loaded without losing a bit, refused when damaged, costed, run as networks."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from kws_jax import costs, frontends, network, quantizers
from kws_jax import model as model_lib
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.model import Model, quantized_taps


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


def sites(model):
    return (
        costs.weight_sites(
            model.architecture, front_end_weights=quantized_taps(model.make_front_end())
        ),
        costs.activation_sites(model.architecture),
    )


def quantized(*, weight=3, activation=5) -> Model:
    """`small.model` rounded, each tensor with a range of its own."""
    model = small.model()
    weights, activations = sites(model)
    bits = quantizers.uniform_bits(weights, activations, weight=weight, activation=activation)
    bits['stem']['weight'] = 1
    rng = np.random.default_rng(7)
    samples = {(n, k): np.abs(rng.normal(size=30)) * 3 for n, own in bits.items() for k in own}
    form = quantizers.FORMS['step_range']
    params = quantizers.fix_bits(form, quantizers.init_quant_params(form, samples, bits), bits)
    return dataclasses.replace(
        model, quant={'form': 'step_range', 'bits': bits, 'params': params}, card={'seed': 3}
    )


MODELS = {'float': small.model, 'quantized': quantized}


def same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('kind', MODELS)
def test_a_model_is_saved_and_loaded_bit_by_bit(kind, tmp_path):
    model = MODELS[kind]()
    loaded = model_lib.load(model_lib.save(model, tmp_path / 'new' / 'folder'))
    same_trees((loaded.params, loaded.averages), (model.params, model.averages))
    for field in ('front_end', 'architecture', 'labels', 'card'):
        assert getattr(loaded, field) == getattr(model, field)
    if kind == 'quantized':
        same_trees(loaded.quant['params'], model.quant['params'])
        assert loaded.quant['bits'] == model.quant['bits']
        assert loaded.quant['form'] == 'step_range'
    else:
        assert loaded.quant is None
    clips = small.tones(3)[0]
    np.testing.assert_array_equal(loaded.predictor()(clips), model.predictor()(clips))
    assert loaded.costs() == model.costs()


@pytest.mark.parametrize('kind', MODELS)
def test_the_predictor_is_the_network_on_int16_clips(kind):
    model = MODELS[kind]()
    quant = network.no_quant
    if model.quant is not None:
        form = quantizers.FORMS['step_range']
        quant = quantizers.make_quant(form, model.quant['params'], model.quant['bits'])

    @jax.jit
    def apply(params, audio):
        return network.apply(
            params,
            model.averages,
            audio,
            front_end=model.make_front_end(),
            architecture=model.architecture,
            quant=quant,
        )[0]

    clips = small.tones(3)[0]
    expected = apply(model.params, jnp.asarray(clips, jnp.float32) / 32768)
    np.testing.assert_allclose(model.predictor()(clips), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(int16_to_float(clips), clips.astype(np.float32) / 32768)


def test_the_predictor_of_a_rounded_model_rounds():
    clips = small.tones(3)[0]
    assert not np.allclose(quantized().predictor()(clips), small.model().predictor()(clips))


def test_a_front_end_without_weights_is_saved_and_loaded(tmp_path):
    front_end = {'name': 'mfcc', 'filters': 10}
    made = frontends.make(**front_end)
    space = small.SPACE | {'image_shape': made.image_shape, 'classes': 3}
    architecture = model_lib.Architecture.from_json(
        {'space': space, 'choices': ['e2k3', 'identity']}
    )
    shapes = jax.eval_shape(lambda key: network.init(key, made, architecture), jax.random.key(0))
    model = Model(front_end, architecture, small.NAMES, *small.drawn(shapes))
    assert model.params['frontend'] == {}
    loaded = model_lib.load(model_lib.save(model, tmp_path))
    same_trees((loaded.params, loaded.averages), (model.params, model.averages))
    assert 'frontend' not in loaded.bits('weight') and 'frontend' in loaded.bits('activation')


def test_costs_are_those_of_an_independent_count():
    model, facts = quantized(), quantized().costs()
    # e2k3 then e1k3 on 4 -> 6 -> 6 channels, 8 filters of 400 symmetric taps, 3 classes
    weights = {
        'frontend': 8 * 200,
        'stem': 9 * 4,
        'a.0.expand': 4 * 8,
        'a.0.depthwise': 9 * 8,
        'a.0.project': 8 * 6,
        'a.1.depthwise': 9 * 6,
        'a.1.project': 6 * 6,
        'head': 6 * 8,
        'classifier': 8 * 3,
    }
    assert model.bits('weight') == {name: 1 if name == 'stem' else 3 for name in weights}
    bits = sum(count * (1 if name == 'stem' else 3) for name, count in weights.items())
    channels = 4 + 8 + 8 + 6 + 6 + 6 + 8 + 3
    # each output channel a multiplier and an offset of 16 bits, each filter of the front end 32
    # bits for its column and 32 for its norm, each tensor a word of 32, and the one residual
    stored = bits + 32 * channels + 64 * 8 + 32 * (len(weights) + 1)
    assert facts['flash_bytes'] == -(-stored // 8)
    assert facts['mean_weight_bits'] == pytest.approx(bits / sum(weights.values()))
    assert facts['mean_activation_bits'] == pytest.approx(5)
    # two cut-offs a filter; scale and offset of each channel but the filters' and the classes'
    own = sum(weights.values()) - 8 * 200 + 2 * 8
    assert facts['parameters'] == own + 2 * (channels - 3) + 3
    leaves = jax.tree.leaves(model.params)
    assert facts['parameters'] == sum(x.size for x in leaves)


def test_a_float_model_has_32_bits_everywhere():
    facts = small.model().costs()
    assert set(small.model().bits('weight').values()) == {32}
    assert facts['mean_weight_bits'] == facts['mean_activation_bits'] == 32
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize('missing', ['model.json', 'model.npz'])
def test_a_missing_file_is_named(missing, tmp_path):
    model_lib.save(small.model(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f'holds no model: {missing} is missing'):
        model_lib.load(tmp_path)


@pytest.mark.parametrize('name', ['model.json', 'model.npz'])
@pytest.mark.parametrize('damage', ['cut', 'changed', 'empty'])
def test_a_damaged_file_is_refused(name, damage, tmp_path):
    model_lib.save(small.model(), tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == 'changed':
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: {'cut': len(content) // 2, 'empty': 0}.get(damage)])
    with pytest.raises(ValueError, match='is damaged.*copy it again'):
        model_lib.load(tmp_path)


def test_files_of_two_models_are_refused_together(tmp_path):
    model_lib.save(small.model(), tmp_path / 'a')
    model_lib.save(small.model(seed=1), tmp_path / 'b')
    os.replace(tmp_path / 'a' / 'model.npz', tmp_path / 'b' / 'model.npz')
    with pytest.raises(ValueError, match='is not the one that model.json was written with'):
        model_lib.load(tmp_path / 'b')


def test_another_format_is_refused(tmp_path):
    model_lib.save(small.model(), tmp_path)
    path = tmp_path / 'model.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 99}))
    with pytest.raises(ValueError, match='format 99, this version reads 2; load it with'):
        model_lib.load(tmp_path)


@pytest.mark.parametrize('failing', [1, 2])
def test_a_save_that_stops_midway_leaves_whole_files_and_nothing_else(
    failing, tmp_path, monkeypatch
):
    first = small.model()
    model_lib.save(first, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace, calls = os.replace, []

    def stops(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(model_lib.os, 'replace', stops)
    with pytest.raises(KeyboardInterrupt):
        model_lib.save(small.model(seed=1), tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(after) == set(before)
    if failing == 1:
        assert after == before
    else:  # new arrays beside old facts: whole files, but not one model
        with pytest.raises(ValueError, match='damaged'):
            model_lib.load(tmp_path)


def test_a_card_that_json_cannot_hold_leaves_the_saved_model_alone(tmp_path):
    model_lib.save(small.model(), tmp_path)
    with pytest.raises(TypeError):
        model_lib.save(dataclasses.replace(small.model(seed=1), card={'when': object()}), tmp_path)
    same_trees(model_lib.load(tmp_path).params, small.model().params)
