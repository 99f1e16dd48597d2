"""Losses on logits; means over the batch."""

import jax
import jax.numpy as jnp
import optax


def soft_labels(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """One-hot `[batch, classes]` with `smoothing` spread over all classes."""
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
    """Share of `[batch, classes]` logits whose largest is at the label."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
