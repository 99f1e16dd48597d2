"""Scores in integers: the softmax, near enough for a threshold."""

import math

import numpy as np
import pytest

from kws_jax import detection
from kws_jax.deploy import scores


@pytest.mark.parametrize('logit_step', [1e-4, 0.003, 0.7])
def test_they_are_the_softmax(logit_step):
    rng = np.random.default_rng(0)
    logits = (rng.normal(scale=4, size=(500, 12)) / logit_step).astype(np.int32)
    found = scores.scores(logits, logit_step)
    expected = detection.softmax(logits * logit_step)
    np.testing.assert_allclose(found / scores.SCORE_ONE, expected, atol=2e-4)
    assert found.max() <= scores.SCORE_ONE and found.min() >= 0
    assert np.abs(found.sum(axis=1) - scores.SCORE_ONE).max() <= 6  # half a unit a class


def test_the_farthest_logits_do_not_overflow():
    ends = np.array([[2**31 - 1, -(2**31), 0]], np.int32)
    np.testing.assert_array_equal(scores.scores(ends, 0.5), [[scores.SCORE_ONE, 0, 0]])
    near = np.array([[2**31 - 1, 2**31 - 1, -(2**31)]], np.int32)
    half = scores.SCORE_ONE // 2
    np.testing.assert_array_equal(scores.scores(near, 1e-6), [[half, half, 0]])


def test_halves_fall_in_halves():
    # logits in steps of ln 2: each is twice the next
    found = scores.scores(np.arange(3, dtype=np.int32)[::-1], math.log(2.0))
    np.testing.assert_array_equal(found, np.round(np.array([4, 2, 1]) / 7 * scores.SCORE_ONE))


@pytest.mark.parametrize('logit_step', [1e-30, 1e30])
def test_a_step_without_a_multiplier_is_an_error(logit_step):
    with pytest.raises(ValueError, match='have no scores in integers'):
        scores.score_multiplier(logit_step)
