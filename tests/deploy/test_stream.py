"""Streams in NumPy and JAX: whatever the chunks, the logits of whole windows."""

import dataclasses

import integer_models
import jax
import numpy as np
import pytest

from kws_jax import deploy
from kws_jax.deploy import execute, stream

FRONT_ENDS = ('pairs', 'abs', 'none')


@pytest.fixture(scope='module')
def audio():
    return integer_models.clips().ravel()


def windows(network, audio):
    starts = np.arange(0, len(audio) - network.samples + 1, stream.hop(network))
    return deploy.run(network, np.stack([audio[s : s + network.samples] for s in starts]))


def causal_decisions(network, audio):
    """What a causal network says of a recording as one long clip, whose last rows count."""
    front_end, stem, head = network.front_end, network.stem, network.head
    frames = (len(audio) - front_end.kernel) // front_end.stride + 1
    image = execute.image(front_end, audio[None])
    assert image.shape[1] == frames
    x = execute.rescale(stem, execute.convolve(stem, image[..., None], (2, 0)))
    for block in network.blocks:
        y = (
            x
            if block.expand is None
            else execute.rescale(block.expand, execute.convolve(block.expand, x))
        )
        above = block.depthwise.weights.shape[0] - 1
        y = execute.rescale(block.depthwise, execute.convolve(block.depthwise, y, (above, 0)))
        x = execute.rescale(block.project, execute.convolve(block.project, y), x)
    rows = execute.rescale(head, execute.convolve(head, x))[0].sum(axis=1)
    height = -(-network.frames // 4)  # strides of 2 and 2
    logits = [
        rows[start // 4 : start // 4 + height].sum(axis=0) @ network.classifier.weights.astype(int)
        + network.classifier.offset
        for start in range(0, frames - network.frames + 1, network.decide_every)
    ]
    return np.array(logits)


def in_chunks(network, audio, largest):
    """Logits of a stream whose pieces have random lengths up to `largest`."""
    rng = np.random.default_rng(largest)
    state, got, at = stream.init(network), [], 0
    while at < len(audio):
        chunk = int(rng.integers(0, largest + 1))
        state, logits = stream.step(network, state, audio[at : at + chunk])
        got.append(logits)
        at += chunk
    return np.concatenate(got)


@pytest.mark.parametrize(('front_end', 'largest', 'every'), [('pairs', 700, 8), ('none', 9000, 24)])
def test_a_causal_stream_is_the_end_of_one_long_clip_in_any_chunks(
    front_end, largest, every, audio
):
    network = deploy.from_model(integer_models.make(front_end, causal=True))
    network = dataclasses.replace(network, decide_every=every)
    expected = causal_decisions(network, audio)
    np.testing.assert_array_equal(expected[:1], deploy.run(network, audio[None, :16000]))
    np.testing.assert_array_equal(stream.logits(network, audio), expected)
    np.testing.assert_array_equal(in_chunks(network, audio, largest), expected)


def test_a_causal_network_whose_strides_do_not_divide_a_batch_of_frames_is_refused():
    network = deploy.from_model(integer_models.make(causal=True))
    stem = dataclasses.replace(network.stem, stride=(3, 2))
    with pytest.raises(ValueError, match='takes 8 frames at a time; its strides, 6 in all'):
        dataclasses.replace(network, stem=stem)


@pytest.mark.parametrize('front_end', FRONT_ENDS)
@pytest.mark.parametrize(('largest', 'every'), [(700, 8), (2560, 24), (9000, 16)])
def test_any_chunks_give_the_logits_of_every_window(front_end, largest, every, audio):
    network = deploy.from_model(integer_models.make(front_end))
    network = dataclasses.replace(network, decide_every=every)
    got, expected = in_chunks(network, audio, largest), windows(network, audio)
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


@pytest.mark.parametrize(
    ('front_end', 'causal'), [*((name, False) for name in FRONT_ENDS), ('pairs', True)]
)
@pytest.mark.parametrize(('chunk', 'every'), [(333, 8), (2560, 16), (7000, 24)])
def test_jax_gives_the_states_and_logits_of_numpy(front_end, causal, chunk, every, audio):
    network = deploy.from_model(integer_models.make(front_end, causal=causal))
    network = dataclasses.replace(network, decide_every=every)
    step = stream.jitted_step(network)
    state = other = stream.init(network)
    decisions = 0
    for at in range(0, min(len(audio), 40 * chunk) - chunk, chunk):
        part = audio[at : at + chunk]
        state, expected = stream.step(network, state, part)
        other, logits, decided = step(other, part)
        np.testing.assert_array_equal(np.asarray(logits)[np.asarray(decided)], expected)
        assert jax.tree.structure(state) == jax.tree.structure(other)
        for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True):
            np.testing.assert_array_equal(a, np.asarray(b))
        decisions += len(expected)
    assert decisions > 0 or 40 * chunk < 16000


def test_a_state_is_not_changed_by_its_step(audio):
    network = deploy.from_model(integer_models.make())
    state, _ = stream.step(network, stream.init(network), audio[:20000])
    copy = jax.tree.map(np.copy, state)
    first = stream.step(network, state, audio[20000:30000])
    again = stream.step(network, copy, audio[20000:30000])
    np.testing.assert_array_equal(first[1], again[1])
    for a, b in zip(*map(jax.tree.leaves, (state, copy)), strict=True):
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
