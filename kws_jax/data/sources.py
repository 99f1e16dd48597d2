"""Opens a data set by where it comes from: what every program's data flags end in."""

import os

from kws_jax.data import index as index_lib
from kws_jax.data import pools as pools_lib
from kws_jax.data.dataset import Dataset, load_dataset


def find_folders(data_dir, test_dir=None):
    """Finds the recordings and the test set of a data folder.

    Where `data_dir` holds `train/`, a folder of folders and not of recordings, that is taken
    instead, and with it `test/` where there is one and `test_dir` is not given.

    Args:
      data_dir: folder in the Speech Commands layout, or one that holds such a folder as `train`.
      test_dir: folder in the layout of the official test archive, or None.

    Returns:
      (folder of recordings, test folder or None), paths.
    """
    train, test = os.path.join(data_dir, 'train'), os.path.join(data_dir, 'test')
    if not index_lib.holds_words(train):  # absent, or the recordings of a word called train
        return data_dir, test_dir
    if test_dir is None and os.path.isdir(test):
        test_dir = test
    return train, test_dir


def open_dataset(
    *, dataset: str = 'folder', data_dir=None, test_dir=None, cache_dir, **options
) -> Dataset:
    """Opens a folder of recordings, or TFDS's `speech_commands`.

    Args:
      dataset: 'folder' or 'tfds'.
      data_dir: a folder in the Speech Commands layout, or one that holds such a folder as `train`
        (see `find_folders`); for tfds its data directory.
      test_dir: folder in the layout of the official test archive; not for tfds, which has it.
      cache_dir: where decoded audio is kept.
      **options: of `dataset.load_dataset` or `tfds.load_tfds`.

    Raises:
      ValueError: an unknown `dataset`, no `data_dir` for a folder, or a `test_dir` for tfds; what
        the loaders raise.
    """
    if dataset == 'tfds':
        if test_dir is not None:
            raise ValueError(
                f'test_dir={os.fspath(test_dir)!r} cannot be used with dataset=tfds, whose test '
                'split is the official test archive; leave --test_dir out, or read a folder of '
                'recordings: --dataset=folder --data_dir=DIR'
            )
        from kws_jax.data.tfds import load_tfds

        return load_tfds(data_dir=data_dir, cache_dir=cache_dir, **options)
    if dataset != 'folder':
        raise ValueError(f"dataset must be 'folder' or 'tfds', got {dataset!r}")
    if not data_dir:
        raise ValueError('data_dir is missing: give --data_dir=DIR, a folder of recordings')
    root, test = find_folders(data_dir, test_dir)
    try:
        return load_dataset(data_dir=root, test_dir=test, cache_dir=cache_dir, **options)
    except ValueError as error:
        if test == test_dir:
            raise
        # Nobody gave the test folder, so nobody can leave it out.
        way_out = f'give --data_dir={root}'
        raise ValueError(str(error).replace(pools_lib.WITHOUT_TEST_DIR, way_out)) from None
