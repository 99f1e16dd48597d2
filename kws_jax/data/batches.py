"""Batches as a pure function of the step, so that a restart sees the very same stream."""

import functools
from collections.abc import Callable

import numpy as np

from kws_jax.data.dataset import SILENCE_ROW, Dataset


def steps_per_epoch(dataset: Dataset, batch: int) -> int:
    """Whole batches in an epoch; the rest of its examples is left out.

    Raises:
      ValueError: the batch is larger than the data.
    """
    if batch < 1 or batch > dataset.train_size:
        raise ValueError(
            f'batch must be in 1..{dataset.train_size} (the training examples), got {batch}'
        )
    return dataset.train_size // batch


def training_source(dataset: Dataset, *, batch: int, seed: int) -> Callable:
    """`source(step, n)` for training: int16 `audio`, int32 `label`, bool `is_silence`, `[n, batch, ...]`."""
    per_epoch = steps_per_epoch(dataset, batch)

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return dataset.epoch(seed=seed, epoch=epoch)

    def source(step: int, n: int) -> dict:
        rows, labels = [], []
        for i in range(step, step + n):
            epoch, within = divmod(i, per_epoch)
            all_rows, all_labels = order(epoch)
            part = slice(within * batch, (within + 1) * batch)
            rows.append(all_rows[part])
            labels.append(all_labels[part])
        rows, labels = np.concatenate(rows), np.concatenate(labels)
        return {
            'audio': dataset.batch(rows).reshape(n, batch, -1),
            'label': labels.reshape(n, batch),
            'is_silence': (rows == SILENCE_ROW).reshape(n, batch),
        }

    return source


def search_source(
    dataset: Dataset, validation: tuple[np.ndarray, np.ndarray], *, batch: int, seed: int
) -> Callable:
    """`training_source` with one validation batch per step beside it.

    `validation` is what `Dataset.evaluation('validation')` returned; its clips come in an order that
    is a function of (seed, pass).
    """
    train = training_source(dataset, batch=batch, seed=seed)
    audio, labels = validation
    size = min(batch, len(audio))
    per_pass = len(audio) // size

    @functools.lru_cache(maxsize=2)
    def order(number):
        return np.random.default_rng([seed, number, 1]).permutation(len(audio))

    def source(step: int, n: int) -> dict:
        picked = []
        for i in range(step, step + n):
            number, within = divmod(i, per_pass)
            picked.append(order(number)[within * size : (within + 1) * size])
        rows = np.stack(picked)
        return train(step, n) | {
            'validation_audio': audio[rows],
            'validation_label': labels[rows].astype(np.int32),
        }

    return source
