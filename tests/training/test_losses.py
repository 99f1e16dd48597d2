"""Losses against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from kws_jax.training import losses

LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 3
TEACHER = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32) * 3


def test_smoothing_is_spread_over_all_classes_and_labels_still_sum_to_one():
    soft = losses.soft_labels(jnp.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(soft, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    np.testing.assert_array_equal(losses.soft_labels(jnp.array([1]), 3, 0.0), [[0, 1, 0]])


def test_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes():
    targets = losses.soft_labels(jnp.array([3, 1]), 4, 0.1)
    assert float(losses.cross_entropy(jnp.zeros((2, 4)), targets)) == pytest.approx(np.log(4))


def test_cross_entropy_is_that_of_scipy():
    targets = scipy.special.softmax(TEACHER, axis=1)
    expected = -(targets * scipy.special.log_softmax(LOGITS, axis=1)).sum(axis=1).mean()
    got = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets))
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 5.0])
def test_distillation_is_the_relative_entropy_of_scipy_times_the_temperature_squared(temperature):
    teacher = scipy.special.softmax(TEACHER / temperature, axis=1)
    student = scipy.special.softmax(LOGITS / temperature, axis=1)
    expected = scipy.stats.entropy(teacher, student, axis=1).mean() * temperature**2
    got = losses.distillation(jnp.asarray(LOGITS), jnp.asarray(TEACHER), temperature=temperature)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_a_student_like_its_teacher_has_no_loss_and_no_gradient():
    loss = lambda x: losses.distillation(x, jnp.asarray(TEACHER), temperature=2.0)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(TEACHER))
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_teacher_sure_of_one_class_gives_finite_losses():
    sure = jnp.array([[500.0, 0.0, -500.0]])
    loss = lambda x: losses.distillation(x, sure, temperature=1.0)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.zeros((1, 3)))
    assert float(value) == pytest.approx(np.log(3), rel=1e-5)
    np.testing.assert_allclose(gradient, [[-2 / 3, 1 / 3, 1 / 3]], atol=1e-6)


def test_accuracy_counts_rows_whose_largest_logit_is_at_the_label():
    logits = jnp.array([[0.1, 0.9], [2.0, 1.0], [0.0, 5.0], [3.0, -1.0]])
    assert float(losses.accuracy(logits, jnp.array([1, 0, 0, 0]))) == 0.75
