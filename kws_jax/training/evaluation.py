"""Logits of many clips, and what they score."""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

BATCH = 50
AT_ONCE = 2


def predict_all(predict: Callable, audio: np.ndarray, *, batch: int = BATCH) -> np.ndarray:
    """Logits of all clips.

    Two batches are under way at once. On a CPU each then stays on the cores that it began on, where
    those of one batch alone exchange their halves of its images after some operations, and reading
    what another core wrote took up to half of the time.

    Args:
      predict: jitted `predict(int16 [batch, samples]) -> [batch, classes]`; called from threads.
      audio: int16 `[clips, samples]`.
      batch: clips at a time; the last batch is filled up with zeros. Small ones stay in the cache
        of a CPU.

    Returns:
      float32 `[clips, classes]`.
    """

    def logits(start):
        part = audio[start : start + batch]
        if len(part) < batch:
            part = np.concatenate([part, np.zeros((batch - len(part), audio.shape[1]), np.int16)])
        return np.asarray(jax.device_get(predict(part)))[: len(audio) - start]

    return np.concatenate(list(_threads().map(logits, range(0, len(audio), batch))))


@functools.cache
def _threads():
    """Kept, with the memory that they work in."""
    return concurrent.futures.ThreadPoolExecutor(AT_ONCE, 'predict_all')


def wilson_interval(correct: int, clips: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a proportion, at the default `z` (Wilson 1927).

    Args:
      correct: how often it was met.
      clips: of how many, at least one.
      z: quantile of the normal distribution.

    Raises:
      ValueError: there are no clips.

    >>> [round(x, 3) for x in wilson_interval(90, 100)]
    [0.826, 0.945]
    """
    if clips <= 0:
        raise ValueError(f'an accuracy needs at least one clip, got {clips}; give more data')
    p, n = correct / clips, clips
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def score(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict:
    """Accuracy with its interval, loss, recall per class and confusion matrix.

    Args:
      logits: `[clips, classes]`.
      labels: int `[clips]`.
      names: the classes.

    Returns:
      JSON-ready dict: `accuracy`, `accuracy_interval` (95 %), `clips`, `cross_entropy` (nats),
      `recall` per class (None without clips), `confusion` `[true][predicted]`, `labels`.

    Raises:
      ValueError: no clips, or shapes that do not fit each other or `names`.

    >>> result = score([[2, 0], [1, 0], [0, 3]], [0, 1, 1], ('yes', 'no'))
    >>> result['confusion'], result['recall']
    ([[1, 0], [1, 1]], {'yes': 1.0, 'no': 0.5})
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    fits = logits.shape == (*labels.shape, len(names)) and labels.ndim == 1
    if not fits or (labels.size and not 0 <= labels.min() <= labels.max() < len(names)):
        raise ValueError(
            f'logits must be [clips, {len(names)}] and labels in 0..{len(names) - 1} [clips], got '
            f'{list(logits.shape)} and labels of shape {list(labels.shape)}; give the names of the '
            'classes that the model was trained with'
        )
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, predicted), 1)
    correct, clips = int((predicted == labels).sum()), len(labels)
    interval = wilson_interval(correct, clips)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    totals = confusion.sum(axis=1)
    return {
        'accuracy': correct / clips,
        'accuracy_interval': list(interval),
        'clips': clips,
        'cross_entropy': float(-log_p[np.arange(clips), labels].mean()),
        'recall': {
            name: (float(confusion[i, i] / totals[i]) if totals[i] else None)
            for i, name in enumerate(names)
        },
        'confusion': confusion.tolist(),
        'labels': list(names),
    }
