"""A model on a long recording: the scores of its windows, and what comes of them."""

import dataclasses

import integer_models
import numpy as np
import pytest
import small

from kws_jax import deploy, detection, listening, network
from kws_jax.data import streams
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.deploy import scores, stream


@pytest.fixture(scope='module')
def recording():
    """Tones of both keywords, a chirp as other word, hiss."""
    audio, labels = small.tones(12, seed=5)
    rng = np.random.default_rng(1)
    chirp = 4000 * np.sin(2 * np.pi * 0.05 * np.arange(16000) ** 1.5 / 126)
    hiss = rng.normal(scale=60, size=(3, 16000))
    audio = np.concatenate([audio, chirp[None], hiss]).astype(np.int16)
    labels = np.concatenate([labels, [3], [2] * 3])
    return streams.build(audio, labels, ('low', 'high', 'silence', 'unknown'), seconds=45, seed=3)


def test_a_quantized_model_listens_in_integers_to_every_window(recording):
    model = integer_models.make()
    network = deploy.from_model(model)
    found = listening.scores(model, recording.audio)
    hop = stream.hop(network)
    last = (network.frames - 1) * network.front_end.stride + network.front_end.kernel
    count = (len(recording.audio) - last) // hop + 1
    padded = np.pad(recording.audio, (0, 16000))
    windows = np.stack([padded[i * hop : i * hop + 16000] for i in range(count)])
    logits = deploy.run(network, windows)
    np.testing.assert_array_equal(
        found.values, scores.scores(logits, network.logit_step) / scores.SCORE_ONE
    )
    expected = detection.softmax(logits * network.logit_step)
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    np.testing.assert_array_equal(found.ends, last + hop * np.arange(count))


def test_a_whole_recording_at_once_gives_what_steps_give(recording):
    network = deploy.from_model(integer_models.make('abs'))
    _, expected = stream.step(network, stream.init(network), recording.audio)
    for batch in (1, 7, 64):
        found = stream.logits(network, recording.audio, batch=batch)
        np.testing.assert_array_equal(found, expected)


def test_a_float_model_is_run_on_each_window(recording):
    model = small.model()
    found = listening.scores(model, recording.audio)
    assert len(found.values) == (len(recording.audio) - 16000) // 1280 + 1
    at = 37
    window = recording.audio[at * 1280 : at * 1280 + 16000]
    expected = detection.softmax(np.asarray(model.predictor()(window[None]))[0])
    np.testing.assert_allclose(found.values[at], expected, atol=1e-5)
    assert found.ends[at] == at * 1280 + 16000


def float_causal():
    return dataclasses.replace(integer_models.make(causal=True), quant=None)


def test_a_causal_float_model_hears_a_recording_as_a_stream(recording):
    model = float_causal()
    body, _ = network.apply_body(
        model.params,
        model.averages,
        int16_to_float(recording.audio)[None],
        front_end=model.make_front_end(),
        architecture=model.architecture,
    )
    rows, found = np.asarray(body)[0].mean(axis=1), listening.scores(model, recording.audio)
    row, wide = 4 * 320, model.architecture.space.final_shape[0]  # a row for every 4 frames
    count = (len(recording.audio) - 16000) // row + 1
    means = np.stack([rows[i : i + wide].mean(axis=0) for i in range(count)])
    expected = detection.softmax(np.asarray(network.classify(model.params, means)))
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    np.testing.assert_array_equal(found.ends, 16000 + row * np.arange(count))
    first = detection.softmax(np.asarray(model.predictor()(recording.audio[None, :16000])))
    np.testing.assert_allclose(found.values[:1], first, atol=1e-5)


def test_a_causal_float_model_says_the_same_in_pieces_of_any_length(recording):
    model, audio = float_causal(), recording.audio[:100000]
    step, said, cuts = listening.stepper(model), [], [0, 1, 15999, 16000, 40001, 40002, 100000]
    for start, end in zip(cuts, cuts[1:], strict=False):
        said.append(step(audio[start:end]))
    assert [len(part) for part in said[:3]] == [0, 0, 1]
    expected = listening.scores(model, audio).values
    np.testing.assert_allclose(np.concatenate(said), expected, atol=1e-5)


@pytest.mark.parametrize('make', [integer_models.make, small.model])
def test_less_than_a_window_is_an_error(make):
    with pytest.raises(ValueError, match='15999 samples are less than one window of 16000'):
        listening.scores(make(), np.zeros(15999, np.int16))


def made_up(recording):
    """Scores that follow the words exactly, but for a lapse and a false alarm of `low`."""
    labels = ('low', 'high', 'silence')
    ends = 16000 + 1280 * np.arange((len(recording.audio) - 16000) // 1280)
    values = np.tile([0.0, 0.0, 1.0], (len(ends), 1))
    for i, label in enumerate(labels[:2]):
        own = [event for event in recording.events if event.label == label]
        for event in own[1:] if label == 'low' else own:  # the first `low` is not heard
            at = np.flatnonzero((ends >= event.end) & (ends < event.end + 4000))
            values[at] = np.eye(3)[i]
    values[0] = [1, 0, 0]  # in the first window nothing is said
    return listening.Scores(labels, values, ends)


def test_errors_at_thresholds_are_counted_by_keyword_and_by_what_was_there(recording):
    found = listening.at_thresholds(
        made_up(recording), recording, {'low': 0.9, 'high': 0.9}, smoothing=1, refractory=10
    )
    words = {k: sum(e.label == k for e in recording.events) for k in ('low', 'high')}
    low, high = found['keywords']['low'], found['keywords']['high']
    assert low['words'] == words['low'] > 1 and high['words'] == words['high'] > 1
    assert low['false_reject_rate'] == pytest.approx(1 / words['low'])
    assert high['false_reject_rate'] == 0 and high['false_accepts_per_hour'] == 0
    assert low['false_accepts_per_hour'] == pytest.approx(3600 / 45)
    assert found['under'] == pytest.approx(
        {'background': 3600 / 45, 'other_words': 0, 'keywords': 0}
    )
    assert found['false_reject_rate'] == pytest.approx(1 / sum(words.values()))
    assert 0 <= high['latency_seconds'] <= 0.08  # one hop


def test_curves_say_the_same_at_their_thresholds(recording):
    scored = made_up(recording)
    for label, curve in listening.curves(scored, recording, smoothing=3, refractory=10).items():
        for i in (0, 100, 199):
            one = {label: float(curve.thresholds[i])}
            found = listening.at_thresholds(scored, recording, one, smoothing=3, refractory=10)
            own = found['keywords'][label]
            assert own['false_accepts_per_hour'] == pytest.approx(curve.false_accepts_per_hour[i])
            assert own['false_reject_rate'] == pytest.approx(curve.false_reject_rate[i])
