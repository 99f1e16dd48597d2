"""Streams in NumPy and JAX: whatever the chunks, the logits of whole windows."""

import dataclasses

import integer_models
import jax
import numpy as np
import pytest

from kws_jax import deploy
from kws_jax.deploy import stream

FRONT_ENDS = ('pairs', 'abs', 'none')


@pytest.fixture(scope='module')
def audio():
    return integer_models.clips().ravel()


def windows(network, audio):
    starts = np.arange(0, len(audio) - network.samples + 1, stream.hop(network))
    return deploy.run(network, np.stack([audio[s : s + network.samples] for s in starts]))


@pytest.mark.parametrize('front_end', FRONT_ENDS)
@pytest.mark.parametrize(('largest', 'every'), [(700, 8), (2560, 24), (9000, 16)])
def test_any_chunks_give_the_logits_of_every_window(front_end, largest, every, audio):
    network = deploy.from_model(integer_models.make(front_end))
    network = dataclasses.replace(network, decide_every=every)
    rng = np.random.default_rng(largest)
    state, got, at = stream.init(network), [], 0
    while at < len(audio):
        chunk = int(rng.integers(0, largest + 1))
        state, logits = stream.step(network, state, audio[at : at + chunk])
        got.append(logits)
        at += chunk
    expected = windows(network, audio)
    got = np.concatenate(got)
    # the last sample of a window can lie behind its last frame: a decision may come early
    assert len(expected) <= len(got) <= len(expected) + 1
    np.testing.assert_array_equal(got[: len(expected)], expected)


def test_a_decision_comes_with_the_last_sample_of_its_last_frame(audio):
    network = deploy.from_model(integer_models.make())
    front_end = network.front_end
    last = (network.frames - 1) * front_end.stride + front_end.kernel
    state, logits = stream.step(network, stream.init(network), audio[: last - 1])
    assert logits.shape == (0, 3)
    state, logits = stream.step(network, state, audio[last - 1 : last])
    assert logits.shape == (1, 3)
    _, logits = stream.step(network, state, audio[last : last + 2 * stream.hop(network)])
    assert logits.shape == (2, 3)


@pytest.mark.parametrize('front_end', FRONT_ENDS)
@pytest.mark.parametrize(('chunk', 'every'), [(333, 8), (2560, 16), (7000, 24)])
def test_jax_gives_the_states_and_logits_of_numpy(front_end, chunk, every, audio):
    network = deploy.from_model(integer_models.make(front_end))
    network = dataclasses.replace(network, decide_every=every)
    step = stream.jitted_step(network)
    state = other = stream.init(network)
    decisions = 0
    for at in range(0, min(len(audio), 40 * chunk) - chunk, chunk):
        part = audio[at : at + chunk]
        state, expected = stream.step(network, state, part)
        other, logits, decided = step(other, part)
        np.testing.assert_array_equal(np.asarray(logits)[np.asarray(decided)], expected)
        for name, a, b in zip(state._fields, state, other, strict=True):
            np.testing.assert_array_equal(a, np.asarray(b), err_msg=name)
        decisions += len(expected)
    assert decisions > 0 or 40 * chunk < 16000


def test_a_state_is_not_changed_by_its_step(audio):
    network = deploy.from_model(integer_models.make())
    state, _ = stream.step(network, stream.init(network), audio[:20000])
    copy = jax.tree.map(np.copy, state)
    first = stream.step(network, state, audio[20000:30000])
    again = stream.step(network, copy, audio[20000:30000])
    np.testing.assert_array_equal(first[1], again[1])
    for a, b in zip(state, copy, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'make', [lambda n: stream.jitted_step(n), lambda n: lambda *a: stream.step(n, *a)]
)
def test_samples_of_another_kind_are_refused(make):
    network = deploy.from_model(integer_models.make())
    step = make(network)
    for samples in (np.zeros(10, np.float32), np.zeros((1, 10), np.int16)):
        with pytest.raises(ValueError, match=r'samples must be int16 \[samples\], got'):
            step(stream.init(network), samples)


@pytest.mark.parametrize('every', [0, -8, 12])
def test_decisions_that_no_batch_ends_with_are_an_error(every):
    network = deploy.from_model(integer_models.make())
    with pytest.raises(ValueError, match='must be a multiple of 160 ms apart, got'):
        dataclasses.replace(network, decide_every=every)
