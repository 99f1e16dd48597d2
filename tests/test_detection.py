"""Detections and their errors, worked out by hand; streams that are built, and heard."""

import numpy as np
import pytest

from kws_jax import detection
from kws_jax.data import streams
from kws_jax.detection import Event, Rule

LABELS = ('yes', 'no', 'unknown')


def heard(rule, rows):
    state, found = detection.start(rule), []
    for row in rows:
        state, more = detection.listen(rule, state, np.array(row))
        found += more
    return found


def test_a_keyword_is_heard_where_the_mean_of_its_scores_reaches_the_threshold():
    rule = Rule(LABELS, {'yes': 0.6}, smoothing=2, refractory=1)
    # means of two: 0, 0.5, 0.75
    found = heard(rule, [[0.0, 0, 1], [1.0, 0, 0], [0.5, 0, 0.5]])
    assert [(d.label, d.window, d.score) for d in found] == [('yes', 2, 0.75)]


def test_it_is_not_heard_again_before_its_refractory_time_is_over_and_others_are():
    rule = Rule(LABELS, {'yes': 0.5, 'no': 0.5}, smoothing=1, refractory=2)
    rows = [[0.5, 0.5, 0]] * 2 + [[0.9, 0.1, 0]] * 3
    found = [(d.label, d.window) for d in heard(rule, rows)]
    assert found == [('yes', 0), ('no', 0), ('yes', 3)]


def test_only_keywords_with_a_threshold_are_reported():
    assert heard(Rule(LABELS, {'no': 0.5}, smoothing=1), [[1.0, 0, 0]]) == []


def test_the_state_that_is_given_stays_as_it_is():
    rule = Rule(LABELS, {'yes': 0.5}, smoothing=2)
    state, _ = detection.listen(rule, detection.start(rule), np.array([1.0, 0, 0]))
    first = detection.listen(rule, state, np.array([1.0, 0, 0]))
    again = detection.listen(rule, state, np.array([1.0, 0, 0]))
    assert first[1] == again[1] and state.windows == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'thresholds': {'maybe': 0.5}}, "threshold of 'maybe', which is none of yes, no, unknown"),
        ({'thresholds': {'yes': 0.0}}, r"threshold of 'yes' must be in \(0, 1\], got 0.0"),
        ({'smoothing': 0}, 'smoothing must be at least 1 window, got 0'),
        ({'refractory': 0}, 'refractory must be at least 1 window, got 0'),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Rule(**({'labels': LABELS, 'thresholds': {'yes': 0.5}} | changes))


def test_a_whole_stream_at_once_gives_what_a_listener_hears():
    rng = np.random.default_rng(0)
    for smoothing, refractory in ((1, 1), (4, 12), (3, 5)):
        rows = detection.softmax(3 * rng.normal(size=(400, 3)))
        smoothed = detection.smooth(rows, smoothing)
        for threshold in (0.2, 0.5, 0.8):
            rule = Rule(LABELS, {'no': threshold}, smoothing, refractory)
            expected = [d.window for d in heard(rule, rows)]
            found = detection.detect(smoothed[:, 1], threshold, refractory)
            assert found.tolist() == expected


def test_every_word_takes_the_first_detection_that_fits_and_the_rest_are_false():
    events = [Event('yes', 100, 200), Event('yes', 1000, 1100), Event('yes', 5000, 5100)]
    #        before     meets 1  again  too late for 2   nothing there
    ends = np.array([50, 150, 260, 1301, 3000])
    errors = detection.match(ends, events, tolerance=200)
    assert errors.hits == [(0, 1)]
    assert errors.missed == [1, 2]
    assert errors.false == [0, 2, 3, 4]
    # 200 samples after its end is still in time
    assert detection.match(np.array([1300]), events, tolerance=200).hits == [(1, 0)]


def test_a_curve_and_its_operating_point_by_hand():
    # windows end at 1000, 2000, ...; the word is at 1500-2500, heard at its best in window 2
    scores = np.array([0.1, 0.4, 0.9, 0.1, 0.6, 0.1])
    ends = 1000 * np.arange(1, 7)
    found = detection.curve(
        scores,
        ends,
        [Event('yes', 1500, 2500)],
        hours=0.5,
        refractory=1,
        tolerance=1000,
        sample_rate=1000,
        thresholds=np.array([0.3, 0.5, 0.8, 0.95]),
    )
    # at 0.3: windows 1 (meets), then window 3 on is free: 4 is false. At 0.5: 2 meets, 4 is false
    np.testing.assert_array_equal(found.false_accepts_per_hour, [2, 2, 0, 0])
    np.testing.assert_array_equal(found.false_reject_rate, [0, 0, 0, 1])
    np.testing.assert_array_equal(found.latency, [-0.5, 0.5, 0.5, np.nan])
    point = detection.operating_point(found, 1.0)
    assert point == {
        'threshold': 0.8,
        'false_accepts_per_hour': 0.0,
        'false_reject_rate': 0.0,
        'latency_seconds': 0.5,
    }
    assert detection.operating_point(found, 2.0)['threshold'] == 0.3


def test_a_rate_that_no_threshold_meets_is_an_error():
    found = detection.curve(
        np.array([1.0]), np.array([10]), [], hours=1.0, refractory=1, thresholds=np.array([0.5])
    )
    with pytest.raises(ValueError, match='no threshold keeps false accepts at 0.5 an hour; .* 1$'):
        detection.operating_point(found, 0.5)


# ------------------------------------------------------------------------- streams

NAMES = ('yes', 'silence', 'unknown')


def clips():
    """A loud word, a quiet one of another class, noise: each class two clips."""
    audio = np.zeros((6, 16000), np.int16)
    audio[:2, 4000:8000] = 3000
    audio[2:4] = np.random.default_rng(0).integers(-30, 31, (2, 16000))
    audio[4:, 6000:9000] = 1000
    return audio, np.array([0, 0, 1, 1, 2, 2], np.int32)


def test_a_stream_has_its_words_where_its_events_say():
    stream = streams.build(*clips(), NAMES, seconds=120, seed=1)
    assert stream.audio.dtype == np.int16 and len(stream.audio) == 120 * 16000
    assert stream.hours == pytest.approx(1 / 30)
    assert {event.label for event in stream.events} == {'yes', 'unknown'}
    quiet = np.ones(len(stream.audio), bool)
    for event in stream.events:
        loudness = np.abs(stream.audio[event.start + 200 : event.end - 200].astype(int))
        level = 3000 if event.label == 'yes' else 1000
        # -6 to +6 dB of its level, and noise of at most 30 on top
        assert level / 2 - 40 < loudness.min() and loudness.max() < 2 * level + 40
        quiet[event.start - 200 : event.end + 200] = False
    assert np.abs(stream.audio[quiet]).max() <= 60
    starts = [event.start for event in stream.events]
    assert starts == sorted(starts) and starts[0] >= 2 * 16000


def test_the_same_seed_gives_the_same_stream_and_another_one_another():
    first, again, other = (streams.build(*clips(), NAMES, seconds=60, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert first.events == again.events and first.events != other.events


@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        ((0, 2), 'no clips of noise'),
        ((0, 1), 'no clips of other words'),
        ((1, 2), 'no clips of keywords'),
    ],
)
def test_what_a_stream_cannot_be_made_of_is_named(keep, message):
    audio, labels = clips()
    rows = np.isin(labels, keep)
    with pytest.raises(ValueError, match=message):
        streams.build(audio[rows], labels[rows], NAMES, seconds=60, seed=0)


def test_a_stream_without_time_for_a_word_is_refused():
    with pytest.raises(ValueError, match='seconds must be at least 4, got 2'):
        streams.build(*clips(), NAMES, seconds=2, seed=0)
