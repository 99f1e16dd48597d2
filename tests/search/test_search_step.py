"""One search step: what it moves, what it must not touch, and that it is one pure function."""

import functools
import json
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kws_jax import costs, network, supernet
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.layers.mbconv import mbconv
from kws_jax.search import arch as arch_lib
from kws_jax.search import prices
from kws_jax.search.step import (
    arch_adam,
    arch_gradients,
    init_search_state,
    make_search_chunk,
    make_search_step,
    supernet_sgd,
)
from kws_jax.training.steps import Recipe, step_key, training_input

pytest_plugins = ('tiny_search',)
pytestmark = pytest.mark.usefixtures('quick_compilation')
GOLDEN = pathlib.Path(__file__).with_name('golden_search.json')
WARMUP, EVERY, STEPS = 4, 5, 12
RECIPE = Recipe(seed=7, augment={'max_shift': 800, 'noise_probability': 0.5, 'noise_volume': 0.1})
OPTIMIZER = supernet_sgd(lr=0.1, warmup_lr=0.05, warmup_steps=WARMUP, steps=20, weight_decay=1e-2)
ARCH_OPTIMIZER = arch_adam(lr=0.2, warmup_steps=WARMUP, steps=20, every=EVERY)


@pytest.fixture(scope='module')
def noise():
    return jnp.asarray(np.random.default_rng(5).integers(-3000, 3000, 20000), jnp.int16)


@pytest.fixture(scope='module')
def settings(front_end, space):
    table = costs.macs_table(space, front_end_macs=front_end.macs)
    return {
        'front_end': front_end,
        'space': space,
        'price': prices.make('target', reference=np.mean(table.bounds)),
        'table': table,
        'optimizer': OPTIMIZER,
        'arch_optimizer': ARCH_OPTIMIZER,
        'recipe': RECIPE,
        'warmup_steps': WARMUP,
        'arch_every': EVERY,
    }


@pytest.fixture(scope='module')
def chunk(settings, noise):
    """A chunk; whatever paths its steps sample, they are traced once."""
    price, traces = settings['price'], []

    def factors(state, **values):
        traces.append(state)
        return price.factors(state, **values)

    yield make_search_chunk(noise=noise, **settings | {'price': prices.Price(price.init, factors)})
    assert len(traces) == 1


@pytest.fixture(scope='module')
def start(settings):
    names = ('front_end', 'space', 'optimizer', 'arch_optimizer', 'price')
    init = functools.partial(init_search_state, **{name: settings[name] for name in names})
    return jax.device_get(jax.jit(init)(jax.random.key(0)))


def nth(batches, i):
    return jax.tree.map(lambda leaf: leaf[i], batches)


@pytest.fixture(scope='module')
def history(chunk, start, batches):
    """States before and after each of the steps, and their metrics."""
    data = batches(STEPS)
    states, metrics = [start], []
    for i in range(STEPS):
        state, seen = chunk(states[-1], nth(data, slice(i, i + 1)))
        states.append(jax.device_get(state))
        metrics.append(nth(jax.device_get(seen), 0))
    return states, metrics


def sampled_path(state, space):
    """The path that the weight update of the next step draws."""
    return [
        int(i) for i in arch_lib.sample_path(step_key(RECIPE, state.step, 2), space, state.arch)
    ]


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def momentum(state):
    """The weights' momenta: the one part of the optimizer state that is shaped like weights."""
    found = [
        tree
        for tree in jax.tree.leaves(
            state.opt, is_leaf=lambda t: isinstance(t, dict) and set(t) == set(state.params)
        )
        if isinstance(tree, dict)
    ]
    assert len(found) == 1
    return found[0]


# -------------------------------------------------------------------------------- weight updates


def test_unsampled_candidates_stay_bit_identical_and_sampled_ones_move(history, space):
    """Weights, momenta and batch-norm averages, over many steps, arch updates in between."""
    states, _ = history
    met = set()
    for before, after in zip(states[:-1], states[1:], strict=True):
        path = sampled_path(before, space)
        for layer, chosen in zip(space.layers, path, strict=True):
            met.add((layer.name, chosen))
            for tree in (lambda s: s.params, lambda s: s.averages, momentum):
                old, new = tree(before)[layer.name], tree(after)[layer.name]
                for i in range(4):
                    same = equal(nth(old, i), nth(new, i))
                    assert same == (i != chosen), (layer.name, i, chosen)
    assert ('a.1', 4) in met, 'no identity was sampled'
    assert len(met) > 5


def test_what_all_paths_share_moves_at_every_step(history):
    states, _ = history
    for before, after in zip(states[:-1], states[1:], strict=True):
        for part in ('frontend', 'stem', 'head', 'classifier'):
            assert not equal(before.params[part], after.params[part])
        for part in ('image', 'stem', 'head'):
            assert not equal(before.averages[part], after.averages[part])


def test_a_step_moves_the_path_as_training_its_derived_network_would(
    history, space, front_end, batches, noise
):
    """At a step that moves the arch params as well, which leave the weights alone."""
    states, metrics = history
    number = 5
    before, after = states[number], states[number + 1]
    architecture = space.architecture(sampled_path(before, space))
    batch = nth(batches(STEPS), number)

    @jax.jit
    def train():
        key = step_key(RECIPE, jnp.int32(number), 0)
        audio, targets = training_input(key, batch, noise, RECIPE, space.classes)
        params, averages = supernet.derive(before.params, before.averages, architecture)
        trace, _ = supernet.derive(momentum(before), before.averages, architecture)

        def loss(params):
            logits, new = network.apply(
                params, averages, audio, front_end=front_end, architecture=architecture, train=True
            )
            return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        # Nesterov momentum written out: m = 0.9 m + g, step g + 0.9 m; it is the second of the 16
        # steps after the warm-up
        lr = 0.1 * 0.5 * (1 + jnp.cos(jnp.pi * 1 / 16))
        decay = jax.tree_util.tree_map_with_path(lambda p, _: 1e-2 * (p[-1].key == 'w'), params)
        grads = jax.tree.map(lambda g, w, d: g + d * w, grads, params, decay)
        trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, grads)
        params = jax.tree.map(lambda w, g, m: w - lr * (g + 0.9 * m), params, grads, trace)
        return value, params, new, trace

    value, params, averages, trace = train()
    assert metrics[number]['loss'] == pytest.approx(float(value), rel=1e-5)
    got, got_averages = supernet.derive(after.params, after.averages, architecture)
    got_trace, _ = supernet.derive(momentum(after), after.averages, architecture)
    chex.assert_trees_all_close(got, params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(got_averages, averages, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(got_trace, trace, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------- arch updates


def test_arch_params_move_at_every_fifth_step_after_the_warm_up_only(history):
    states, metrics = history
    moved = [
        i
        for i, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True))
        if not equal(before.arch, after.arch)
    ]
    # step 0 is a multiple of five too, but in the warm-up
    assert moved == [5, 10]
    for i in range(STEPS):
        same = equal(states[i].arch_opt, states[i + 1].arch_opt)
        assert same == (i not in moved)
        assert (metrics[i]['validation_loss'] == 0) == (i < 5)
        assert states[i + 1].step == i + 1


def test_an_identity_that_is_not_allowed_keeps_its_logit(history):
    states, _ = history
    assert states[0].arch['a'][0, 4] == states[-1].arch['a'][0, 4]
    assert np.all(states[0].arch['a'][1] != states[-1].arch['a'][1])


def test_arch_gradients_are_those_of_straight_through_gates(history, front_end, space, batches):
    """The whole gradient to the arch params, against autodiff through sum_j g_j o_j(x).

    The gates are one-hot, with the gradient of the probabilities: Cai et al. 2019, eq. 4.
    """
    state = history[0][-1]
    batch = nth(batches(1, seed=3), 0)
    labels = jnp.asarray(batch['validation_label'])
    audio = int16_to_float(jnp.asarray(batch['validation_audio']))

    def loss(arch, path):
        params, averages = state.params, state.averages
        y, _ = network.apply_stem(
            params, averages, audio, front_end=front_end, space=space, train=True
        )
        rows = arch_lib.probabilities(space, arch)
        for i, (layer, p) in enumerate(zip(space.layers, rows, strict=True)):
            gates = jax.nn.one_hot(path[i], len(p)) + p - jax.lax.stop_gradient(p)
            total = 0.0
            for j, choice in enumerate(layer.choices):
                out = y
                if not choice.is_identity:
                    choices = [j if other == layer else 0 for other in space.layers]
                    own = supernet.derive(params, averages, space.architecture(choices))
                    out, _ = mbconv(
                        own[0][layer.name], own[1][layer.name], y, layer=layer, train=True
                    )
                total = total + gates[j] * out
            y = total
        logits, _ = network.apply_head(params, averages, y, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    mixture = jax.jit(jax.value_and_grad(loss))
    gates = jax.jit(functools.partial(arch_gradients, front_end=front_end, space=space))
    for path in ((0, 4), (3, 1)):
        path = jnp.array(path, jnp.int32)
        value, _, got = gates(state, path, audio, labels)
        wanted_value, wanted = mixture(state.arch, path)
        assert value == pytest.approx(float(wanted_value), rel=1e-5)
        scale = float(jnp.abs(wanted['a']).max())
        np.testing.assert_allclose(got['a'], wanted['a'], rtol=1e-3, atol=1e-5 * scale)
        # a softmax leaves the sum of the logits alone
        np.testing.assert_allclose(got['a'].sum(1), 0.0, atol=1e-5 * scale)


# ------------------------------------------------------------------------------------- schedules


def test_the_arch_rate_rises_by_the_published_schedule():
    # lr * (1 - cos(pi / 2 * k / n)), here for (25 - 5) / 5 = 4 updates; Adam's first move is the
    # rate itself, against the sign of the gradient
    optimizer = arch_adam(lr=4e-3, warmup_steps=5, steps=25, every=5)
    params, grads = jnp.zeros(2), jnp.array([3.0, -1e-3])
    state = optimizer.init(params)
    for k in range(1, 5):
        updates, state = optimizer.update(grads, state, params)
        rate = 4e-3 * (1 - np.cos(np.pi / 2 * k / 4))
        # without momentum, and for a constant gradient, every move has the size of the rate
        np.testing.assert_allclose(updates, [-rate, rate], rtol=1e-4)
    assert rate == pytest.approx(4e-3)


def test_weights_follow_one_cosine_in_the_warm_up_and_another_in_the_search():
    optimizer = supernet_sgd(lr=0.2, warmup_lr=0.05, warmup_steps=4, steps=8, weight_decay=0.0)
    state = optimizer.init({'w': jnp.zeros(())})
    got = []
    for _ in range(8):
        # a fresh momentum each time, so that the update is 1.9 times rate and gradient
        state = jax.tree.map(jnp.zeros_like, state, is_leaf=lambda x: False) if not got else state
        updates, moved = optimizer.update({'w': jnp.ones(())}, state, {'w': jnp.zeros(())})
        got.append(-float(updates['w']) / 1.9)
        state = jax.tree.map(lambda old, new: new if new.dtype == jnp.int32 else old, state, moved)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(got, [*(0.05 * cosine), *(0.2 * cosine)], rtol=1e-5)


def test_weight_decay_spares_batch_norm():
    optimizer = supernet_sgd(lr=1.0, warmup_lr=1.0, warmup_steps=0, steps=10, weight_decay=0.1)
    params = {'w': jnp.ones(()), 'scale': jnp.ones(()), 'bias': jnp.ones(())}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert updates['w'] == pytest.approx(-0.19) and updates['scale'] == updates['bias'] == 0


# ------------------------------------------------------------------------------- one pure function


def test_the_step_goes_into_a_scan_and_a_chunk_is_that_scan(
    history, settings, start, batches, noise
):
    states, metrics = history
    step = make_search_step(**settings)
    scan = jax.jit(lambda s, data: jax.lax.scan(lambda s, b: step(s, b, noise), s, data))
    state, seen = scan(start, batches(STEPS))
    for name in ('step', 'params', 'averages', 'opt', 'arch', 'arch_opt', 'price'):
        chex.assert_trees_all_close(
            getattr(state, name), getattr(states[-1], name), rtol=1e-4, atol=1e-5
        )
    for name, values in seen.items():
        np.testing.assert_allclose(values, [m[name] for m in metrics], rtol=1e-5, err_msg=name)


def test_the_same_search_gives_the_same_numbers_to_the_bit_however_it_is_cut(
    history, chunk, start, batches
):
    states, metrics = history
    kept = jax.tree.map(np.array, start)
    state, seen = chunk(start, nth(batches(STEPS), slice(0, 7)))
    chex.assert_trees_all_equal(jax.device_get(state), states[7])
    np.testing.assert_array_equal(seen['loss'], [m['loss'] for m in metrics[:7]])
    chex.assert_trees_all_equal(start, kept)
    other, _ = chunk(start, batches(1, seed=1))
    assert not equal(other.params, states[1].params)


def test_three_steps_are_those_that_were_recorded(history, space):
    """Guards against a change of numbers that nobody meant; UPDATE_GOLDEN=1 records them anew."""
    states, metrics = history
    names = ('loss', 'accuracy', 'expected_cost', 'entropy', 'validation_loss')
    got = {name: [float(m[name]) for m in metrics[4:7]] for name in names}
    got['paths'] = [sampled_path(state, space) for state in states[4:7]]
    got['arch'] = states[7].arch['a'].tolist()
    got['weight_norm'] = float(optax.tree.norm(states[7].params))
    if os.environ.get('UPDATE_GOLDEN'):
        GOLDEN.write_text(json.dumps(got, indent=1) + '\n')
    wanted = json.loads(GOLDEN.read_text())
    assert got['paths'] == wanted.pop('paths')
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-3, atol=1e-5, err_msg=name)
