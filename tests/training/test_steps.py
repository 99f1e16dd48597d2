"""The training step: what each option does, and that a chunk, a scan and four devices agree."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import killing
import numpy as np
import optax
import pytest
import small

from kws_jax import costs, network, quantizers
from kws_jax.model import quantized_taps
from kws_jax.training import losses
from kws_jax.training.state import adam_cosine, decayed, move_average, sgd
from kws_jax.training.steps import (
    Quantization,
    Recipe,
    final_weights,
    init_train_state,
    make_train_chunk,
    make_train_step,
    step_key,
    training_input,
)

FULL = Recipe(
    seed=3,
    augment=small.AUGMENT,
    spec_augment={'time_masks': 1, 'time_width': 4, 'frequency_masks': 1, 'frequency_width': 2},
    mixup=0.5,
    distill=0.6,
    ema=0.9,
)


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


def network_of(model):
    return {'front_end': model.make_front_end(), 'architecture': model.architecture}


def teacher(audio):
    """Logits that say which half of the clip is louder."""
    half = audio.shape[1] // 2
    loud = jnp.square(audio[:, :half]).mean(axis=1) - jnp.square(audio[:, half:]).mean(axis=1)
    return 20 * loud[:, None] * jnp.array([[1.0, -1.0, 0.0]])


@pytest.fixture(scope='module')
def three_steps():
    """The state before, and what a chunk and a scan make of three steps with every option."""
    model = small.model(('e2k3', 'identity'))
    optimizer = sgd(lr=0.1, steps=10, weight_decay=1e-4)
    options = network_of(model) | {'optimizer': optimizer, 'recipe': FULL, 'teacher': teacher}
    before = init_train_state(model.params, model.averages, optimizer, recipe=FULL)
    step, noise = make_train_step(**options), jnp.asarray(small.noise())
    scanned = jax.jit(lambda s, b: jax.lax.scan(lambda s, b: step(s, b, noise), s, b))
    chunk = make_train_chunk(noise=noise, **options)
    batches = small.batches(3)
    return before, chunk(before, batches), scanned(before, batches)


def test_a_scan_of_the_step_is_the_chunk(three_steps):
    _, chunk, scan = three_steps
    assert jax.tree.structure(chunk) == jax.tree.structure(scan)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), chunk, scan)


def test_every_option_together_trains_with_finite_numbers(three_steps):
    before, (after, metrics), _ = three_steps
    assert int(after.step) == 3
    assert set(metrics) == {'loss', 'cross_entropy', 'distillation', 'accuracy', 'grad_norm'}
    for leaf in jax.tree.leaves((after, metrics)):
        assert np.isfinite(leaf).all()
    assert len(set(metrics['loss'].tolist())) == 3
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved


def test_the_loss_weighs_labels_and_teacher(three_steps):
    _, (_, metrics), _ = three_steps
    np.testing.assert_allclose(
        metrics['loss'], 0.4 * metrics['cross_entropy'] + 0.6 * metrics['distillation'], rtol=1e-5
    )


def test_the_moving_average_follows_params_and_averages(three_steps):
    before, (after, _), _ = three_steps
    start, end = before.params['stem']['w'], after.params['stem']['w']
    average = final_weights(after)[0]['stem']['w']
    assert final_weights(after) is after.ema
    assert not np.allclose(average, end)
    # after three steps with decays 0.1, 2/11 and 1/4, most of it is the last weights
    assert float(jnp.linalg.norm(average - end)) < float(jnp.linalg.norm(average - start))
    assert not np.allclose(after.ema[1]['head']['mean'], before.averages['head']['mean'])


def test_moving_average_values_worked_by_hand():
    # decay min(0.5, (1 + step) / (10 + step)): 0.1, 2/11, then capped at 0.5
    ema = {'w': jnp.array([8.0])}
    ema = move_average(ema, {'w': jnp.array([10.0])}, jnp.array(0), 0.5)
    np.testing.assert_allclose(ema['w'], [0.1 * 8 + 0.9 * 10], rtol=1e-6)
    ema = move_average(ema, {'w': jnp.array([-2.0])}, jnp.array(1), 0.5)
    np.testing.assert_allclose(ema['w'], [2 / 11 * 9.8 - 9 / 11 * 2], rtol=1e-5)
    ema = move_average({'w': jnp.array([4.0])}, {'w': jnp.array([0.0])}, jnp.array(1000), 0.5)
    np.testing.assert_allclose(ema['w'], [2.0], rtol=1e-6)


def test_distillation_without_a_teacher_is_an_error():
    with pytest.raises(ValueError, match=r'recipe\.distill is 0\.6.*no teacher'):
        make_train_step(**network_of(small.model()), optimizer=None, recipe=FULL)


def test_keys_differ_by_step_purpose_and_seed_and_repeat_otherwise():
    data = lambda *a: tuple(jax.random.key_data(step_key(*a)).tolist())  # noqa: E731
    keys = [
        data(Recipe(seed=seed), jnp.array(step), purpose)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for purpose in (0, 1)
    ]
    assert len(set(keys)) == len(keys)
    assert data(Recipe(seed=1), jnp.array(2), 1) == keys[-1]


def test_only_weights_decay():
    mask = decayed(small.model().params)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    decaying = {path[0].key for path, on in leaves if on}
    assert decaying == {'stem', 'a.0', 'a.1', 'head', 'classifier'}
    assert all(on == (path[-1].key == 'w') for path, on in leaves)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    params = {'w': jnp.zeros(1)}
    optimizer = sgd(lr=1.0, steps=10, warmup_steps=2, weight_decay=0.0, momentum=0.0)
    opt, moves = optimizer.init(params), []
    for _ in range(11):
        update, opt = optimizer.update({'w': jnp.ones(1)}, opt, params)
        moves.append(-float(update['w'][0]))
    expected = [0, 0.5] + [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose(moves, expected, atol=1e-6)


# ---- through rounding

FREEZE = 2


def quantization(**changes):
    model = small.model()
    weights = costs.weight_sites(
        model.architecture, front_end_weights=quantized_taps(model.make_front_end())
    )
    activations = costs.activation_sites(model.architecture)
    bits = quantizers.uniform_bits(weights, activations, weight=None, activation=None)
    options = {
        'form': quantizers.FORMS['step_range'],
        'bits': bits,
        'optimizer': adam_cosine(lr=0.05, steps=100),
        'weight_sites': weights,
        'activation_sites': activations,
    }
    return Quantization(**options | changes)


def quant_params(form, bits=5):
    """Parameters that differ between tensors, so that means have something to weigh."""
    q = quantization()
    each = quantizers.uniform_bits(q.weight_sites, q.activation_sites, weight=bits, activation=bits)
    rng = np.random.default_rng(0)
    samples = {(n, k): rng.normal(size=50) * 2 for n, own in each.items() for k in own}
    for i, own in enumerate(each.values()):
        own.update({k: 2 + (i + 3 * (k == 'weight')) % 6 for k in own})
    return quantizers.init_quant_params(form, samples, each), each


@pytest.mark.parametrize('form', quantizers.FORMS)
def test_the_mean_width_that_is_priced_is_that_of_the_costs(form):
    form = quantizers.FORMS[form]
    q = quantization(form=form)
    params, each = quant_params(form)
    for kind, sites in (('weight', q.weight_sites), ('activation', q.activation_sites)):
        expected = costs.mean_bits({n: each[n][kind] for n in sites}, sites)
        by_hand = sum(each[n][kind] * count for n, count in sites.items()) / sum(sites.values())
        assert expected == pytest.approx(by_hand)
        assert float(q.mean_bits(params, kind)) == pytest.approx(expected, rel=1e-5)
        gradient = jax.grad(lambda p, k=kind: q.mean_bits(p, k))(params)
        other = 'activation' if kind == 'weight' else 'weight'
        for name, own in gradient.items():
            if kind in own:
                assert any(float(g) != 0 for g in jax.tree.leaves(own[kind])), name
            assert all(float(g) == 0 for g in jax.tree.leaves(own.get(other, ())))


@pytest.fixture(scope='module')
def rounded_steps():
    """States and metrics of five steps that learn widths; averages are kept from step 2 on."""
    model = small.model()
    q = quantization(
        weight_price=lambda bits: 5.0 * bits,
        activation_price=lambda bits: 3.0 * bits,
        frozen_averages_from=FREEZE,
    )
    recipe = Recipe(augment=small.AUGMENT)
    optimizer = sgd(lr=0.02, steps=100, weight_decay=0.0)
    step = jax.jit(
        make_train_step(**network_of(model), optimizer=optimizer, recipe=recipe, quantization=q)
    )
    state = init_train_state(
        model.params,
        model.averages,
        optimizer,
        recipe=recipe,
        quant=quant_params(q.form)[0],
        quant_optimizer=q.optimizer,
    )
    states, metrics = [state], []
    for i in range(5):
        batch = jax.tree.map(lambda x, i=i: x[i], small.batches(5))
        state, values = step(state, batch, small.noise())
        states.append(state)
        metrics.append(values)
    return q, recipe, states, metrics


def test_prices_are_added_to_the_loss_and_widths_fall(rounded_steps):
    _, _, _, metrics = rounded_steps
    for values in metrics:
        prices = 5.0 * values['weight_bits'] + 3.0 * values['activation_bits']
        np.testing.assert_allclose(values['loss'], values['cross_entropy'] + prices, rtol=1e-5)
    for kind in ('weight_bits', 'activation_bits'):
        assert float(metrics[-1][kind]) < float(metrics[0][kind]) - 0.1


def test_weights_and_quant_params_move_by_their_own_optimizers(rounded_steps):
    _, _, states, _ = rounded_steps
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), states[0].quant, states[-1].quant)
    assert all(any(jax.tree.leaves(own)) for own in changed.values()), changed
    # Adam moves by at most its rate (0.05) a step, whatever the gradient; nothing was projected
    most = jax.tree.map(lambda a, b: float(abs(a - b)), states[0].quant, states[1].quant)
    assert max(jax.tree.leaves(most)) <= 0.05 + 1e-6


def test_frozen_averages_stay_bit_identical_and_move_before(rounded_steps):
    _, _, states, _ = rounded_steps
    same = [
        jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a.averages, b.averages)
        for a, b in zip(states, states[1:], strict=False)
    ]
    for i, equal in enumerate(same):
        leaves = jax.tree.leaves(equal)
        assert all(leaves) if i >= FREEZE else not any(leaves), i


def test_what_is_trained_with_frozen_averages_is_what_will_run(rounded_steps):
    q, recipe, states, metrics = rounded_steps
    model = small.model()

    @jax.jit
    def evaluated(state, batch):
        audio, targets = training_input(
            step_key(recipe, state.step, 0), batch, small.noise(), recipe, len(small.NAMES)
        )
        logits, _ = network.apply(
            state.params,
            state.averages,
            audio,
            **network_of(model),
            train=False,
            quant=quantizers.make_quant(q.form, state.quant, q.bits),
        )
        return losses.cross_entropy(logits, targets)

    batches = small.batches(5)
    got = [
        float(evaluated(states[i], jax.tree.map(lambda x, i=i: x[i], batches))) for i in range(5)
    ]
    trained = [float(values['cross_entropy']) for values in metrics]
    np.testing.assert_allclose(got[FREEZE:], trained[FREEZE:], rtol=1e-4)
    assert abs(got[0] - trained[0]) > 1e-3  # before, the batch's own statistics were used


def test_the_state_of_a_float_run_has_no_quantizers_and_no_average():
    model = small.model()
    state = init_train_state(model.params, model.averages, optax.sgd(0.1), recipe=Recipe())
    assert state.quant is state.quant_opt is state.ema is None
    assert final_weights(state) == (state.params, state.averages)


# ---- several devices


def test_four_devices_give_the_steps_of_one():
    out = killing.finish(
        killing.start(
            [pathlib.Path(__file__).with_name('four_devices.py')],
            XLA_FLAGS='--xla_force_host_platform_device_count=4',
            JAX_DISABLE_MOST_OPTIMIZATIONS='1',
        )
    )
    found = json.loads(out.splitlines()[-1])
    assert found['devices'] == 4
    assert found['float'] < 1e-4 and found['search'] < 1e-4, found
    # where a value is near the middle of two codes, the order of additions decides between them
    assert found['quantized'] < 1e-2, found
