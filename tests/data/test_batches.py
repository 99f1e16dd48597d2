"""Streams of batches as pure functions of the step, and data sets opened by where they are."""

import numpy as np
import pytest

from kws_jax.data import sources
from kws_jax.data.batches import search_source, steps_per_epoch, training_source
from kws_jax.data.dataset import Dataset
from kws_jax.data.labels import label_set
from kws_jax.data.pools import Pools

BATCH = 4


@pytest.fixture
def dataset():
    """24 keyword examples, 3 of unknown out of 10, 3 of silence: 30 an epoch.

    The first sample of a recording is its row, so that batches can be traced back.
    """
    audio = np.zeros((40, 16000), np.int16)
    audio[:, 0] = np.arange(40)
    audio[:, 1] = 1
    rows = np.arange(24, dtype=np.int32)
    return Dataset(
        labels=label_set('yes,no'),
        audio=audio,
        pools=Pools(
            fixed={
                'training': (rows, rows % 2),
                'validation': (rows[:6] + 24, rows[:6] % 2),
                'testing': (rows[:0], rows[:0]),
            },
            unknown={
                'training': np.arange(30, 40, dtype=np.int32),
                'validation': rows[:0],
                'testing': rows[:0],
            },
            extra_unknown=rows[:0],
        ),
        noise={'training': [np.ones(16000, np.int16)]},
        unknown_percent=12.5,
        silence_percent=12.5,
    )


def rows_of(batches):
    """The rows that the audio of batches came from; -1 for silence."""
    audio = batches['audio']
    return np.where(audio[..., 1] == 1, audio[..., 0], -1)


def test_an_epoch_has_as_many_steps_as_whole_batches(dataset):
    assert dataset.train_size == 30
    assert steps_per_epoch(dataset, 4) == 7
    assert steps_per_epoch(dataset, 30) == 1


@pytest.mark.parametrize('batch', [0, 31])
def test_a_batch_that_does_not_fit_the_data_is_refused(dataset, batch):
    with pytest.raises(ValueError, match=rf'batch must be in 1\.\.30 .*, got {batch}'):
        steps_per_epoch(dataset, batch)
    with pytest.raises(ValueError, match='batch must be in'):
        training_source(dataset, batch=batch, seed=0)


def test_batches_have_the_promised_shapes_and_types(dataset):
    source = search_source(dataset, dataset.evaluation('validation'), batch=BATCH, seed=0)
    batches = source(5, 3)
    assert {name: (x.shape, x.dtype.name) for name, x in batches.items()} == {
        'audio': ((3, 4, 16000), 'int16'),
        'label': ((3, 4), 'int32'),
        'is_silence': ((3, 4), 'bool'),
        'is_unknown': ((3, 4), 'bool'),
        'validation_audio': ((3, 4, 16000), 'int16'),
        'validation_label': ((3, 4), 'int32'),
    }


def test_labels_belong_to_their_audio(dataset):
    batches = training_source(dataset, batch=BATCH, seed=0)(0, 14)
    rows, labels = rows_of(batches), batches['label']
    silence, unknown = dataset.labels.silence, dataset.labels.unknown
    np.testing.assert_array_equal(batches['is_silence'], rows == -1)
    np.testing.assert_array_equal(batches['is_unknown'], rows >= 24)
    expected = np.where(rows < 24, rows % 2, unknown)
    np.testing.assert_array_equal(labels, np.where(rows == -1, silence, expected))
    assert (rows == -1).any() and (rows >= 30).any()
    assert not batches['audio'][batches['is_silence']].any()


def test_no_example_comes_twice_in_an_epoch_and_the_next_one_is_in_another_order(dataset):
    rows = rows_of(training_source(dataset, batch=BATCH, seed=0)(0, 14)).reshape(2, 28)
    for epoch in rows:
        heard = epoch[epoch >= 0]
        assert len(set(heard)) == len(heard) >= 25
    assert not np.array_equal(*rows)


@pytest.mark.parametrize('searching', [False, True])
def test_the_stream_is_the_same_wherever_it_is_taken_up(dataset, searching):
    def make():
        if not searching:
            return training_source(dataset, batch=BATCH, seed=3)
        return search_source(dataset, dataset.evaluation('validation'), batch=BATCH, seed=3)

    whole = make()(0, 20)
    # in pieces that cross epochs, in any order, from a fresh source and a used one
    source = make()
    for start, n in ((13, 7), (0, 5), (5, 8)):
        for piece in (source(start, n), make()(start, n)):
            for name, values in piece.items():
                np.testing.assert_array_equal(values, whole[name][start : start + n])


def test_another_seed_gives_another_order(dataset):
    validation = dataset.evaluation('validation')
    a, b = (search_source(dataset, validation, batch=BATCH, seed=s)(0, 7) for s in (0, 1))
    assert not np.array_equal(rows_of(a), rows_of(b))
    assert not np.array_equal(a['validation_audio'], b['validation_audio'])


def test_every_pass_over_the_validation_clips_hears_each_at_most_once(dataset):
    audio, labels = dataset.evaluation('validation')
    audio = audio.copy()
    audio[:, 0] = np.arange(len(audio))  # 6 words and one silence: one batch of 4 a pass
    assert len(audio) == 7
    batches = search_source(dataset, (audio, labels), batch=BATCH, seed=0)(0, 30)
    picked = batches['validation_audio'][..., 0]
    assert all(len(set(row)) == BATCH for row in picked)
    assert set(picked.ravel()) == set(range(7))
    np.testing.assert_array_equal(batches['validation_label'], labels[picked])


def test_few_validation_clips_make_a_small_batch_and_none_are_refused(dataset):
    audio, labels = dataset.evaluation('validation')
    batches = search_source(dataset, (audio[:3], labels[:3]), batch=BATCH, seed=0)(0, 2)
    assert batches['validation_audio'].shape == (2, 3, 16000)
    with pytest.raises(ValueError, match='needs validation clips, got none'):
        search_source(dataset, (audio[:0], labels[:0]), batch=BATCH, seed=0)


# ----------------------------------------------------------------------------------- by place


def test_a_folder_of_train_and_test_is_opened_by_its_name(folder, tmp_path):
    folder('corpus/train').words(('yes', 'no', 'cat'), training=2, validation=1, testing=1)
    tests = folder('corpus/test')
    for label in ('yes', 'no'):
        tests.add(f'{label}/speaker_nohash_0.wav')
    options = {'labels': 'yes,no', 'cache_dir': tmp_path / 'cache', 'progress': False}
    opened = sources.open_dataset(data_dir=tmp_path / 'corpus', **options)
    assert opened.labels.names == ('yes', 'no', 'unknown')
    assert len(opened.evaluation('testing')[0]) == 2
    # the folder itself holds its own testing split: a word each of yes and no, and an unknown
    alone = sources.open_dataset(data_dir=tmp_path / 'corpus' / 'train', **options)
    assert len(alone.evaluation('testing')[0]) == 3
    assert opened.fingerprint != alone.fingerprint


def test_a_data_set_that_is_not_named_well_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dataset must be 'folder' or 'tfds', got 'hub'"):
        sources.open_dataset(dataset='hub', cache_dir=tmp_path)
    with pytest.raises(ValueError, match='give --data_dir=DIR'):
        sources.open_dataset(cache_dir=tmp_path)
