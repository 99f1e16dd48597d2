"""The networks in PyTorch are the same networks: outputs, gradients, steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip('torch', reason='needs PyTorch: pip install .[bench]')

from kws_jax import costs, frontends, network, supernet  # noqa: E402
from kws_jax.benchmark import torch_peers  # noqa: E402
from kws_jax.data.backgrounds import int16_to_float  # noqa: E402
from kws_jax.search import arch as arch_lib  # noqa: E402
from kws_jax.search import prices  # noqa: E402
from kws_jax.search.step import (  # noqa: E402
    arch_adam,
    arch_gradients,
    arch_update,
    init_search_state,
)
from kws_jax.space import SearchSpace  # noqa: E402
from kws_jax.training import losses  # noqa: E402
from kws_jax.training.state import sgd  # noqa: E402
from kws_jax.training.steps import Recipe, step_key  # noqa: E402

FRONT_END = frontends.make('conv', filters=8)
SPACE = SearchSpace.from_json({
    'image_shape': FRONT_END.image_shape,
    'classes': 12,
    'stem': {'channels': 4, 'kernel': (3, 3), 'stride': (2, 2)},
    'stages': [
        {'name': 'a', 'channels': 6, 'layers': 2, 'stride': 2,
         'candidates': ['e1k3', 'e3k5', 'e2k7', 'identity']},
    ],
    'head_channels': 8,
})


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(0)
    audio = rng.integers(-8000, 8000, (6, 16000)).astype(np.int16)
    return audio, rng.integers(12, size=6).astype(np.int32)


def in_torch(*arrays):
    return [torch.from_numpy(np.array(a)) for a in arrays]


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layout', ['contiguous_format', 'channels_last'])
def test_a_network_gives_the_same_logits_in_training_and_evaluation(batch, layout):
    of = SPACE.architecture(['e3k5', 'e1k3'])
    params, averages = network.init(jax.random.key(0), FRONT_END, of)
    net = torch_peers.make_network(of, params, averages)
    net = net.to(memory_format=getattr(torch, layout))
    (audio,) = in_torch(batch[0])
    for train in (True, False):
        wanted, averages = network.apply(
            params,
            averages,
            int16_to_float(jnp.asarray(batch[0])),
            front_end=FRONT_END,
            architecture=of,
            train=train,
        )
        with torch.no_grad():
            close(net.train(train)(audio.float() / 32768.0), wanted)


def test_a_step_ends_with_the_same_weights(batch):
    of = SPACE.architecture(['e2k7', 'e3k5'])
    params, averages = network.init(jax.random.key(1), FRONT_END, of)
    net = torch_peers.make_network(of, params, averages)
    theirs = torch_peers.sgd(net, lr=0.05, weight_decay=1e-2)
    ours = sgd(lr=0.05, steps=10**9, weight_decay=1e-2)
    state = ours.init(params)

    @jax.jit
    def step(params, averages, state, audio, labels):
        def loss_fn(params):
            logits, new = network.apply(
                params,
                averages,
                int16_to_float(audio),
                front_end=FRONT_END,
                architecture=of,
                train=True,
            )
            return losses.cross_entropy(logits, losses.soft_labels(labels, 12, 0.1)), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = ours.update(grads, state, params)
        return optax.apply_updates(params, updates), new, state, loss

    audio, labels = in_torch(*batch)
    params, averages, state, loss = step(params, averages, state, *batch)
    close(torch_peers.train_step(net, theirs, audio, labels.long()), loss)
    close(net.classifier.weight.detach().T, params['classifier']['w'])
    close(net.front.weight.detach()[:, 0].T, params['frontend']['taps'])
    depthwise = net.blocks[1].parts[3].weight.detach()[:, 0].permute(1, 2, 0)
    close(depthwise, params['a.1']['depthwise']['w'])
    _, _, _, loss = step(params, averages, state, *batch)
    close(torch_peers.train_step(net, theirs, audio, labels.long()), loss)


PRICE = prices.make('target', reference=1e4)  # every architecture is far dearer
ADAM = arch_adam(lr=1e-2, warmup_steps=0, steps=10, every=1)


def search_state():
    return init_search_state(
        jax.random.key(2),
        front_end=FRONT_END,
        space=SPACE,
        optimizer=sgd(lr=0.1, steps=10, weight_decay=0.0),
        arch_optimizer=ADAM,
        price=PRICE,
    )


@pytest.mark.parametrize('path', [(1, 3), (2, 0), (0, 1)])
def test_a_path_of_the_supernet_gives_the_same_logits_and_gate_gradients(batch, path):
    state = search_state()
    net = torch_peers.make_supernet(SPACE, state.params, state.averages)
    audio, labels = in_torch(*batch)
    net.train()
    net.set_path(path, keep=True)
    logits = net(audio.float() / 32768.0)
    wanted, _ = supernet.apply(
        state.params,
        state.averages,
        int16_to_float(jnp.asarray(batch[0])),
        path=jnp.asarray(path, jnp.int32),
        front_end=FRONT_END,
        space=SPACE,
        train=True,
    )
    close(logits.detach(), wanted)
    torch.nn.functional.cross_entropy(logits, labels.long()).backward()
    gates = [mixed.gate_gradients() for mixed in net.blocks]
    uniform = state.replace(arch=jax.tree.map(jnp.zeros_like, state.arch))
    _, _, gradient = arch_gradients(
        uniform,
        jnp.asarray(path, jnp.int32),
        int16_to_float(jnp.asarray(batch[0])),
        jnp.asarray(batch[1]),
        front_end=FRONT_END,
        space=SPACE,
    )
    for own, row in zip(gates, arch_lib.logits(SPACE, gradient), strict=True):
        # through the softmax at uniform probabilities
        close((own - own.mean()) / len(own), row)


def test_an_arch_step_ends_with_the_same_arch_params_and_leaves_the_weights(batch):
    state, recipe = search_state(), Recipe(seed=3)
    net = torch_peers.make_supernet(SPACE, state.params, state.averages)
    with torch.no_grad():
        for own, row in zip(net.logits, arch_lib.logits(SPACE, state.arch), strict=True):
            own.copy_(torch.from_numpy(np.array(row)))
    before = net.classifier.weight.detach().clone()
    table = costs.macs_table(SPACE, front_end_macs=FRONT_END.macs)
    wanted = arch_update(
        state,
        {'validation_audio': jnp.asarray(batch[0]), 'validation_label': jnp.asarray(batch[1])},
        front_end=FRONT_END,
        space=SPACE,
        table=table,
        price=PRICE,
        optimizer=ADAM,
        recipe=recipe,
    )
    path = arch_lib.sample_path(step_key(recipe, state.step, 3), SPACE, state.arch)
    first_rate = 1e-2 * (1 - np.cos(0.5 * np.pi / 10))
    adam = torch.optim.Adam(net.logits, lr=first_rate, betas=(0.0, 0.999))
    choice_costs = [torch.tensor(c, dtype=torch.float32) for c in table.layers]
    audio, labels = in_torch(*batch)
    torch_peers.arch_step(net, adam, audio, labels.long(), path, choice_costs, target=1e4)
    assert torch.equal(before, net.classifier.weight)
    for own, row in zip(net.logits, arch_lib.logits(SPACE, wanted.arch), strict=True):
        np.testing.assert_allclose(own.detach(), row, atol=1e-6)
