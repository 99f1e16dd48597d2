"""All candidates at once, against networks that have one each."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import frontends, network, supernet
from kws_jax.layers.mbconv import mbconv, mbconv_init, pad_mbconv
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs

FRONT_END = frontends.make('conv', filters=8, stride=800)  # image 20 x 8
SPACE = SearchSpace(
    image_shape=(20, 8),
    classes=3,
    stem=Stem(channels=3, kernel=(3, 3), stride=(2, 2)),
    stages=(Stage('a', channels=4, layers=2, stride=2, candidates=mbconvs((1, 2), (3, 5))),),
    head_channels=5,
)
# every candidate is in one of them, in the first layer, the second or both
PATHS = [(0, 4), (1, 0), (2, 3), (3, 1)]
SHARED = ('frontend', 'stem', 'head', 'classifier')


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def filled(shapes, rng):
    """Weights and averages away from their start."""

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return values**2 + 0.5 if path[-1].key == 'var' else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope='module')
def weights():
    """A supernet put together from single candidates, so that padding is zero."""
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    ends = functools.partial(network.init_ends, front_end=FRONT_END, space=SPACE)
    params, state = filled(jax.eval_shape(ends, key), rng)
    for layer in SPACE.layers:
        padded = []
        for choice in layer.choices[:4]:
            init = functools.partial(mbconv_init, layer=layer, choice=choice)
            own = filled(jax.eval_shape(init, key), rng)
            width = 2 * layer.in_channels
            padded.append(pad_mbconv(*own, layer=layer, choice=choice, width=width, kernel=5))
        params[layer.name], state[layer.name] = jax.tree.map(lambda *a: np.stack(a), *padded)
    return jax.tree.map(jnp.asarray, (params, state))


@pytest.fixture(scope='module')
def audio():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 16000)) / 10, jnp.float32)


def value(logits):
    """A loss with a gradient to every logit."""
    return jnp.mean(jnp.sin(logits))


@pytest.fixture(scope='module')
def run():
    """Of a path: gradients, then logits and averages in training and in evaluation.

    Whatever paths it is called with, it is traced once.
    """
    traces = []

    def apply(params, state, audio, path, train):
        return supernet.apply(
            params, state, audio, path=path, front_end=FRONT_END, space=SPACE, train=train
        )

    def loss(*arguments):
        logits, new = apply(*arguments, True)
        return value(logits), (logits, new)

    @jax.jit
    def run(*arguments):
        traces.append(arguments)
        grads, trained = jax.grad(loss, has_aux=True)(*arguments)
        return grads, trained, apply(*arguments, False)

    yield run
    assert len(traces) == 1


@pytest.mark.parametrize('path', PATHS, ids=str)
def test_a_path_equals_its_derived_network(run, weights, audio, path):
    architecture = SPACE.architecture(path)
    params, state = supernet.derive(*weights, architecture)

    apply = functools.partial(network.apply, front_end=FRONT_END, architecture=architecture)

    def loss(params):
        logits, new = apply(params, state, audio, train=True)
        return value(logits), (logits, new)

    @jax.jit
    def own(params):
        grads, trained = jax.grad(loss, has_aux=True)(params)
        return grads, trained, apply(params, state, audio, train=False)[0]

    grads, (logits, averages), evaluated = own(params)
    whole, (got, new), (got_evaluated, _) = run(*weights, audio, jnp.array(path, jnp.int32))
    np.testing.assert_allclose(got, logits, atol=1e-5)
    np.testing.assert_allclose(got_evaluated, evaluated, atol=1e-5)
    got_grads, got_averages = supernet.derive(whole, new, architecture)
    chex.assert_trees_all_close(got_grads, grads, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(got_averages, averages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('path', PATHS[:2], ids=str)
def test_what_is_not_on_the_path_gets_no_gradient_and_keeps_its_averages(run, weights, audio, path):
    grads, (_, new), _ = run(*weights, audio, jnp.array(path, jnp.int32))
    for layer, index in zip(SPACE.layers, path, strict=True):
        others = [i for i in range(4) if i != index]
        for leaf in jax.tree.leaves(grads[layer.name]):
            assert not jnp.any(leaf[jnp.array(others)])
        for leaf, old in zip(
            jax.tree.leaves(new[layer.name]), jax.tree.leaves(weights[1][layer.name]), strict=True
        ):
            np.testing.assert_array_equal(leaf[jnp.array(others)], old[jnp.array(others)])
            if index < 4 and SPACE.layers[0].choices[index].expansion > 1:
                assert jnp.any(leaf[index] != old[index])


def test_evaluation_returns_the_state_as_it_is(run, weights, audio):
    _, _, (_, new) = run(*weights, audio, jnp.array(PATHS[0], jnp.int32))
    chex.assert_trees_all_equal(new, weights[1])


def test_scatter_writes_the_path_and_nothing_else(weights):
    params, _ = weights
    path = jnp.array([2, 4], jnp.int32)  # the second is an identity, which has no weights
    slices = jax.jit(functools.partial(supernet.select, SPACE))(params, path)
    chex.assert_trees_all_equal(slices['a.0'], jax.tree.map(lambda a: a[2], params['a.0']))
    scatter = jax.jit(functools.partial(supernet.scatter, SPACE))
    chex.assert_trees_all_equal(scatter(params, slices, path), params)

    changed = jax.tree.map(lambda a: a + 1, slices)
    written = scatter(params, changed, path)
    for part in SHARED:
        chex.assert_trees_all_equal(written[part], changed[part])
    chex.assert_trees_all_equal(written['a.1'], params['a.1'])
    for got, old in zip(
        jax.tree.leaves(written['a.0']), jax.tree.leaves(params['a.0']), strict=True
    ):
        np.testing.assert_array_equal(got[2], old[2] + 1)
        for other in (0, 1, 3):
            np.testing.assert_array_equal(got[other], old[other])


def mixture(weights, audio, gates):
    """The supernet as the paper writes it: each layer's output is sum_j g_j o_j(x)."""
    params, state = weights
    y, _ = network.apply_stem(params, state, audio, front_end=FRONT_END, space=SPACE, train=True)
    for layer, row in zip(SPACE.layers, gates, strict=True):
        total = 0.0
        for j, choice in enumerate(layer.choices):
            out = y
            if not choice.is_identity:
                path = [j if other == layer else 0 for other in SPACE.layers]
                own = supernet.derive(params, state, SPACE.architecture(path))
                out, _ = mbconv(own[0][layer.name], own[1][layer.name], y, layer=layer, train=True)
            total = total + row[j] * out
        y = total
    return value(network.apply_head(params, state, y, train=True)[0])


def test_gate_gradients_are_those_of_the_mixture_at_one_hot_gates(weights, audio):
    """Cai et al. 2019, sect. 3.2: gate gradients of all candidates, sampled and not."""

    def loss(slices, averages, path, nudges):
        logits, _, inputs = supernet.apply_slices(
            slices,
            averages,
            audio,
            path,
            front_end=FRONT_END,
            space=SPACE,
            train=True,
            nudges=nudges,
        )
        return value(logits), inputs

    @jax.jit
    def by_nudges(path):
        slices, averages = (supernet.select(SPACE, tree, path) for tree in weights)
        zeros = [jnp.zeros(supernet.layer_output_shape(layer, 4)) for layer in SPACE.layers]
        gradient = jax.value_and_grad(functools.partial(loss, slices, averages, path), has_aux=True)
        (_, inputs), at_outputs = gradient(zeros)
        return supernet.gate_gradients(*weights, inputs, at_outputs, space=SPACE)

    by_mixture = jax.jit(jax.grad(functools.partial(mixture, weights, audio)))
    for path in PATHS[:3]:
        one_hot = [
            jnp.zeros(len(layer.choices)).at[i].set(1.0)
            for layer, i in zip(SPACE.layers, path, strict=True)
        ]
        got, wanted = by_nudges(jnp.array(path, jnp.int32)), by_mixture(one_hot)
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == b.shape and jnp.all(b != 0)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_derived_network_has_the_shapes_of_a_fresh_one(weights):
    for path in PATHS[:2]:
        architecture = SPACE.architecture(path)
        fresh = jax.eval_shape(
            lambda key, a=architecture: network.init(key, FRONT_END, a), jax.random.key(0)
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(
            supernet.derive(*weights, architecture), fresh
        )


def test_a_fresh_supernet_has_a_network_in_every_path():
    weights = jax.jit(lambda key: supernet.init(key, FRONT_END, SPACE))(jax.random.key(0))
    architecture = SPACE.architecture((3, 1))
    params, state = supernet.derive(*weights, architecture)
    for name, part in (('a.0', 'expand'), ('a.0', 'depthwise'), ('a.1', 'project')):
        assert jnp.all(params[name][part]['w'] != 0)
        assert jnp.all(params[name][part]['scale'] == 1)
        assert jnp.all(state[name][part]['var'] == 1)


def test_a_front_end_that_makes_another_image_is_refused():
    other = frontends.make('conv', filters=7, stride=800)
    with pytest.raises(ValueError, match=r'images of \(20, 7\), the space expects \(20, 8\)'):
        supernet.init(jax.random.key(0), other, SPACE)
