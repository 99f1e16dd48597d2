"""The `speech_commands` data set of TensorFlow Datasets, without TensorFlow.

TFDS downloads and prepares the data itself; what it stored is then decoded into the same cache as a
folder. Needs `pip install 'kws_jax[tfds]'`.

Its splits are not the ones most papers state. `test` is the official test archive, 4,890 clips of
12 classes, not the 11,005 recordings of `testing_list.txt` (tensorflow/datasets#3061). `train` and
`validation` hold every other word as `_unknown_`, and as `_silence_` seconds cut from the
background noise, half overlapping; here unknown is drawn and silence is made as for a folder, from
that noise (`running_tap` for validation, the rest for training).
"""

import contextlib
import importlib.util
import logging
import os
import types
import warnings

import numpy as np

from kws_jax.data import cache as cache_lib
from kws_jax.data import dataset as dataset_lib
from kws_jax.data import index as index_lib
from kws_jax.data import labels as labels_lib
from kws_jax.data import noise as noise_lib
from kws_jax.data import pools as pools_lib

_TFDS_SPLITS = ('train', 'validation', 'test')
_BLOCK = 256  # examples read at once
_log = logging.getLogger(__name__)


def load_tfds(
    *,
    cache_dir,
    data_dir=None,
    download_dir=None,
    labels='12',
    unknown_percent=10.0,
    silence_percent=10.0,
    seed=0,
    download=True,
    progress=True,
):
    """Loads `speech_commands` of TensorFlow Datasets as a `Dataset`.

    Args:
      cache_dir: folder for decoded audio, 3.3 GB for the whole; see `cache.open_cache`.
      data_dir: where TFDS keeps prepared data; None for its own default, ~/tensorflow_datasets.
        Data prepared here is stored as ArrayRecord, which can be read without TensorFlow.
      download_dir: where TFDS keeps downloads; None for `data_dir`/downloads.
      labels: '12', or a list of some of its ten keywords; TFDS has turned all other words into
        unknown.
      unknown_percent, silence_percent, seed, progress: see `dataset.load_dataset`.
      download: whether to prepare the data when it is not there, from 2.5 GB of downloads.

    Raises:
      ImportError: tensorflow_datasets is not installed.
      FileNotFoundError: the data is not prepared, and `download` is False.
      ValueError: a label that TFDS does not tell apart, or data prepared in another format.
      OSError: no space for the cache.
    """
    label_set = labels_lib.label_set(
        labels, other_words=unknown_percent > 0, noise=silence_percent > 0
    )
    beyond = [word for word in label_set.keywords if word not in labels_lib.KEYWORDS_10]
    if beyond:
        raise ValueError(
            f'labels: TFDS turns {", ".join(beyond)} into unknown; choose among '
            f'{", ".join(labels_lib.KEYWORDS_10)}, or unpack the archive and read the folder: '
            '--dataset=folder --data_dir=DIR (load_dataset)'
        )
    with without_tensorflow():
        builder = _prepared(data_dir, download_dir, download, progress)
        names = builder.info.features['label'].names
        counts = [builder.info.splits[split].num_examples for split in _TFDS_SPLITS]
        files = sorted(os.path.join(builder.data_dir, f) for f in os.listdir(builder.data_dir))
        key = 'tfds-' + cache_lib.file_key(files)
        rows = [
            f'{split}[{i}]' for split, n in zip(_TFDS_SPLITS, counts, strict=True) for i in range(n)
        ]
        cache = cache_lib.store_clips(
            key, cache_dir, lambda: _recordings(builder), len(rows), names=rows, progress=progress
        )
        which = _stored_labels(key, cache_dir, builder, len(rows))
    _log.info(
        'TFDS speech_commands %s: its test split, %d clips here, is the official test '
        'archive of 4,890 clips, not the 11,005 recordings of testing_list.txt',
        builder.info.version,
        counts[2],
    )
    folded = sorted(set(labels_lib.KEYWORDS_10) - set(label_set.keywords))
    if folded and label_set.unknown is not None:
        _log.warning('%s are not among the labels and count as unknown', ', '.join(folded))
    classes = [label_set.index(name) for name in names]
    chosen = np.array([-1 if label is None else label for label in classes], np.int32)[which]
    split = np.repeat(np.arange(3), counts)
    in_test = split == index_lib.SPLITS.index('testing')
    is_noise = (which == names.index(index_lib.SILENCE_FOLDER)) & ~in_test
    noise = {
        name: noise_lib.join(cache.audio[np.flatnonzero(is_noise & (split == number))])
        for number, name in enumerate(index_lib.SPLITS)
    }
    usable = cache.ok & (chosen >= 0) & ~is_noise
    pools = pools_lib.make_pools(label_set, chosen, split, usable, in_test, np.zeros_like(in_test))
    pools_lib.check_counts(label_set, pools, unknown_percent, builder.data_dir)
    options = ('tfds', label_set.names, unknown_percent, silence_percent, seed)
    summary = {
        'source': f'tfds speech_commands {builder.info.version}',
        'recordings': len(rows),
        'conversions': cache.conversions(),
        'undecodable': [{'path': rows[row], 'why': why} for row, why in cache.errors.items()],
    }
    return dataset_lib.Dataset(
        labels=label_set,
        audio=cache.audio,
        pools=pools,
        noise=noise,
        unknown_percent=unknown_percent,
        silence_percent=silence_percent,
        seed=seed,
        fingerprint=dataset_lib.fingerprint([counts, which.tolist()], cache.digest, noise, options),
        summary=summary,
    )


@contextlib.contextmanager
def without_tensorflow():
    """Lets TFDS build and read this data set where TensorFlow is not installed.

    Three modules of TFDS ask TensorFlow for a dtype or to open a local file, and for nothing else
    on this path; numpy and `open` answer in its place. With TensorFlow installed nothing is
    replaced.

    Raises:
      ImportError: tensorflow_datasets is not installed.
    """
    try:
        import array_record  # noqa: F401

        with warnings.catch_warnings():
            # Of ffmpeg, which reading WAV does not need, and of audioop, gone in Python 3.13.
            warnings.simplefilter('ignore')
            import pydub.exceptions  # noqa: F401
        from tensorflow_datasets.core.download import extractor
        from tensorflow_datasets.core.features import audio_feature, feature
    except ImportError as e:
        raise ImportError(
            f'load_tfds needs a package that is not installed ({e.name}): '
            "pip install 'kws_jax[tfds]'",
            name=e.name,
        ) from e
    if importlib.util.find_spec('tensorflow') is not None:
        yield
        return
    answers = types.SimpleNamespace(
        dtypes=types.SimpleNamespace(as_dtype=np.dtype),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    )
    modules = (extractor, audio_feature, feature)
    before = [module.tf for module in modules]
    for module in modules:
        module.tf = answers
    try:
        yield
    finally:
        for module, tf in zip(modules, before, strict=True):
            module.tf = tf


def _prepared(data_dir, download_dir, download, progress):
    import tensorflow_datasets

    if not progress:
        tensorflow_datasets.disable_progress_bar()
    builder = tensorflow_datasets.builder('speech_commands', data_dir=data_dir)
    if builder.is_prepared():
        stored_as = builder.info.file_format.value
        if stored_as != 'array_record':
            raise ValueError(
                f'the data in {builder.data_dir} was prepared as {stored_as}, which only '
                'TensorFlow reads; pass another data_dir to prepare it as array_record (with '
                'download_dir, the downloads are found again)'
            )
        return builder
    if not download:
        raise FileNotFoundError(
            f'TFDS has no prepared speech_commands in {builder.data_dir}; pass '
            'download=True, or another data_dir'
        )
    builder = tensorflow_datasets.builder(
        'speech_commands', data_dir=data_dir, file_format='array_record'
    )
    builder.download_and_prepare(download_dir=download_dir)
    return builder


def _examples(builder):
    for split in _TFDS_SPLITS:
        source = builder.as_data_source(split=split)
        for start in range(0, len(source), _BLOCK):
            yield from source.__getitems__(list(range(start, min(start + _BLOCK, len(source)))))


def _recordings(builder):
    for example in _examples(builder):
        audio = np.asarray(example['audio'], np.int16)
        yield cache_lib.Decoded(
            audio if len(audio) else None, error='' if len(audio) else 'no samples'
        )


def _stored_labels(key, cache_dir, builder, count):
    """Returns int32 [count], TFDS's label of every row; stored, for to read one reads its audio."""

    def build(folder):
        labels = np.fromiter((int(e['label']) for e in _examples(builder)), np.int32, count)
        np.save(os.path.join(folder, 'labels.npy'), labels)

    folder = cache_lib.stored(key + '-labels', cache_dir, build, needed=4 * count)
    return np.load(os.path.join(folder, 'labels.npy'))
