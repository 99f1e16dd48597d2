"""Integer networks: close to what was trained, equal in every form, stored at their own bits."""

import dataclasses
import json
import math

import integer_models
import numpy as np
import pytest
import small

from kws_jax import deploy, quantizers
from kws_jax.deploy import execute, packed, stream
from kws_jax.deploy.network import Multipliers

ALL = sorted(integer_models.FRONT_ENDS)


# ------------------------------------------------------------------------------- arithmetic


def test_multipliers_are_within_half_a_unit_of_twelve_bits_and_survive_coding():
    values = np.exp(np.random.default_rng(0).uniform(np.log(1e-6), np.log(1e-1), 500))
    nearest = Multipliers.nearest(values)
    np.testing.assert_allclose(nearest.values(), values, rtol=2.0**-12)
    again = Multipliers.decode(nearest.encode(), nearest.base)
    np.testing.assert_array_equal(again.values(), nearest.values())


def test_multipliers_just_below_a_power_of_two_round_up_to_it():
    assert Multipliers.nearest(np.array([1.0 - 1e-6])).values() == [1.0]


def test_a_dead_channel_gets_the_least_multiplier_there_is():
    values = Multipliers.nearest(np.array([0.5, 0.0])).values()
    assert values[0] == 0.5 and 0 < values[1] < 1e-7


@pytest.mark.parametrize(
    ('value', 'shift', 'expected'), [(5, 1, 3), (-5, 1, -2), (4, 3, 1), (3, 3, 0), (7, 0, 7)]
)
def test_rounding_takes_halves_up(value, shift, expected):
    assert execute.rounded_shift(np.int64(value), shift) == expected


def test_square_roots_are_exact_around_squares():
    roots = np.array([0, 1, 2, 3, 1000, 2**20 + 7, 2**30 - 1], np.int64)
    for near in (-1, 0, 1):
        values = roots * roots + near
        values = values[values >= 0]
        expected = [math.isqrt(int(v)) for v in values]
        np.testing.assert_array_equal(execute.integer_sqrt(values), expected)


def test_logarithms_are_exact_at_powers_of_two_and_interpolated_between():
    powers = np.array([1, 1024, 2048, 2**40])
    np.testing.assert_array_equal(execute.log2(powers, 10), 65536 * np.array([-10, 0, 1, 30]))
    values = np.unique(np.geomspace(1, 2**40, 3000).astype(np.int64))
    # a chord of log2 over 1/256 is at most log2(e) / 8 / 256^2 below it: 0.2 units; the table and
    # the interpolation are each rounded once
    error = execute.log2(values, 10) / 65536 - (np.log2(values) - 10)
    assert -1.3 < 65536 * error.min() and 65536 * error.max() < 1.1


# ---------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize('front_end', ALL)
@pytest.mark.parametrize('form', ['step_range', 'range_bits'])
def test_integers_say_what_the_trained_network_says(front_end, form):
    model = integer_models.make(front_end, form, weight=8, activation=8)
    network, audio = deploy.from_model(model), integer_models.clips()
    trained = np.asarray(model.predictor()(audio))
    logits = deploy.run(network, audio) * network.logit_step
    # a code that lies at the edge of two may fall to either side, which moves what follows a little
    assert np.abs(logits - trained).max() < 0.03 * trained.std()


@pytest.mark.parametrize('front_end', ALL)
def test_image_codes_are_those_of_the_trained_network(front_end):
    model = integer_models.make(front_end)
    network, audio = deploy.from_model(model), integer_models.clips()
    seen = {}
    rounded = quantizers.make_quant(
        quantizers.get_form('step_range'), model.quant['params'], model.quant['bits']
    )

    def quant(name, kind, x):
        seen[name, kind] = rounded(name, kind, x)
        return seen[name, kind]

    from kws_jax import network as network_lib
    from kws_jax.data.backgrounds import int16_to_float

    network_lib.apply(
        model.params,
        model.averages,
        int16_to_float(audio),
        front_end=model.make_front_end(),
        architecture=model.architecture,
        quant=quant,
    )
    step = np.exp2(float(model.quant['params']['frontend']['activation']['log_step']))
    expected = np.round(np.asarray(seen['frontend', 'activation']) / step)
    got = execute.image(network.front_end, audio)
    assert (got != expected).mean() < 0.005 and np.abs(got - expected).max() <= 1


@pytest.mark.parametrize('front_end', ALL)
@pytest.mark.parametrize(('weight', 'activation'), [(1, 2), (2, 3), (8, 8)])
def test_the_jitted_form_gives_the_same_numbers(front_end, weight, activation):
    network = deploy.from_model(
        integer_models.make(front_end, weight=weight, activation=activation)
    )
    audio = integer_models.clips()
    np.testing.assert_array_equal(execute.jitted(network)(audio), deploy.run(network, audio))


def test_the_largest_sum_is_that_of_extreme_codes_with_the_signs_of_the_weights():
    network = deploy.from_model(integer_models.make('abs'))
    most, stem, head = network.largest_sums(), network.stem, network.head
    assert list(most) == ['frontend', *list(network.layers())[:-1]]
    last = network.blocks[-1].project
    for channel in range(3):
        x = np.zeros((1, 3, 5, 1), np.int64)
        x[0, :, 1:4, 0] = np.sign(stem.weights[..., channel]) * network.front_end.high
        assert execute.convolve(stem, x)[0, 0, 1, channel] == most['stem'][channel]
        x = np.sign(head.weights[:, channel]).astype(np.int64) * max(-last.low, last.high)
        sums = execute.convolve(head, x[None, None, None])
        assert sums[0, 0, 0, channel] == most['head'][channel]


def test_sums_that_float32_does_not_hold_are_an_error_that_names_the_layer():
    network = deploy.from_model(integer_models.make('abs'))
    top = 2**24 * network.front_end.top // max(network.largest_sums()['frontend']) + 1
    too_large = dataclasses.replace(network.front_end, top=top)
    network = dataclasses.replace(network, front_end=too_large)
    audio = np.zeros(32000, np.int16)
    for run in (execute.jitted, stream.jitted_step, lambda n: stream.logits(n, audio)):
        with pytest.raises(ValueError, match=r'frontend: its sums may exceed 2\^24 .* in JAX'):
            run(network)


def test_negative_batch_norm_scales_turn_the_signs_of_weights():
    model = integer_models.make(weight=8, activation=8)
    scale = model.params['stem']['scale']
    turned = model.params | {'stem': model.params['stem'] | {'scale': scale.at[1].multiply(-1.0)}}
    turned = dataclasses.replace(model, params=turned)
    network, before = deploy.from_model(turned), deploy.from_model(model)
    np.testing.assert_array_equal(
        network.stem.weights[..., 1].astype(int), -before.stem.weights[..., 1].astype(int)
    )
    audio = integer_models.clips()
    trained = np.asarray(turned.predictor()(audio))
    logits = deploy.run(network, audio) * network.logit_step
    assert np.abs(logits - trained).max() < 0.03 * trained.std()


def test_clips_of_another_length_or_type_are_refused():
    network = deploy.from_model(integer_models.make())
    with pytest.raises(ValueError, match=r'int16 \[clips, 16000\], got int16 \(1, 8000\)'):
        deploy.run(network, np.zeros((1, 8000), np.int16))
    with pytest.raises(ValueError, match='got float32'):
        deploy.run(network, np.zeros((1, 16000), np.float32))


@pytest.mark.parametrize('form', ['step_range', 'range_bits'])
@pytest.mark.parametrize('front_end', ['pairs', 'log', 'none'])
def test_a_snapped_model_says_in_floating_point_what_its_integers_say(front_end, form):
    model = deploy.snap(integer_models.make(front_end, form, weight=3, activation=3))
    network, audio = deploy.from_model(model), small.tones(150, seed=21)[0]
    logits = execute.jitted(network)(audio) * network.logit_step
    apart = np.abs(logits - np.asarray(model.predictor()(audio))).max(axis=1)
    assert (apart < 1e-4).mean() > 0.8  # at other clips a value lies between two codes


def test_snapping_changes_little_and_nothing_the_second_time():
    model = integer_models.make(weight=8, activation=8)
    once = deploy.snap(model)
    audio = integer_models.clips()
    before, after = (np.asarray(m.predictor()(audio)) for m in (model, once))
    assert 0 < np.abs(after - before).max() < 0.05 * before.std()
    network, again = deploy.from_model(once), deploy.from_model(deploy.snap(once))
    assert (
        packed.stream(network) == packed.stream(again) == packed.stream(deploy.from_model(model))
    )


def test_models_without_an_integer_form_are_left_as_they_are():
    assert deploy.snap(small.model()) is small.model()


# ------------------------------------------------------------------------- what has no integers


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match='float one and has no integers; take a quantized one'):
        deploy.from_model(small.model())


def test_a_quantizer_without_steps_is_refused(monkeypatch):
    monkeypatch.setattr(quantizers, 'FORMS', dict(quantizers.FORMS))
    monkeypatch.setattr(quantizers.forms, 'FORMS', quantizers.FORMS)
    free = quantizers.FORMS['step_range']._replace(name='free', step=None)
    quantizers.FORMS['free'] = free
    model = integer_models.make()
    model = dataclasses.replace(model, quant=model.quant | {'form': 'free'})
    with pytest.raises(ValueError, match='quantizer free has no `step`'):
        deploy.from_model(model)


def test_several_hops_a_frame_are_refused():
    model = integer_models.make('log')
    model = dataclasses.replace(model, front_end=model.front_end | {'hops': 2})
    with pytest.raises(ValueError, match='hops=2 has no integer form'):
        deploy.from_model(model)


# ------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize('front_end', ALL)
@pytest.mark.parametrize('weight', [1, 2, 8])
def test_the_stream_is_as_long_as_the_costs_say_and_comes_back_whole(front_end, weight):
    model = integer_models.make(front_end, weight=weight)
    network = deploy.from_model(model)
    assert len(packed.stream(network)) == model.costs()['flash_bytes']
    content = packed.pack(network, {'recipe': 'none'})
    again, facts = packed.unpack(content)
    assert facts['recipe'] == 'none' and again.labels == small.NAMES
    assert packed.pack(again, {'recipe': 'none'}) == content
    assert packed.unpack(packed.compress(content))[1] == facts
    audio = integer_models.clips(2)
    np.testing.assert_array_equal(deploy.run(again, audio), deploy.run(network, audio))


def test_bits_lie_where_the_documentation_says():
    network = deploy.from_model(integer_models.make(weight=3))
    content = packed.pack(network)
    assert content[:4] == b'KWSI' and int.from_bytes(content[4:6], 'little') == 2
    assert int.from_bytes(content[8:12], 'little') == len(content)
    text = int.from_bytes(content[16:20], 'little')
    start = 48 + 16 * (3 + 3 * 3)
    assert json.loads(content[start : start + text])['labels'] == list(small.NAMES)
    stream = int.from_bytes(content[start + text :], 'little')
    # behind the word, 16 multipliers, 8 factors and 8 offsets: the first tap of the first filter
    first = 32 + 16 * 32 + 2 * 8 * 16
    code = stream >> first & 7
    assert code - (code >> 2 << 3) == network.front_end.taps[0, 0]


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda c: b'RIFF' + c[4:], 'does not begin with KWSI'),
        (lambda c: c[:40], 'not a packed network'),
        (lambda c: packed.compress(c)[:-20], 'damaged'),
        (lambda c: packed.compress(c[:-1]), 'damaged'),
        (lambda c: c[:4] + b'\x09' + c[5:], 'version 9; this code reads 2'),
        (lambda c: c[:-1], 'damaged'),
        (lambda c: c[:-9] + bytes([c[-9] ^ 1]) + c[-8:], 'altered'),
    ],
)
def test_damaged_files_are_refused(damage, message):
    content = packed.pack(deploy.from_model(integer_models.make()))
    with pytest.raises(ValueError, match=message):
        packed.unpack(damage(content))
