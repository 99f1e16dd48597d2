"""Losses on logits; means over the batch."""

import jax
import jax.numpy as jnp
import optax


def soft_labels(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Target probabilities: one-hot with `smoothing` of it spread over all classes.

    Szegedy et al. 2016, sect. 7. `labels` is int `[batch]`; returns float32 `[batch, classes]`.

    >>> soft_labels(jnp.array([1]), 4, 0.2)
    Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of `[batch, classes]` logits and target probabilities, in nats."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def distillation(logits: jax.Array, teacher: jax.Array, *, temperature: float) -> jax.Array:
    """Mean KL divergence from the teacher's softened distribution, times temperature squared.

    Hinton et al. 2015, sect. 2. `logits` and `teacher` are `[batch, classes]`.
    """
    target = jax.nn.softmax(teacher / temperature)
    log_p = jax.nn.log_softmax(logits / temperature)
    kl = optax.losses.kl_divergence(log_p, target).mean()
    return kl * temperature**2


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of `[batch, classes]` logits whose largest is at the label, int `[batch]`.

    >>> accuracy(jnp.array([[0.2, 0.8], [0.9, 0.1]]), jnp.array([1, 1]))
    Array(0.5, dtype=float32)
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
