"""Scores worked by hand, intervals against scipy."""

import json
import time

import numpy as np
import pytest
import scipy.special
import scipy.stats

from kws_jax.training.evaluation import predict_all, score, wilson_interval

# predicted:       0          0          1          1          0          2
LOGITS = np.array([[3, 1, 0], [2, 1, 0], [0, 4, 1], [1, 2, 0], [5, 4, 0], [0, 1, 2]], float)
LABELS = np.array([0, 1, 1, 1, 0, 1])


def test_confusion_and_recall_worked_by_hand():
    result = score(LOGITS, LABELS, ('a', 'b', 'c'))
    assert result['confusion'] == [[2, 0, 0], [1, 2, 1], [0, 0, 0]]
    assert result['recall'] == {'a': 1.0, 'b': 0.5, 'c': None}
    assert result['accuracy'] == pytest.approx(4 / 6)
    assert result['clips'] == 6
    assert result['labels'] == ['a', 'b', 'c']


def test_cross_entropy_is_that_of_scipy_even_for_huge_logits():
    for factor in (1.0, 1e4):
        log_p = scipy.special.log_softmax(LOGITS * factor, axis=1)
        expected = -log_p[np.arange(6), LABELS].mean()
        got = score(LOGITS * factor, LABELS, 'abc')['cross_entropy']
        assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('correct, clips', [(0, 5), (5, 5), (1, 2), (90, 100), (2942, 3079)])
def test_the_interval_is_that_of_scipy(correct, clips):
    expected = scipy.stats.binomtest(correct, clips).proportion_ci(0.95, method='wilson')
    np.testing.assert_allclose(wilson_interval(correct, clips), expected, atol=1e-6)
    low, high = wilson_interval(correct, clips)
    assert 0 <= low <= correct / clips <= high <= 1


def test_the_interval_of_a_score_is_that_of_its_counts():
    assert score(LOGITS, LABELS, 'abc')['accuracy_interval'] == list(wilson_interval(4, 6))


def test_a_score_is_plain_data():
    result = score(LOGITS.astype(np.float32), LABELS.astype(np.int32), ('a', 'b', 'c'))
    assert json.loads(json.dumps(result)) == result


def test_no_clips_are_an_error():
    with pytest.raises(ValueError, match='at least one clip, got 0'):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match='at least one clip'):
        score(np.zeros((0, 3)), np.zeros(0, int), 'abc')


@pytest.mark.parametrize(
    'logits, labels', [((6, 2), 6), ((6, 3), 5), ((6, 3), [0, 1, 2, 3, 0, 1]), ((6,), 6)]
)
def test_logits_and_labels_that_do_not_fit_the_classes_are_an_error(logits, labels):
    labels = np.zeros(labels, int) if isinstance(labels, int) else np.array(labels)
    with pytest.raises(ValueError, match='logits must be.*labels in 0..2'):
        score(np.zeros(logits), labels, 'abc')


@pytest.mark.parametrize('clips', [1, 4, 5, 12])
def test_predictions_come_in_order_whatever_is_left_for_the_last_batch(clips):
    audio = np.arange(clips * 3, dtype=np.int16).reshape(clips, 3)
    shapes = set()

    def predict(part):
        if part[0, 0] == 0:
            time.sleep(0.05)  # the batch that begins first does not end first
        shapes.add(part.shape)
        assert part.dtype == np.int16
        return part[:, :2] * np.float32(10)

    got = predict_all(predict, audio, batch=4)
    np.testing.assert_array_equal(got, audio[:, :2] * 10.0)
    assert shapes == {(4, 3)}  # one shape, so that one program serves all


def test_what_fails_in_one_batch_is_raised():
    def predict(part):
        if part[0, 0] == 8:
            raise FloatingPointError('the third batch')
        return part

    with pytest.raises(FloatingPointError, match='the third batch'):
        predict_all(predict, np.arange(12, dtype=np.int16)[:, None], batch=4)
