"""A finished model on a folder of recordings, with nothing else at hand."""

import logging
import os
import pathlib

import numpy as np

from kws_jax import deploy
from kws_jax.data import cache as cache_lib
from kws_jax.data import index as index_lib
from kws_jax.data.labels import SILENCE, UNKNOWN, LabelSet
from kws_jax.deploy import execute
from kws_jax.model import Model
from kws_jax.training.evaluation import predict_all, score

SILENCES = ('noise', 'zeros')
_log = logging.getLogger(__name__)


def folder_labels(folders, names) -> dict[str, int]:
    """The class that each folder of a test set stands for.

    `_silence_` and `_unknown_` are the classes silence and unknown. A word that the model does not
    know counts as unknown, with a warning.

    Args:
      folders: names of folders.
      names: the classes of the model.

    Raises:
      ValueError: a folder is no class, and the model has no unknown; or it has the form `_name_`
        and is neither of the two.

    >>> folder_labels(['_silence_', 'yes', '_unknown_'], ['yes', 'silence', 'unknown'])
    {'_silence_': 1, 'yes': 0, '_unknown_': 2}
    """
    names = tuple(names)
    labels = LabelSet(
        names,
        tuple(name for name in names if name not in (SILENCE, UNKNOWN)),
        names.index(SILENCE) if SILENCE in names else None,
        names.index(UNKNOWN) if UNKNOWN in names else None,
    )
    found = {}
    for folder in folders:
        special = folder.startswith('_')
        own = folder.strip('_') if special else folder
        if own in names and (not special or own in (SILENCE, UNKNOWN)):
            found[folder] = names.index(own)
            continue
        if special or labels.unknown is None or own == SILENCE:
            raise ValueError(
                f'test_dir has a folder {folder!r}, which is no class of the model '
                f'({", ".join(names)}); remove the folder, or evaluate a model that knows it'
            )
        _log.warning('folder %s is no class of the model and counts as unknown', folder)
        found[folder] = labels.unknown
    return found


def evaluate_folder(
    model: Model,
    test_dir,
    *,
    cache_dir,
    silence: str = 'noise',
    integers: bool = False,
    batch: int = 250,
) -> dict:
    """Accuracy and costs of a model on a folder in the layout of the official test archive.

    Args:
      model: as `zoo.load` or `model.load` gives it.
      test_dir: one folder of .wav, .flac or .ogg per class, among them `_silence_` and `_unknown_`.
      cache_dir: where the decoded recordings are kept.
      silence: 'noise' takes the silence recordings as they are, 'zeros' replaces them by zeros, as
        in Peter et al. 2022.
      integers: run a quantized model in integers, as a device does, instead of in float32.
      batch: clips at a time.

    Returns:
      JSON-ready dict: what `training.evaluation.score` gives (`accuracy`, `accuracy_interval`,
      `clips`, `cross_entropy`, `recall`, `confusion`, `labels`), what `Model.costs` gives
      (`parameters`, `macs`, `mean_weight_bits`, `mean_activation_bits`, `flash_bytes`,
      `peak_activation_bytes`), `undecodable` (how many files were left out) with
      `undecodable_files` (path and why), `silence` and `integers`.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such folder.
      ValueError: a folder in it is no class (see `folder_labels`), nothing in it can be decoded, or
        `silence` is neither of the two; or `integers` of a model that has no integer form.
    """
    if silence not in SILENCES:
        raise ValueError(f"silence must be 'noise' or 'zeros', got {silence!r}")
    recordings = index_lib.index_test_folder(test_dir)
    classes = folder_labels(sorted({r.word for r in recordings}), model.labels)
    cache = cache_lib.open_cache([os.path.join(test_dir, r.path) for r in recordings], cache_dir)
    labels = np.array([classes[r.word] for r in recordings])[cache.ok]
    audio = np.asarray(cache.audio)[cache.ok]
    if not len(audio):
        raise ValueError(
            f'none of the {len(recordings)} recordings of test_dir={os.fspath(test_dir)!r} can be '
            f'decoded; the first is {recordings[0].path}: {cache.errors[0]}'
        )
    counts = np.bincount(labels, minlength=len(model.labels))
    absent = [name for name, count in zip(model.labels, counts, strict=True) if not count]
    if absent:
        _log.warning('%s has no recordings of %s', os.fspath(test_dir), ', '.join(absent))
    if silence == 'zeros' and SILENCE in model.labels:
        audio[labels == model.labels.index(SILENCE)] = 0
    if integers:
        network = deploy.from_model(model)
        run, step = execute.jitted(network), network.logit_step
    else:
        run, step = model.predictor(), 1
    logits = step * predict_all(run, audio, batch=min(batch, len(audio)))
    return {
        **score(logits, labels, model.labels),
        **model.costs(),
        'silence': silence,
        'integers': integers,
        'undecodable': len(cache.errors),
        'undecodable_files': [
            {'path': recordings[row].path, 'why': why} for row, why in sorted(cache.errors.items())
        ],
    }


def format_evaluation(result: dict) -> str:
    """What `evaluate_folder` found, as text for a terminal.

    Args:
      result: of `evaluate_folder`, with `model` and `test_dir` to name them.
    """
    low, high = result['accuracy_interval']
    lines = [
        f'{result["model"]} on {result["test_dir"]}: {result["clips"]:,} clips',
        f'accuracy         {100 * result["accuracy"]:.2f} % '
        f'(95 % interval {100 * low:.2f} to {100 * high:.2f})',
        f'parameters       {result["parameters"]:,}',
        f'MACs             {result["macs"]:,}',
        f'mean bits        {result["mean_weight_bits"]:.2f} per weight, '
        f'{result["mean_activation_bits"]:.2f} per activation',
        f'flash            {result["flash_bytes"]:,} bytes',
        f'peak activations {result["peak_activation_bytes"]:,} bytes',
    ]
    if result['silence'] == 'zeros':
        lines.append('silence          all zeros')
    if result['integers']:
        lines.append('arithmetic       integers, as on a device')
    if result['undecodable']:
        first = result['undecodable_files'][0]
        lines.append(
            f'left out         {result["undecodable"]} undecodable; the first is '
            f'{pathlib.PurePath(first["path"])}: {first["why"]}'
        )
    return '\n'.join([*lines, '', *confusion_lines(result)])


def confusion_lines(result: dict) -> list[str]:
    """Confusion matrix with recall: a line per class, a dot for none.

    >>> result = {'labels': ['yes', 'no'], 'confusion': [[3, 1], [0, 2]],
    ...           'recall': {'yes': 0.75, 'no': 1.0}}
    >>> print('\\n'.join(confusion_lines(result)))
    spoken  yes no  recall
    yes       3  1  75.0 %
    no        .  2 100.0 %
    """
    labels, confusion = result['labels'], result['confusion']
    first = max(map(len, [*labels, 'spoken'])) + 1
    short = [label[:4] for label in labels] if len(labels) > 16 else labels
    widths = [
        max(len(name), *(len(str(row[j])) for row in confusion)) for j, name in enumerate(short)
    ]
    columns = ' '.join(name.rjust(width) for name, width in zip(short, widths, strict=True))
    lines = [f'{"spoken":<{first}} {columns}  recall']
    for label, row in zip(labels, confusion, strict=True):
        cells = ' '.join(
            (str(n) if n else '.').rjust(width) for n, width in zip(row, widths, strict=True)
        )
        recall = result['recall'][label]
        share = '-' if recall is None else f'{100 * recall:.1f} %'
        lines.append(f'{label:<{first}} {cells} {share:>7}')
    return lines
