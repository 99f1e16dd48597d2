"""Whole runs: budgets that are met, bits that are learned, who teaches, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from kws_jax import costs, quantizers
from kws_jax.model import Model, quantized_taps
from kws_jax.quantizers.forms import FORMS, MAX_BITS, is_signed
from kws_jax.space import table1_space
from kws_jax.training import quantized_runs
from kws_jax.training.evaluation import predict_all
from kws_jax.training.metrics import read_metrics
from kws_jax.training.runs import float_logits

QUANT = {
    'form': 'range_bits',
    'seed': 1,
    'batch': 9,
    'epochs': 1,
    'lr': 0.01,
    'quant_lr': 0.3,
    'weight_decay': 0.0,
    'batch_statistics': 0.5,
    'recipe': {'label_smoothing': 0.0, 'augment': small.AUGMENT, 'distill': 0.5},
    'start_bits': 5,
    'learn_epochs': 2,
    'learn_lr': 0.02,
    'profile': 'learned',
    'price': 'linear',
    'weight_lambda': 4.0,
    'activation_lambda': 4.0,
}


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


# ---- budgets, on networks of the real sizes

FRONT_END = {'name': 'sinc', 'filters': 60}


def table1_model(architecture):
    """A model of an architecture, without weights: its costs need none."""
    return Model(FRONT_END, architecture, tuple('0123456789ab'), {}, {})


def learned_params(model, rng):
    """Parameters of the form `range_bits` with a random learned profile, and the tensor sizes."""
    sites = quantized_runs._sites(model)
    params = {}
    for kind in ('weight', 'activation'):
        for name in sites[f'{kind}_sites']:
            bits = np.float32(np.clip(rng.normal(4, 2), 2, MAX_BITS))
            params.setdefault(name, {})[kind] = {'bits': bits}
    return params, sites


def stored_bytes(model, bits):
    taps = quantized_taps(model.make_front_end())
    each = {name: own['weight'] for name, own in bits.items() if 'weight' in own}
    return (
        costs.stored_bits(
            model.architecture, weight_bits=each, front_end_weights=taps, front_end_filters=60
        )
        / 8
    )


@pytest.mark.parametrize('flash_bytes', [20_000, 24_321.5, 30_000])
def test_a_flash_budget_is_met_to_2_percent_and_never_exceeded(flash_bytes):
    rng = np.random.default_rng(0)
    space = table1_space(image_shape=(98, 60))
    for choices in (['e2k5'] * 6, ['e3k3', 'identity', 'e1k7', 'e4k3', 'e2k3', 'identity']):
        model = table1_model(space.architecture(choices))
        mean = quantized_runs.flash_to_mean_bits(model, flash_bytes)
        for _ in range(3):
            params, sites = learned_params(model, rng)
            budget = {'weight': mean, 'activation': 3.3}
            bits = quantized_runs.whole_bits(FORMS['range_bits'], params, sites, budget)
            stored = stored_bytes(model, bits)
            least_kept = min(flash_bytes, stored_bytes(model, everywhere(sites, 8)))
            assert 0.98 * least_kept <= stored <= flash_bytes
            activations = {name: bits[name]['activation'] for name in sites['activation_sites']}
            assert 0.98 * 3.3 <= costs.mean_bits(activations, sites['activation_sites']) <= 3.3


def everywhere(sites, bits):
    return quantizers.uniform_bits(*sites.values(), weight=bits, activation=bits)


def test_too_little_flash_is_an_error_that_says_how_much_is_enough():
    model = table1_model(table1_space(image_shape=(98, 60)).architecture(['e2k5'] * 6))
    with pytest.raises(
        ValueError, match='flash_bytes must be at least [0-9]+ .* got 9000'
    ) as error:
        quantized_runs.flash_to_mean_bits(model, 9000)
    least = int(str(error.value).split('at least ')[1].split()[0])
    assert 2 <= quantized_runs.flash_to_mean_bits(model, least) < 2.001
    assert stored_bytes(model, everywhere(quantized_runs._sites(model), 2)) == pytest.approx(
        least, abs=1
    )


def test_without_a_budget_each_width_is_rounded_within_its_bounds():
    form = FORMS['step_range']
    learned = {'stem': {'weight': 2.4, 'activation': 1.3}, 'head': {'weight': 7.6}}

    def params(bits, signed):
        levels = 2 ** (bits - signed) - 1
        return {'log_step': jnp.float32(0), 'log_range': jnp.float32(np.log2(levels))}

    given = {
        name: {k: params(b, k == 'weight') for k, b in own.items()} for name, own in learned.items()
    }
    sites = {'weight_sites': {'stem': 9, 'head': 5}, 'activation_sites': {'stem': 7}}
    assert quantized_runs.whole_bits(form, given, sites, None) == {
        'stem': {'weight': 2, 'activation': 1},
        'head': {'weight': 8},
    }


def test_a_budget_has_a_price_above_it_only():
    price = quantized_runs.budget_price(mean=3.0, strength=2.0)
    np.testing.assert_allclose([price(jnp.float32(b)) for b in (1, 3, 3.5, 5)], [0, 0, 0.5, 8])
    slopes = [jax.grad(price)(jnp.float32(b)) for b in (2, 3.5, 5)]
    np.testing.assert_allclose(slopes, [0, 2, 8])


# ---- refusals


@pytest.mark.parametrize('weight, activation', [(0, 4), (4, 9), (17, 4), (4, 2.5)])
def test_a_width_out_of_range_is_named(weight, activation, tmp_path):
    wrong = 'weight' if weight != 4 else 'activation'
    with pytest.raises(ValueError, match=rf'{wrong} must be in 1\.\.8 bits \(or 16\), got'):
        quantized_runs.quantize_fixed(
            small.model(),
            weight=weight,
            activation=activation,
            data=None,
            config=QUANT,
            workdir=tmp_path,
            name='x',
        )


def test_samples_and_other_signed_activations_may_have_widths_of_their_own():
    sites = {
        'weight_sites': {'stem': 90, 'iii.0.project': 8},
        'activation_sites': dict.fromkeys(['input', 'frontend', 'stem', 'iii.0.project'], 1),
    }
    assert quantized_runs.fixed_widths(sites, weight=1, activation=2, samples=8, signed=5) == {
        'input': {'activation': 8},
        'frontend': {'activation': 5},
        'stem': {'weight': 1, 'activation': 2},
        'iii.0.project': {'weight': 1, 'activation': 5},
    }
    assert quantized_runs.check_widths(1, 2, {'input_bits': 8}) == (8, 2)
    assert quantized_runs.check_widths(1, 2, {'signed_bits': 5}) == (2, 5)


def test_an_unknown_price_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="price must be 'budget' or 'linear', got 'free'"):
        quantized_runs.quantize_trained(
            small.model(), data=None, config=QUANT | {'price': 'free'}, workdir=tmp_path, name='x'
        )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'profile': 'guess'}, "profile must be one of learned, .*, got 'guess'"),
        ({'profile': 'random'}, 'the profile random needs a budget: price=budget'),
        ({'start_bits': 0}, 'start_bits=0 starts from widths within a budget: price=budget'),
    ],
)
def test_a_profile_that_cannot_be_had_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        quantized_runs.check_trained_bits(QUANT | changes)


@pytest.mark.parametrize('profile', ['sensitivity', 'random', 'uniform'])
def test_widths_that_were_not_learned_meet_the_budget(profile, tmp_path):
    data, model = small.data(), start()
    budget = {'price': 'budget', 'mean_weight_bits': 3.0, 'mean_activation_bits': 4.0}
    config = QUANT | budget | {'form': 'step_range', 'strength': 1.0, 'profile': profile}
    config |= {'learn_epochs': 1, 'epochs': 1}
    done = quantized_runs.quantize_trained(
        model, data=data, config=config, workdir=tmp_path, name='x'
    )
    # learning and fine-tuning in one: as many epochs as a learned profile has
    per_epoch = quantized_runs.steps_per_epoch(data, config['batch'])
    finished = json.loads((tmp_path / 'finetune' / 'finished.json').read_text())
    assert finished['step'] == 2 * per_epoch and not (tmp_path / 'learn').exists()
    for kind, mean in (('weight', 3.0), ('activation', 4.0)):
        bits, sizes = done.bits(kind), quantized_runs._sites(model)[f'{kind}_sites']
        assert costs.mean_bits(bits, sizes) <= mean
        if profile == 'sensitivity':  # no tensor can have one more
            more = [bits | {n: b + 1} for n, b in bits.items() if b < 8]
            assert all(costs.mean_bits(b, sizes) > mean for b in more)
        if profile == 'uniform':
            assert set(bits.values()) == {mean}


def test_learning_may_start_from_the_greedy_widths(tmp_path):
    """Where nothing moves the widths, they are still there after an epoch."""
    data, model = small.data(), start()
    budget = {'price': 'budget', 'mean_weight_bits': 3.0, 'mean_activation_bits': 4.0}
    config = QUANT | budget | {'form': 'step_range', 'strength': 1.0, 'learn_epochs': 1}
    config |= {'start_bits': 0, 'quant_lr': 0.0}
    _, given = (
        quantized_runs.quantize_trained(
            model,
            data=data,
            config=config | {'profile': profile},
            workdir=tmp_path / profile,
            name='x',
        )
        for profile in ('learned', 'sensitivity')
    )
    (after,) = [
        record
        for record in read_metrics(tmp_path / 'learned' / 'learn' / 'metrics.jsonl')
        if record['kind'] == 'eval'
    ]
    for kind in ('weight', 'activation'):
        bits = given.bits(kind)
        assert len(set(bits.values())) > 1
        for name, width in bits.items():
            assert after[f'bits/{kind}/{name}'] == pytest.approx(width, abs=1e-3)


def test_rounding_harms_less_the_more_bits_there_are():
    data, model = small.data(), start()
    form = FORMS['step_range']
    bits = quantizers.uniform_bits(*quantized_runs._sites(model).values(), weight=4, activation=4)
    params = quantized_runs.start_quantizers(model, data=data, form=form, bits=bits)
    losses = quantized_runs._rounding_losses(model, params, form, data=data)
    assert set(losses) == {(site, kind) for site, own in params.items() for kind in own}
    for (site, kind), by_width in losses.items():
        assert min(by_width) == (2 if is_signed(site, kind) else 1) and max(by_width) == 8
        assert by_width[8] < 1e-3  # nothing of note is lost at 8 bits
        assert by_width[8] <= by_width[min(by_width)] + 1e-6
    # and the two are not all alike: a greedy choice has something to choose from
    assert max(by[2] for by in losses.values()) > 10 * min(by[2] for by in losses.values())


# ---- the form of the paper: widths of their own, a price per bit


def start():
    """The float model that is quantized: small, as each of its programs is compiled."""
    return small.model(('e2k3', 'identity'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A model with learned widths, the models that taught it, the run's folder and the data."""
    workdir, data = tmp_path_factory.mktemp('trained'), small.data()
    teachers, original = [], quantized_runs.float_logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized_runs, 'float_logits', lambda *m: teachers.append(m) or original(*m))
        model = quantized_runs.quantize_trained(
            start(), data=data, config=QUANT, workdir=workdir, name='paper'
        )
    return model, teachers, workdir, data


def test_widths_fall_under_a_price_per_bit_and_end_whole(trained):
    model, *_ = trained
    assert model.quant['form'] == 'range_bits'
    for kind in ('weight', 'activation'):
        bits = model.bits(kind)
        assert all(isinstance(b, int) and 2 <= b <= 8 for b in bits.values())
        assert costs.mean_bits(bits, quantized_runs._sites(model)[f'{kind}_sites']) < 5
        shown = quantizers.learned_bits(FORMS['range_bits'], model.quant['params'], kind)
        assert {name: float(b) for name, b in shown.items()} == bits
    assert model.card['budget'] is None and model.card['wall_seconds'] > 0


def test_the_float_model_teaches_both_parts(trained):
    _, teachers, *_ = trained
    assert len(teachers) == 2
    for (teacher,) in teachers:
        assert teacher.params is start().params


def test_several_teachers_are_heard_with_the_mean_of_their_logits():
    one, other = small.model(('e2k3', 'identity')), small.model(('e1k3', 'identity'))
    audio = np.random.default_rng(0).integers(-9000, 9000, (5, 16000), np.int16)
    expected = (predict_all(one.predictor(), audio) + predict_all(other.predictor(), audio)) / 2
    got = float_logits(one, other)(jnp.asarray(audio, jnp.float32) / 32768)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_returned_model_scores_what_the_run_reported(trained):
    model, _, _, data = trained
    score = quantized_runs.evaluate_model(model, data, 'validation')
    assert score['accuracy'] == pytest.approx(model.card['validation_accuracy'], abs=1e-6)
    assert score['labels'] == list(small.NAMES)


def test_a_finished_run_is_not_trained_again(trained, monkeypatch):
    model, _, workdir, data = trained
    monkeypatch.setattr(
        quantized_runs, 'make_train_chunk', lambda **_: lambda *_: pytest.fail('trains again')
    )
    again = quantized_runs.quantize_trained(
        start(), data=data, config=QUANT, workdir=str(workdir), name='paper'
    )
    assert again.quant['bits'] == model.quant['bits']
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b)
