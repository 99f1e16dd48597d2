"""The data set that training and evaluation read: rows, labels, and int16 audio by row."""

import hashlib
import logging
import math
import os

import numpy as np

from kws_jax.data import cache as cache_lib
from kws_jax.data import index as index_lib
from kws_jax.data import labels as labels_lib
from kws_jax.data import noise as noise_lib
from kws_jax.data import pools as pools_lib
from kws_jax.data.cache import SAMPLES

SILENCE_ROW = -1
_log = logging.getLogger(__name__)


class Dataset:
    """Recordings with labels; `load_dataset` and `tfds.load_tfds` make it.

    labels: `LabelSet`.
    audio: int16 [N, 16000], read-only memory map at 16 kHz.
    noise: int16 [M], the training part of the background noise, one recording after the other; one
      second of zeros where the data has none.
    train_size: examples of an epoch, the same for each.
    fingerprint: hash of the audio, the labels and every option; equal for the same recordings and
      options.
    """

    def __init__(
        self,
        *,
        labels,
        audio,
        pools,
        noise,
        unknown_percent,
        silence_percent,
        seed=0,
        extra_unknown_share=None,
        fingerprint='',
        summary=None,
    ):
        """Takes what `load_dataset` found.

        Args:
          labels: `LabelSet`.
          audio: int16 [N, 16000].
          pools: `pools.Pools`.
          noise: {split: list of int16 [n]}, one array per noise recording.
          unknown_percent, silence_percent: of the number of keyword examples.
          seed: int >= 0, of everything drawn for evaluation.
          extra_unknown_share: see `load_dataset`.
          fingerprint: str.
          summary: dict, added to what `describe` returns.

        Raises:
          ValueError: a percentage or the share is out of range.
        """
        percents = {'unknown_percent': unknown_percent, 'silence_percent': silence_percent}
        for name, percent in percents.items():
            if not percent >= 0:
                raise ValueError(
                    f'{name} must be at least 0 (percent of the keyword examples), got {percent}'
                )
        share = extra_unknown_share
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f'extra_unknown_share must be in 0..1 or None, got {share}')
        self.labels = labels
        self.audio = audio
        self.fingerprint = fingerprint
        self.seed = seed
        # Indexing the memory map itself would make a memory map of every batch, which is slow.
        self._array = np.asarray(audio)
        self._pools = pools
        self._noise = {
            split: [n for n in noise.get(split, ()) if len(n)] for split in index_lib.SPLITS
        }
        self.noise = np.concatenate(self._noise['training'] or [np.zeros(SAMPLES, np.int16)])
        if len(self.noise) < SAMPLES:
            self.noise = np.resize(self.noise, SAMPLES)
        self._unknown_percent, self._silence_percent = unknown_percent, silence_percent
        self._extra_share = share
        self._summary = summary or {}
        self.train_size = len(self.epoch(seed=0, epoch=0)[0])

    def epoch(self, *, seed, epoch):
        """Returns every training example of an epoch, in the order of use.

        A pure function of (seed, epoch), the same in every process. The other words that stand for
        unknown are drawn anew for each epoch. Row -1 is silence, to be made from `noise` by whoever
        augments the batch.

        Args:
          seed, epoch: int >= 0.

        Returns:
          (int32 [train_size] rows, int32 [train_size] labels).
        """
        rng = np.random.default_rng([seed, epoch])
        rows, labels = self._pools.fixed['training']
        parts = [(rows, labels)]
        if self.labels.unknown is not None:
            parts.append(self._labelled(self._draw_unknown('training', rng), self.labels.unknown))
        parts.append(self._silence_rows('training'))
        rows, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = rng.permutation(len(rows))
        return rows[order], labels[order]

    def batch(self, rows):
        """Returns the audio of these rows: int16 [len(rows), 16000]; row -1 gives zeros.

        Raises:
          IndexError: a row is not in -1..N-1.
        """
        rows = np.asarray(rows)
        if rows.size and (rows.min() < SILENCE_ROW or rows.max() >= len(self._array)):
            raise IndexError(
                f'rows must be in -1..{len(self._array) - 1}, got {rows.min()}..{rows.max()}'
            )
        audio = np.empty((len(rows), SAMPLES), np.int16)
        if len(self._array):
            np.take(self._array, rows, axis=0, out=audio, mode='clip')
        audio[rows == SILENCE_ROW] = 0
        return audio

    def evaluation(self, split, *, silence='noise'):
        """Returns all examples of a split, always the same and in one order.

        Args:
          split: 'validation' or 'testing'.
          silence: 'noise' for seconds of background noise that training never hears, at a volume
            uniform in 0..1, or the silence recordings of a test folder as they are; 'zeros' for
            silence that is all zeros, as in Peter et al. 2022, which every network gets right.

        Returns:
          (int16 [n, 16000] audio, int32 [n] labels).

        Raises:
          ValueError: an unknown split or form of silence, or a split without recordings.
        """
        if silence not in ('noise', 'zeros'):
            raise ValueError(f"silence must be 'noise' or 'zeros', got {silence!r}")
        rows, labels = self.evaluation_rows(split)
        audio = self.batch(rows)
        if silence == 'zeros':
            audio[labels == (-1 if self.labels.silence is None else self.labels.silence)] = 0
        else:
            made = rows == SILENCE_ROW
            audio[made] = noise_lib.cut(self._noise[split], int(made.sum()), self._rng(split, 1))
        return audio, labels

    def evaluation_rows(self, split):
        """Returns (int32 [n] rows, int32 [n] labels) of `evaluation` without reading audio.

        Row -1 is silence that `evaluation` makes.

        Raises:
          ValueError: as `evaluation`.
        """
        if split not in index_lib.SPLITS[1:]:
            raise ValueError(
                f"split must be 'validation' or 'testing', got {split!r}; "
                'training examples come from epoch()'
            )
        if not len(self._pools.fixed[split][0]):
            ways = f'name recordings in {split}_list.txt or record more speakers'
            if split == 'testing':
                ways = f'pass test_dir, {ways}'
            raise ValueError(f'there are no {split} recordings of the keywords; {ways}')
        parts = [self._pools.fixed[split]]
        if split not in self._pools.complete:
            if self.labels.unknown is not None:
                drawn = np.sort(self._draw_unknown(split, self._rng(split, 0)))
                parts.append(self._labelled(drawn, self.labels.unknown))
            parts.append(self._silence_rows(split))
        rows, labels = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(labels)

    def describe(self):
        """Returns what the data set holds, above all examples per class, as a dict fit for JSON."""
        classes = {}
        for split in index_lib.SPLITS:
            if split == 'training':
                labels = self.epoch(seed=self.seed, epoch=0)[1]
            elif len(self._pools.fixed[split][0]):
                labels = self.evaluation_rows(split)[1]
            else:
                labels = np.zeros(0, np.int32)
            counts = np.bincount(labels, minlength=len(self.labels))
            classes[split] = dict(zip(self.labels.names, counts.tolist(), strict=True))
        return {
            'fingerprint': self.fingerprint,
            'labels': list(self.labels.names),
            'examples': {split: sum(counts.values()) for split, counts in classes.items()},
            'classes': classes,
            'unknown_pool': {
                **{split: len(rows) for split, rows in self._pools.unknown.items()},
                'extra': len(self._pools.extra_unknown),
            },
            'noise_seconds': {
                split: round(sum(map(len, parts)) / cache_lib.SAMPLE_RATE, 1)
                for split, parts in self._noise.items()
            },
            'unknown_percent': self._unknown_percent,
            'silence_percent': self._silence_percent,
            **self._summary,
        }

    def _rng(self, split, purpose):
        return np.random.default_rng([self.seed, index_lib.SPLITS.index(split), purpose])

    def _share(self, split, percent):
        return math.ceil(len(self._pools.fixed[split][0]) * percent / 100)

    def _silence_rows(self, split):
        count = 0 if self.labels.silence is None else self._share(split, self._silence_percent)
        return self._labelled(np.full(count, SILENCE_ROW, np.int32), self.labels.silence or 0)

    def _draw_unknown(self, split, rng):
        own, wanted = self._pools.unknown[split], self._share(split, self._unknown_percent)
        extra = self._pools.extra_unknown if split == 'training' else own[:0]
        if self._extra_share is None or not len(extra):
            pool = np.concatenate([own, extra])
            return rng.choice(pool, min(wanted, len(pool)), replace=False)
        # Drawn alike, a large extra folder crowds out the recordings that sound like evaluation's.
        from_extra = min(round(wanted * self._extra_share), len(extra))
        from_own = min(wanted - from_extra, len(own))
        drawn = [rng.choice(own, from_own, replace=False)]
        return np.concatenate([*drawn, rng.choice(extra, from_extra, replace=False)])

    @staticmethod
    def _labelled(rows, label):
        return rows.astype(np.int32), np.full(len(rows), label, np.int32)


def load_dataset(
    *,
    data_dir,
    cache_dir,
    test_dir=None,
    labels='12',
    unknown_percent=10.0,
    silence_percent=10.0,
    extra_unknown_dir=None,
    extra_unknown_share=None,
    validation_percent=10,
    testing_percent=10,
    seed=0,
    progress=True,
):
    """Loads a folder in the Speech Commands layout as a `Dataset`, decoding it on first use.

    Args:
      data_dir: folder of `<word>/<speaker>_nohash_<n>.wav` (or .flac, .ogg), with
        `_background_noise_/` and the two split lists where they exist; see `index.index_folder`.
      cache_dir: folder for decoded audio, 32 kB a recording; see `cache.open_cache`.
      test_dir: folder in the layout of the official test archive, one folder per label. It replaces
        the testing split of `data_dir`, and is used whole. A folder whose name is no label counts
        as unknown if it is a word of `data_dir`.
      labels: '12', '35' or words of one's own; see `labels.label_set`. Of one's own words, unknown
        and silence are appended only where there is data for them and their percentage is above 0.
      unknown_percent, silence_percent: how many examples of these classes, in percent of the
        keyword examples of the split; for unknown, all there are when there are fewer.
      extra_unknown_dir: another folder in the layout of `data_dir`, whose words, except the
        keywords, are further unknown for training only, whatever their split.
      extra_unknown_share: part of the training examples of unknown that come from
        `extra_unknown_dir`, 0..1; None draws from all other words alike.
      validation_percent, testing_percent: see `index.speaker_split`.
      seed: int >= 0, of what is drawn for evaluation.
      progress: whether to show a bar while decoding.

    Of every noise recording, the first 80 % serve training, the next 10 % validation and the last
    10 % testing.

    Raises:
      FileNotFoundError, NotADirectoryError: a folder does not exist or is a file.
      ValueError: a folder holds no recordings, a class has none to train on, a folder of `test_dir`
        is no label.
      OSError: no space for the cache.
    """
    training = index_lib.index_folder(
        data_dir, validation_percent=validation_percent, testing_percent=testing_percent
    )
    testing = [] if test_dir is None else index_lib.index_test_folder(test_dir)
    if not extra_unknown_dir:
        extra_unknown_share = None
    extra = _index_extra(extra_unknown_dir) if extra_unknown_dir else []
    noise_paths = [os.path.join(data_dir, p) for p in index_lib.noise_files(data_dir)]
    words = sorted({r.word for r in training})
    no_others = (*labels_lib.label_set(labels).keywords, labels_lib.SILENCE)
    label_set = labels_lib.label_set(
        labels,
        other_words=unknown_percent > 0
        and any(r.word not in no_others for r in [*training, *extra]),
        noise=silence_percent > 0 and (bool(noise_paths) or labels_lib.SILENCE in words),
    )
    pools_lib.check_words(label_set, words, data_dir)
    if testing:
        pools_lib.check_test_labels(label_set, testing, words, test_dir)
    if label_set.silence is not None and not noise_paths and silence_percent > 0:
        _log.warning('%s has no %s folder: silence is all zeros', data_dir, index_lib.NOISE_FOLDER)

    if extra and label_set.unknown is None:
        _log.warning('extra_unknown_dir is not used: the labels have no unknown')
    extra = [r for r in extra if label_set.unknown is not None and r.word not in no_others]
    recordings = [(data_dir, r) for r in training]
    recordings += [(test_dir, r) for r in testing] + [(extra_unknown_dir, r) for r in extra]
    cache = cache_lib.open_cache(
        [os.path.join(root, r.path) for root, r in recordings], cache_dir, progress=progress
    )
    noise, noise_errors = cache_lib.open_noise(noise_paths, cache_dir) if noise_paths else ([], {})
    noise = noise_lib.split(noise)

    first_extra = len(training) + len(testing)
    classes = [label_set.index(r.word) for _, r in recordings]
    chosen = np.array([-1 if label is None else label for label in classes], np.int32)
    split = np.array([index_lib.SPLITS.index(r.split) for _, r in recordings])
    in_test = np.zeros(len(recordings), bool)
    in_test[len(training) : first_extra] = True
    in_extra = np.arange(len(recordings)) >= first_extra
    if testing:
        # The test folder takes the place of the tree's own testing split.
        split[(split == index_lib.SPLITS.index('testing')) & ~in_test] = -1
    usable = cache.ok & (chosen >= 0)
    pools = pools_lib.make_pools(label_set, chosen, split, usable, in_test, in_extra)
    pools_lib.check_counts(label_set, pools, unknown_percent, data_dir)
    pools_lib.warn_of_shared_speakers(training, testing)
    options = (label_set.names, unknown_percent, silence_percent, extra_unknown_share, seed)
    names = [(r.path, r.split) for _, r in recordings]
    dataset = Dataset(
        labels=label_set,
        audio=cache.audio,
        pools=pools,
        noise=noise,
        unknown_percent=unknown_percent,
        silence_percent=silence_percent,
        seed=seed,
        extra_unknown_share=extra_unknown_share,
        fingerprint=fingerprint(names, cache.digest, noise, options),
        summary=_source(data_dir, test_dir) | _summary(recordings, cache, noise_errors),
    )
    examples = ', '.join(f'{n} {split}' for split, n in dataset.describe()['examples'].items())
    _log.info(
        'data set %s: %s examples, classes %s',
        dataset.fingerprint,
        examples,
        ' '.join(label_set.names),
    )
    return dataset


def fingerprint(names, digest, noise, options):
    """Returns 16 hexadecimal digits that change with any name, recording, noise or option.

    Args:
      names: anything whose repr names the recordings.
      digest: uint8 [N, 16], as `AudioCache.digest`.
      noise: {split: list of int16 [n]}.
      options: anything whose repr tells options apart.
    """
    hashed = hashlib.blake2b(repr(options).encode(), digest_size=8)
    hashed.update(repr(names).encode('utf-8', 'surrogateescape'))
    hashed.update(np.ascontiguousarray(digest).tobytes())
    for split in index_lib.SPLITS:
        for part in noise.get(split, ()):
            hashed.update(np.ascontiguousarray(part).tobytes())
    return hashed.hexdigest()


def _index_extra(root):
    try:
        return index_lib.index_folder(root)
    except (ValueError, OSError) as e:
        raise type(e)(str(e).replace('data_dir', 'extra_unknown_dir')) from None


def _source(data_dir, test_dir):
    synthetic = os.path.exists(os.path.join(data_dir, 'CORPUS.json'))
    folder = os.path.basename(os.path.abspath(data_dir))
    if folder == 'train':
        folder = os.path.basename(os.path.dirname(os.path.abspath(data_dir)))
    where = 'its own test split' if test_dir is None else 'the clips of a test folder'
    return {'source': f'{folder}, tested on {where}', 'synthetic': synthetic}


def _summary(recordings, cache, noise_errors):
    speakers = index_lib.speakers_by_split(r for _, r in recordings)
    return {
        'recordings': len(recordings),
        'speakers': {split: len(names) for split, names in speakers.items()},
        'conversions': cache.conversions(),
        'undecodable': [
            {'path': recordings[row][1].path, 'why': why}
            for row, why in sorted(cache.errors.items())
        ]
        + [{'path': path, 'why': why} for path, why in noise_errors.items()],
    }
