"""Opens a data set by where it comes from: what every program's data flags end in."""

import pathlib

from kws_jax.data.dataset import Dataset, load_dataset


def open_dataset(
    *, dataset: str = 'folder', data_dir=None, test_dir=None, cache_dir, **options
) -> Dataset:
    """Opens a folder of recordings, or TFDS's `speech_commands`.

    Args:
      dataset: 'folder' or 'tfds'.
      data_dir: a folder in the Speech Commands layout, or one that holds such a folder as `train`
        and, where `test_dir` is not given, a test folder as `test`; for tfds its data directory.
      test_dir: folder in the layout of the official test archive.
      cache_dir: where decoded audio is kept.
      **options: of `dataset.load_dataset` or `tfds.load_tfds`.

    Raises:
      ValueError: an unknown `dataset`, or no `data_dir` for a folder; what the loaders raise.
    """
    if dataset == 'tfds':
        from kws_jax.data.tfds import load_tfds

        return load_tfds(data_dir=data_dir, cache_dir=cache_dir, **options)
    if dataset != 'folder':
        raise ValueError(f"dataset must be 'folder' or 'tfds', got {dataset!r}")
    if not data_dir:
        raise ValueError('data_dir is missing: give --data_dir=DIR, a folder of recordings')
    root = pathlib.Path(data_dir)
    if (root / 'train').is_dir():
        if test_dir is None and (root / 'test').is_dir():
            test_dir = root / 'test'
        root = root / 'train'
    return load_dataset(data_dir=root, test_dir=test_dir, cache_dir=cache_dir, **options)
