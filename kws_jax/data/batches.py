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
    """Builds `source(step, n)`, the batches of steps `step` to `step + n - 1` of a training run.

    Args:
      dataset: where examples come from.
      batch: examples per step.
      seed: of the order of examples in every epoch.

    Returns:
      `source`, a pure function; it returns int16 `audio` `[n, batch, 16000]`, int32 `label`
      `[n, batch]`, bool `is_silence` `[n, batch]`, whose audio is zeros, and bool `is_unknown`
      `[n, batch]`.

    Raises:
      ValueError: the batch is larger than the data.
    """
    per_epoch = steps_per_epoch(dataset, batch)
    unknown = -1 if dataset.labels.unknown is None else dataset.labels.unknown

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
            'is_unknown': (labels == unknown).reshape(n, batch),
        }

    return source


def search_source(
    dataset: Dataset, validation: tuple[np.ndarray, np.ndarray], *, batch: int, seed: int
) -> Callable:
    """Builds `source(step, n)`, as `training_source`, with a validation batch for every step.

    Args:
      dataset, batch, seed: as for `training_source`.
      validation: what `Dataset.evaluation('validation')` returned; its clips come in an order that
        is a function of (seed, pass).

    Returns:
      `source`, which returns also int16 `validation_audio` `[n, m, 16000]` and int32
      `validation_label` `[n, m]`, where m is `batch`, or the number of clips if these are fewer.

    Raises:
      ValueError: the batch is larger than the data, or there are no validation clips.
    """
    train = training_source(dataset, batch=batch, seed=seed)
    audio, labels = validation
    if not len(audio):
        raise ValueError('the search needs validation clips, got none')
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
