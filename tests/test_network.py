"""One network: front end, stem, blocks, head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import frontends, network
from kws_jax.layers.mbconv import mbconv
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs

FRONT_END = frontends.make('conv', filters=6, stride=800, compression='relu')  # image 20 x 6
SPACE = SearchSpace(
    image_shape=(20, 6),
    classes=3,
    stem=Stem(channels=4, kernel=(3, 5), stride=(2, 1)),
    stages=(Stage('a', channels=4, layers=3, stride=2, candidates=mbconvs((1, 2), (3, 5))),),
    head_channels=5,
)
ARCHITECTURE = SPACE.architecture(['e2k5', 'identity', 'e1k3'])


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def weights():
    """Weights and averages away from their start."""
    rng = np.random.default_rng(0)
    init = functools.partial(network.init, front_end=FRONT_END, architecture=ARCHITECTURE)
    params, state = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32),
        jax.eval_shape(init, jax.random.key(0)),
    )
    positive = lambda path, leaf: leaf**2 + 0.5 if path[-1].key == 'var' else leaf  # noqa: E731
    return params, jax.tree_util.tree_map_with_path(positive, state)


@pytest.fixture(scope='module')
def audio():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 16000)) / 10, jnp.float32)


@pytest.fixture(scope='module')
def apply():
    return jax.jit(
        functools.partial(network.apply, front_end=FRONT_END, architecture=ARCHITECTURE),
        static_argnames=('train', 'transform_image'),
    )


def plain_network(params, state, audio, *, train):
    """The same network out of XLA's convolutions, with nothing of the library in it."""

    def conv(x, w, stride=(1, 1), groups=1):
        return jax.lax.conv_general_dilated(
            x,
            w,
            stride,
            [(k // 2, k // 2) for k in w.shape[:2]],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )

    def norm(x, averages, learned=None):
        mean, var = averages['mean'], averages['var']
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        channels = x.shape[-1]
        mean, var = mean.reshape(1, 1, 1, channels), var.reshape(1, 1, 1, channels)
        y = (x - mean) / jnp.sqrt(var + 1e-3)
        if learned is None:
            return y
        return y * learned['scale'].reshape(mean.shape) + learned['bias'].reshape(mean.shape)

    frames = jnp.stack([audio[:, 800 * t : 800 * t + 400] for t in range(20)], axis=1)
    image = jax.nn.relu(jnp.einsum('ntk,kf->ntf', frames, params['frontend']['taps']))
    # filters are the channels of this batch norm
    y = norm(image[:, :, None, :], state['image'])[:, :, 0, :, None]
    y = conv(y, params['stem']['w'], (2, 1))
    y = jnp.clip(norm(y, state['stem'], params['stem']), 0, 6)
    for name, stride, residual in (('a.0', 2, False), ('a.2', 1, True)):
        before = y
        for part in ('expand', 'depthwise', 'project'):
            if part not in params[name]:
                continue
            w = params[name][part]['w']
            if part == 'depthwise':
                y = conv(y, w[:, :, None], (stride, stride), groups=y.shape[-1])
            else:
                y = conv(y, w[None, None])
            y = norm(y, state[name][part], params[name][part])
            y = y if part == 'project' else jnp.clip(y, 0, 6)
        y = y + before if residual else y
    y = norm(conv(y, params['head']['w'][None, None]), state['head'], params['head'])
    pooled = jnp.clip(y, 0, 6).mean((1, 2))
    return pooled @ params['classifier']['w'] + params['classifier']['b'].reshape(1, -1)


@pytest.mark.parametrize('train', [True, False])
def test_the_network_is_front_end_stem_blocks_and_head(apply, weights, audio, train):
    got, _ = apply(*weights, audio, train=train)
    wanted = jax.jit(functools.partial(plain_network, train=train))(*weights, audio)
    assert got.shape == (3, 3)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_evaluation_keeps_the_averages_and_training_moves_all_of_them(apply, weights, audio):
    params, state = weights
    _, kept = apply(params, state, audio, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    _, moved = apply(params, state, audio, train=True)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert jnp.any(old != new)


def test_a_causal_network_sees_no_later_frames(weights, audio):
    space = dataclasses.replace(SPACE, causal=True)
    architecture = space.architecture([choice.name for choice in ARCHITECTURE.choices])

    def maps(audio):
        y, _ = network.apply_stem(*weights, audio, front_end=FRONT_END, space=space, train=False)
        for layer in (space.layers[0], space.layers[2]):
            y, _ = mbconv(*(tree[layer.name] for tree in weights), y, layer=layer, train=False)
        return y

    # row t of the last map hears frames up to 4 t, and frame 8 ends at sample 6800
    early, late = maps(audio), maps(audio.at[:, 6800:].add(1.0))
    np.testing.assert_array_equal(early[:, :3], late[:, :3])
    assert not np.allclose(early[:, 3], late[:, 3])
    logits = [
        network.apply(*weights, audio, front_end=FRONT_END, architecture=a)[0]
        for a in (architecture, ARCHITECTURE)
    ]
    assert not np.allclose(*logits)


def test_a_clip_is_evaluated_on_its_own(apply, weights, audio):
    together, _ = apply(*weights, audio, train=False)
    alone, _ = apply(*weights, audio[:1], train=False)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-5, atol=1e-5)


def test_the_normalized_image_may_be_transformed(apply, weights, audio):
    # nothing is left of an image of zeros, whatever was heard
    zeros = jnp.zeros_like
    got, _ = apply(*weights, audio, train=False, transform_image=zeros)
    same, _ = apply(*weights, audio[::-1], train=False, transform_image=zeros)
    np.testing.assert_array_equal(got, same)
    assert jnp.any(got != apply(*weights, audio, train=False)[0])


def test_digital_silence_gives_finite_logits_and_gradients(weights):
    def loss(params):
        logits, _ = network.apply(
            params,
            weights[1],
            jnp.zeros((2, 16000)),
            front_end=FRONT_END,
            architecture=ARCHITECTURE,
            train=True,
        )
        return jax.nn.logsumexp(logits)

    value, grads = jax.jit(jax.value_and_grad(loss))(weights[0])
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_identities_have_no_weights():
    params, state = jax.eval_shape(
        lambda key: network.init(key, FRONT_END, ARCHITECTURE), jax.random.key(0)
    )
    ends = {'stem', 'head'}
    assert set(params) == ends | {'frontend', 'classifier', 'a.0', 'a.2'}
    assert set(state) == ends | {'image', 'a.0', 'a.2'}
    assert set(params['a.2']) == {'depthwise', 'project'}
    assert state['image']['mean'].shape == (6,)


def test_the_same_key_gives_the_same_weights_and_another_key_others():
    init = jax.jit(lambda key: network.init(key, FRONT_END, ARCHITECTURE)[0])
    first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for part in ('frontend', 'stem', 'head', 'classifier'):
        leaf = 'taps' if part == 'frontend' else 'w'
        assert jnp.any(first[part][leaf] != other[part][leaf])
    # every layer draws from a key of its own
    assert not jnp.allclose(
        first['a.0']['depthwise']['w'][:3, :3, 0], first['a.2']['depthwise']['w'][:, :, 0]
    )


def test_a_front_end_that_makes_another_image_is_refused():
    other = frontends.make('conv', filters=7, stride=800)
    with pytest.raises(ValueError, match=r'images of \(20, 7\), the space expects \(20, 6\)'):
        network.init(jax.random.key(0), other, ARCHITECTURE)


def test_an_image_that_is_not_normalized_reaches_the_stem_as_it_is():
    seen = {}

    def look(name, kind, value):
        seen.setdefault(f'{name}.{kind}', value)
        return value

    audio = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (2, 16000)), jnp.float32)
    options = {'front_end': FRONT_END._replace(normalize=False), 'architecture': ARCHITECTURE}
    params, state = network.init(jax.random.key(0), FRONT_END, ARCHITECTURE)
    _, new = network.apply(params, state, audio, train=True, quant=look, **options)
    image = FRONT_END.apply(params['frontend'], audio)
    np.testing.assert_allclose(seen['frontend.activation'], image[..., 0], rtol=1e-5, atol=1e-5)
    for name, average in state['image'].items():
        np.testing.assert_array_equal(new['image'][name], average)
