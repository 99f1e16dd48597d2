"""The inverted residual block, plain and padded."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.layers.mbconv import (
    mbconv,
    mbconv_init,
    pad_mbconv,
    padded_mbconv,
    padded_mbconv_init,
    unpad_mbconv,
)
from kws_jax.space import Candidate, SearchSpace, Stage, Stem, mbconvs

SPACE = SearchSpace(
    image_shape=(9, 6),
    classes=2,
    stem=Stem(channels=3, kernel=(3, 3), stride=(1, 1)),
    stages=(Stage('a', channels=4, layers=2, stride=2, candidates=mbconvs((1, 3), (3, 5))),),
    head_channels=4,
)
STRIDED, RESIDUAL = SPACE.layers
CAUSAL = dataclasses.replace(RESIDUAL, causal=True)
BLOCKS = SPACE.layers[0].choices
WIDTH, KERNEL = 3, 5  # the largest expansion and kernel
each_layer = pytest.mark.parametrize('layer', SPACE.layers, ids=['strided', 'residual'])
each_block = pytest.mark.parametrize('choice', BLOCKS, ids=lambda c: c.name)


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def some_block(layer, choice, seed=0):
    """Weights and averages away from their start."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: mbconv_init(key, layer, choice), jax.random.key(0))
    params, state = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes
    )
    return params, {
        part: {'mean': v['mean'], 'var': jnp.square(v['var']) + 0.2} for part, v in state.items()
    }


def some_input(layer, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, *layer.in_shape, layer.in_channels)), jnp.float32)


def plain_block(params, state, x, *, layer, train):
    """The block out of XLA's convolutions and a batch norm written out."""

    def conv(x, w, stride=1, groups=1):
        (kh, kw), top = w.shape[:2], w.shape[0] - 1 if layer.causal else w.shape[0] // 2
        pad = [(top, kh - 1 - top), (kw // 2, kw // 2)]
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            pad,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )

    def norm(part, y):
        values = {
            k: v.reshape(1, 1, 1, -1) for k, v in (params[part] | state[part]).items() if k != 'w'
        }
        mean, var = values['mean'], values['var']
        if train:
            mean, var = y.mean((0, 1, 2), keepdims=True), y.var((0, 1, 2), keepdims=True)
        return (y - mean) / jnp.sqrt(var + 1e-3) * values['scale'] + values['bias']

    y = x
    if 'expand' in params:
        y = jnp.clip(norm('expand', conv(y, params['expand']['w'][None, None])), 0, 6)
    taps = params['depthwise']['w'][:, :, None]
    y = conv(y, taps, stride=layer.stride, groups=y.shape[-1])
    y = jnp.clip(norm('depthwise', y), 0, 6)
    y = norm('project', conv(y, params['project']['w'][None, None]))
    return y + x if y.shape == x.shape else y


@pytest.mark.parametrize(
    ('layer', 'name'), [(STRIDED, 'e1k5'), (RESIDUAL, 'e3k3'), (CAUSAL, 'e3k5')]
)
def test_the_block_is_expand_depthwise_project_with_batch_norm(layer, name):
    choice = Candidate.from_name(name)
    (params, state), x = some_block(layer, choice), some_input(layer)

    def both(block):
        return [block(params, state, x, layer=layer, train=train) for train in (True, False)]

    both = jax.jit(both, static_argnums=0)
    for (got, new), wanted in zip(both(mbconv), both(plain_block), strict=True):
        assert got.shape == (2, 5, 3, 4)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
        chex.assert_trees_all_equal_structs(new, state)


@each_block
def test_the_padded_block_equals_the_plain_one_in_output_averages_and_gradients(padded, choice):
    for layer in SPACE.layers:
        (params, state), x = some_block(layer, choice), some_input(layer)
        wide, wide_state = pad_mbconv(
            params,
            state,
            layer=layer,
            choice=choice,
            width=WIDTH * layer.in_channels,
            kernel=KERNEL,
        )

        def plain(params, x, train, layer=layer, state=state):
            y, new = mbconv(params, state, x, layer=layer, train=train)
            return jnp.mean(jnp.sin(y)), (y, new)

        for train in (True, False) if layer == RESIDUAL else (True,):
            run = jax.jit(
                jax.value_and_grad(functools.partial(plain, train=train), (0, 1), has_aux=True)
            )
            (_, (y, new)), (to_params, to_x) = run(params, x)
            (_, (wide_y, wide_new)), (to_wide, wide_to_x) = padded[layer.name, train](
                wide, wide_state, x, choice.expansion, choice.kernel
            )
            np.testing.assert_allclose(wide_y, y, rtol=1e-5, atol=2e-5)  # of sums up to 28
            np.testing.assert_allclose(wide_to_x, to_x, atol=1e-5)
            if not train:
                wide_new = wide_state
            cut, cut_new = unpad_mbconv(to_wide, wide_new, layer=layer, choice=choice)
            chex.assert_trees_all_close(cut, to_params, rtol=1e-4, atol=1e-5)
            chex.assert_trees_all_close(cut_new, new, atol=1e-5)
            # padding never gets a gradient, nor an average
            again = pad_mbconv(
                cut,
                cut_new,
                layer=layer,
                choice=choice,
                width=WIDTH * layer.in_channels,
                kernel=KERNEL,
            )
            chex.assert_trees_all_equal(again, (to_wide, wide_new))


@pytest.fixture(scope='module')
def padded():
    """The padded block of each layer, for training and for evaluation; each is traced once."""
    traces = []

    def make(layer, train):
        @jax.jit
        def run(params, state, x, expansion, kernel):
            traces.append((layer.name, train))

            def value(params, x):
                y, new = padded_mbconv(
                    params,
                    state,
                    x,
                    layer=layer,
                    expansion=expansion,
                    kernel=kernel,
                    train=train,
                )
                return jnp.mean(jnp.sin(y)), (y, new)

            return jax.value_and_grad(value, (0, 1), has_aux=True)(params, x)

        return run

    yield {
        (layer.name, train): make(layer, train) for layer in SPACE.layers for train in (True, False)
    }
    assert len(traces) == len(set(traces))


@pytest.mark.parametrize('name', ['e1k5', 'e3k3'])
def test_the_padded_causal_block_is_the_plain_one_with_its_padding_above(name):
    choice, x = Candidate.from_name(name), some_input(CAUSAL)
    params, state = some_block(CAUSAL, choice)
    width = WIDTH * CAUSAL.in_channels
    wide = pad_mbconv(params, state, layer=CAUSAL, choice=choice, width=width, kernel=KERNEL)
    got, _ = padded_mbconv(
        *wide, x, layer=CAUSAL, expansion=choice.expansion, kernel=choice.kernel, train=False
    )
    wanted = plain_block(params, state, x, layer=CAUSAL, train=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@each_layer
@each_block
def test_unpadding_undoes_padding(layer, choice):
    block = jax.device_get(some_block(layer, choice))
    wide = pad_mbconv(*block, layer=layer, choice=choice, width=20, kernel=7)
    assert wide[0]['depthwise']['w'].shape == (7, 7, 20)
    chex.assert_trees_all_equal(unpad_mbconv(*wide, layer=layer, choice=choice), block)


def test_candidates_start_as_cuts_of_one_block_each_he_normal_by_its_own_fan_out():
    layer, choices = STRIDED, (Candidate(1, 5), Candidate(3, 3))
    stacked = jax.jit(padded_mbconv_init, static_argnums=(1, 2))(jax.random.key(3), layer, choices)
    cuts = []
    for i, choice in enumerate(choices):
        own = jax.device_get(jax.tree.map(lambda a, i=i: a[i], stacked))
        cut = unpad_mbconv(*own, layer=layer, choice=choice)
        chex.assert_trees_all_equal_shapes(cut, mbconv_init(jax.random.key(0), layer, choice))
        width = 3 * layer.in_channels
        padded = pad_mbconv(*cut, layer=layer, choice=choice, width=width, kernel=5)
        chex.assert_trees_all_equal(own, jax.device_get(padded))
        cuts.append({part: tree['w'] for part, tree in cut[0].items()})
    first, second = cuts
    inner = first['depthwise'][1:4, 1:4] * np.sqrt(25 / 9)  # fan-outs 5 x 5 and 3 x 3
    shared = slice(layer.in_channels)
    np.testing.assert_allclose(second['depthwise'][..., shared], inner, rtol=1e-6)
    np.testing.assert_array_equal(second['project'][shared], first['project'])


def test_stacked_starting_weights_are_he_normal():
    layer = SearchSpace(
        (4, 4), 2, Stem(64, (3, 3), (1, 1)), (Stage('a', 32, 1, 1, mbconvs((4, 6), (7,))),), 4
    ).layers[0]
    params, _ = padded_mbconv_init(jax.random.key(0), layer, (Candidate(4, 7), Candidate(6, 7)))
    for part, fan_out in {'expand': 384, 'depthwise': 49, 'project': 32}.items():
        w = params[part]['w'][1]
        error = 5 * np.sqrt(2 / w.size)
        assert jnp.var(w) * fan_out / 2 == pytest.approx(1.0, abs=error)


def test_starting_weights_are_he_normal_by_fan_out():
    layer = SearchSpace(
        (4, 4), 2, Stem(64, (3, 3), (1, 1)), (Stage('a', 32, 1, 1, mbconvs((6,), (7,))),), 4
    ).layers[0]
    params, state = mbconv_init(jax.random.key(0), layer, Candidate(6, 7))
    for part, fan_out in {'expand': 384, 'depthwise': 49, 'project': 32}.items():
        w = params[part]['w']
        error = 5 * np.sqrt(2 / w.size)
        assert jnp.var(w) * fan_out / 2 == pytest.approx(1.0, abs=error)
        assert jnp.all(params[part]['scale'] == 1) and jnp.all(params[part]['bias'] == 0)
        assert jnp.all(state[part]['mean'] == 0) and jnp.all(state[part]['var'] == 1)


def test_quantizers_see_every_weight_and_activation_by_name():
    choice = Candidate(3, 5)
    (params, state), x = some_block(RESIDUAL, choice), some_input(RESIDUAL)
    seen = []

    def halve_weights(name, kind, value):
        seen.append((name, kind, value.shape))
        return value / 2 if kind == 'weight' else value

    got, _ = mbconv(params, state, x, layer=RESIDUAL, train=False, quant=halve_weights)
    n, h, w, c = x.shape
    assert seen == [
        ('a.1.expand', 'weight', (c, 3 * c)),
        ('a.1.expand', 'activation', (n, h, w, 3 * c)),
        ('a.1.depthwise', 'weight', (5, 5, 3 * c)),
        ('a.1.depthwise', 'activation', (n, h, w, 3 * c)),
        ('a.1.project', 'weight', (3 * c, c)),
        ('a.1.project', 'activation', (n, h, w, c)),
    ]
    halved = {part: v | {'w': v['w'] / 2} for part, v in params.items()}
    wanted, _ = mbconv(halved, state, x, layer=RESIDUAL, train=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
