"""Which rows of the audio each split may use, and whether that is enough for the labels."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping

import numpy as np

from kws_jax.data import index as index_lib
from kws_jax.data import labels as labels_lib

WITHOUT_TEST_DIR = 'leave test_dir out'  # part of a message
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pools:
    """Which rows of the audio each split may use.

    fixed: {split: (int32 [n] rows, int32 [n] labels)}, used whole.
    unknown: {split: int32 [n] rows} of other words, of which a share is drawn.
    extra_unknown: int32 [n], rows of further other words, for training only.
    complete: splits whose `fixed` holds their silence and unknown already; nothing is drawn or made
      for them.
    """

    fixed: Mapping[str, tuple[np.ndarray, np.ndarray]]
    unknown: Mapping[str, np.ndarray]
    extra_unknown: np.ndarray
    complete: frozenset[str] = frozenset()


def make_pools(label_set, chosen, split, usable, in_test, in_extra):
    """Sorts rows into `Pools`.

    Args:
      label_set: `LabelSet`.
      chosen: int32 [N], class of each row, -1 for none.
      split: int [N], index into `index.SPLITS`, -1 for none.
      usable: bool [N], whether the row is an example of anything.
      in_test: bool [N], rows of a test folder, which is used whole.
      in_extra: bool [N], rows of further other words.
    """
    other = chosen == (-2 if label_set.unknown is None else label_set.unknown)
    fixed, unknown = {}, {}
    for number, name in enumerate(index_lib.SPLITS):
        here = usable & (split == number) & ~in_extra
        rows = np.flatnonzero(here & (in_test | ~other)).astype(np.int32)
        fixed[name] = rows, chosen[rows]
        unknown[name] = np.flatnonzero(here & other & ~in_test).astype(np.int32)
    return Pools(
        fixed,
        unknown,
        np.flatnonzero(usable & in_extra).astype(np.int32),
        frozenset({'testing'} if in_test.any() else ()),
    )


def check_counts(label_set, pools, unknown_percent, data_dir):
    """Checks that every class has recordings to train on, and logs what is scarce or absent.

    Raises:
      ValueError: a class has none.
    """
    for split in index_lib.SPLITS:
        counts = np.bincount(pools.fixed[split][1], minlength=len(label_set))
        without = [word for word in label_set.keywords if not counts[label_set.index(word)]]
        if without and split == 'training':
            raise ValueError(
                f'no training recordings of {", ".join(without)} in '
                f'data_dir={os.fspath(data_dir)!r}: all of theirs are in the validation or testing '
                'split or undecodable; record more speakers, name fewer of them in '
                'validation_list.txt and testing_list.txt, or leave the word out of labels'
            )
        if split in pools.complete:  # its silence and unknown are recordings too
            without = [word for word in label_set.names if not counts[label_set.index(word)]]
        elif label_set.unknown is not None and unknown_percent > 0 and split != 'training':
            without += [labels_lib.UNKNOWN] * (not len(pools.unknown[split]))
        if without:
            _log.warning('no %s recordings of %s', split, ', '.join(without))
    pool = len(pools.unknown['training']) + len(pools.extra_unknown)
    if label_set.unknown is not None and unknown_percent > 0:
        if not pool:
            raise ValueError(
                f'no training recordings for unknown in data_dir={os.fspath(data_dir)!r}: put '
                'folders of other words into it, pass extra_unknown_dir, set unknown_percent=0, or '
                'pass labels as a list of words'
            )
        wanted = math.ceil(len(pools.fixed['training'][0]) * unknown_percent / 100)
        if pool < wanted:
            _log.warning(
                'unknown has %d training recordings, fewer than the %d that '
                'unknown_percent=%g asks for',
                pool,
                wanted,
                unknown_percent,
            )


def check_words(label_set, words, data_dir):
    """Checks that every keyword is among the words of `data_dir`.

    Raises:
      ValueError: one is not.
    """
    missing = [word for word in label_set.keywords if word not in words]
    if missing:
        there = ','.join(word for word in words if not word.startswith('_'))
        raise ValueError(
            f'data_dir={os.fspath(data_dir)!r} has no folder for {", ".join(missing)}; record '
            f'them, or pass labels with words that are there: {there}'
        )


def check_test_labels(label_set, testing, words, test_dir):
    """Checks that every folder of `test_dir` is a label or, where there is unknown, a known word.

    Raises:
      ValueError: one is not.
    """
    for word in sorted({r.word for r in testing}):
        special = word in (index_lib.SILENCE_FOLDER, index_lib.UNKNOWN_FOLDER)
        if (word.strip('_') if special else word) in label_set.names:
            continue
        if word in words and label_set.unknown is not None:
            _log.warning('test_dir: %s is not among the labels and counts as unknown', word)
            continue
        why = 'it is neither a label nor a word of data_dir'
        if special:
            why = 'the labels have no such class'
        raise ValueError(
            f'test_dir={os.fspath(test_dir)!r} has a folder {word!r}, but {why} '
            f'({", ".join(label_set.names)}); remove the folder, pass labels that include it, or '
            f'{WITHOUT_TEST_DIR} to use the testing split of data_dir'
        )


def warn_of_shared_speakers(training, testing):
    """Logs how many speakers are in more than one of the splits that are used.

    Args:
      training, testing: lists of `Recording`, of the data folder and of the test folder.
    """
    used = [r for r in training if not (testing and r.split == 'testing')] + testing
    shared = index_lib.shared_speakers(used)
    if shared:
        _log.warning(
            '%d speakers are in more than one split, the first is %s; accuracy on them '
            'says little about others',
            len(shared),
            shared[0],
        )
