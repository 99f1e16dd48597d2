"""Tests of the data set: splits, unknown, silence, and what it says when something is missing."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from kws_jax.data import dataset, index
from kws_jax.data.labels import WORDS_35

WORDS_10 = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')
REAL = os.environ.get('KWS_JAX_SPEECH_COMMANDS')


@pytest.fixture
def load(tmp_path):
    """Returns `load_dataset` with a cache of its own and a folder called train."""

    def load(**options):
        return dataset.load_dataset(
            **{'data_dir': tmp_path / 'train', 'cache_dir': tmp_path / 'cache', **options}
        )

    return load


@pytest.fixture
def twelve(folder):
    """Makes train/: 10 keywords and 5 other words of 4 + 2 + 2 recordings, and 20 s of noise."""
    return folder().words([*WORDS_10, 'bed', 'cat', 'dog', 'one', 'two']).background()


def paths_of(made, data, rows, root):
    """Finds the recordings of rows by their audio, with an independent reader."""
    by_audio = {
        soundfile.read(p, dtype='int16')[0].tobytes(): str(p.relative_to(made.root))
        for p in root.rglob('*.wav')
    }
    return [by_audio[data.batch([row])[0].tobytes()] for row in rows]


def test_an_epoch_holds_every_keyword_recording_once_and_a_tenth_of_unknown_and_silence(
    twelve, load
):
    data = load()
    rows, labels = data.epoch(seed=0, epoch=0)
    assert rows.dtype == labels.dtype == np.int32
    assert np.bincount(labels).tolist() == [4] * 10 + [4, 4]  # 40 keywords: 4 and 4
    assert data.train_size == len(rows) == 48
    keywords = rows[labels < 10]
    assert len(set(keywords.tolist())) == 40
    assert (rows[labels == 10] == -1).all() and (rows[labels != 10] >= 0).all()
    where = paths_of(twelve, data, rows[labels != 10], twelve.root)
    for path, label in zip(where, labels[labels != 10], strict=True):
        word, name = path.split('/')
        assert name.startswith('tr')  # nothing of validation or testing
        assert (WORDS_10.index(word) if word in WORDS_10 else 11) == label


def test_an_epoch_is_a_function_of_seed_and_epoch_alone(twelve, load):
    one, two = load(), load()
    np.testing.assert_array_equal(one.epoch(seed=3, epoch=5), two.epoch(seed=3, epoch=5))
    for other in ({'seed': 3, 'epoch': 6}, {'seed': 4, 'epoch': 5}):
        assert not np.array_equal(one.epoch(seed=3, epoch=5), two.epoch(**other))


def test_an_epoch_is_the_same_in_another_process(twelve, load, tmp_path):
    rows, labels = load().epoch(seed=3, epoch=5)
    code = (
        'from kws_jax.data import dataset\n'
        f'd = dataset.load_dataset(data_dir={str(tmp_path / "train")!r}, '
        f'cache_dir={str(tmp_path / "cache2")!r})\n'
        'r, l = d.epoch(seed=3, epoch=5)\n'
        'print(r.tolist(), l.tolist(), d.fingerprint, sep="|")'
    )
    root = str(pathlib.Path(dataset.__file__).parents[2])
    out = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': root, 'PYTHONHASHSEED': '7'},
    ).stdout
    assert out.strip() == f'{rows.tolist()}|{labels.tolist()}|{load().fingerprint}'


def test_unknown_is_redrawn_every_epoch_from_all_other_words(twelve, load):
    data = load()
    drawn = []
    for epoch in range(40):
        rows, labels = data.epoch(seed=0, epoch=epoch)
        unknown = rows[labels == 11]
        assert len(set(unknown.tolist())) == 4
        drawn.append(frozenset(unknown.tolist()))
    assert len(set(drawn)) > 30
    assert len(frozenset.union(*drawn)) == 20  # 5 words of 4 training recordings


def test_the_shares_of_unknown_and_silence_are_settable(twelve, load):
    labels = load(unknown_percent=25, silence_percent=50).epoch(seed=0, epoch=0)[1]
    assert np.bincount(labels)[10:].tolist() == [20, 10]
    labels = load(unknown_percent=0, silence_percent=0).epoch(seed=0, epoch=0)[1]
    assert len(labels) == 40


def test_of_too_few_other_words_all_are_used_and_that_is_logged(twelve, load, log):
    data = load(unknown_percent=100)
    assert np.sum(data.epoch(seed=0, epoch=0)[1] == 11) == 20
    assert 'unknown has 20 training recordings, fewer than the 40' in log.text


def test_batch_gives_recordings_and_zeros_for_silence(twelve, load):
    data = load()
    got = data.batch([2, -1, 0])
    assert got.dtype == np.int16 and type(got) is np.ndarray
    np.testing.assert_array_equal(got, [data.audio[2], np.zeros(16000), data.audio[0]])
    assert data.batch(np.zeros(0, np.int32)).shape == (0, 16000)
    for bad in ([-2], [len(data.audio)]):
        with pytest.raises(IndexError, match='rows must be in -1..119'):
            data.batch(bad)


def test_evaluation_is_always_the_same_and_made_of_its_own_split(twelve, load):
    audio, labels = load().evaluation('validation')
    again = load().evaluation('validation')
    np.testing.assert_array_equal(audio, again[0])
    np.testing.assert_array_equal(labels, again[1])
    assert np.bincount(labels).tolist() == [2] * 10 + [2, 2]
    other = load(seed=1).evaluation('validation')[0]
    assert not np.array_equal(audio, other)
    rows, row_labels = load().evaluation_rows('validation')
    np.testing.assert_array_equal(row_labels, labels)
    for path in paths_of(twelve, load(), rows[rows >= 0], twelve.root):
        assert path.split('/')[1].startswith('va')


def test_evaluation_silence_is_noise_that_neither_training_nor_another_split_hears(folder, load):
    made = folder().words([*WORDS_10, 'bed'])
    ramp = np.arange(30000, dtype=np.int16)  # a sample tells where it comes from
    made.add('_background_noise_/ramp.wav', np.concatenate([ramp, ramp[:10000]]))
    big = folder('big').words([*WORDS_10, 'bed'], training=1, validation=20, testing=20)
    parts = [np.repeat(np.int16(v), 16000 * s) for v, s in ((1000, 16), (20000, 2), (30000, 2))]
    big.add('_background_noise_/steps.wav', np.concatenate(parts))
    data = load(data_dir=big.root)
    assert np.unique(data.noise).tolist() == [1000]
    for split, level in (('validation', 20000), ('testing', 30000)):
        audio, labels = data.evaluation(split)
        silence = audio[labels == 10].astype(float)
        assert len(silence) == 20
        assert (silence == silence[:, :1]).all()  # of one step alone
        volume = silence[:, 0] / level
        assert volume.max() <= 1 and volume.min() >= 0
        assert len(set(volume.tolist())) == 20 and 0.2 < volume.mean() < 0.8
    # A part shorter than a second is repeated.
    data = load()
    audio, labels = data.evaluation('testing')
    assert audio[labels == 10].any(axis=1).all()
    np.testing.assert_array_equal(data.noise, np.concatenate([ramp, ramp[:2000]]))


def test_evaluation_silence_can_be_zeros_as_in_the_paper(twelve, load):
    audio, labels = load().evaluation('validation', silence='zeros')
    assert not audio[labels == 10].any()
    assert audio[labels != 10].any(axis=1).all()
    with pytest.raises(ValueError, match="silence must be 'noise' or 'zeros', got 'hum'"):
        load().evaluation('validation', silence='hum')


def test_without_noise_silence_is_zeros_and_that_is_logged(folder, load, log):
    folder().words([*WORDS_10, 'bed'])
    data = load()
    assert 'silence is all zeros' in log.text
    assert data.noise.shape == (16000,) and not data.noise.any()
    audio, labels = data.evaluation('validation')
    assert np.sum(labels == 10) == 2 and not audio[labels == 10].any()


def test_a_test_folder_replaces_the_testing_split_and_is_used_whole(twelve, folder, load):
    test = folder('test')
    for word in (*WORDS_10, '_silence_', '_unknown_'):
        for n in range(3):
            test.add(f'{word}/{n}_nohash_0.wav')
    data = load(test_dir=test.root)
    audio, labels = data.evaluation('testing')
    assert np.bincount(labels).tolist() == [3] * 12
    rows, _ = data.evaluation_rows('testing')
    assert (rows >= 0).all()
    for path, label in zip(paths_of(test, data, rows, test.root), labels, strict=True):
        word = path.split('/')[0]
        assert label == (*WORDS_10, '_silence_', '_unknown_').index(word)
    zeros, same = data.evaluation('testing', silence='zeros')
    np.testing.assert_array_equal(labels, same)
    assert not zeros[labels == 10].any()
    np.testing.assert_array_equal(zeros[labels != 10], audio[labels != 10])
    # Training and validation are what they are without it.
    np.testing.assert_array_equal(data.epoch(seed=0, epoch=0), load().epoch(seed=0, epoch=0))


def test_a_word_of_the_test_folder_that_is_no_label_is_unknown_if_the_data_knows_it(
    twelve, folder, load, log
):
    test = folder('test')
    for word in ('yes', 'up', '_unknown_'):
        test.add(f'{word}/a_nohash_0.wav')
    data = load(test_dir=test.root, labels='yes,no')
    assert data.labels.names == ('yes', 'no', 'silence', 'unknown')
    assert sorted(data.evaluation('testing')[1].tolist()) == [0, 3, 3]
    assert 'up is not among the labels and counts as unknown' in log.text
    test.add('lamp/a_nohash_0.wav')
    with pytest.raises(ValueError, match="test_dir=.*folder 'lamp'.*neither a label nor a word"):
        load(test_dir=test.root, labels='yes,no')


def test_every_label_without_clips_in_a_test_folder_is_named(twelve, folder, load, log):
    test = folder('test')
    for word in WORDS_10[2:]:
        test.add(f'{word}/a_nohash_0.wav')
    test.add('no/a_nohash_0.wav').write_bytes(b'')
    (test.root / '_unknown_').mkdir()
    load(test_dir=test.root)
    warned = [r.getMessage() for r in log.records if 'no testing recordings' in r.getMessage()]
    assert warned == ['no testing recordings of yes, no, silence, unknown']
    log.clear()
    for word in ('yes', 'no', '_unknown_'):
        test.add(f'{word}/b_nohash_0.wav')
    load(test_dir=test.root)
    assert 'no testing recordings of silence' in log.text
    log.clear()
    test.add('_silence_/b.wav')
    load(test_dir=test.root)
    load()
    assert 'no testing recordings' not in log.text


def test_a_test_folder_that_does_not_fit_the_labels_is_refused(folder, load):
    made = folder().words(['lamp', 'heater'])
    test = folder('test')
    test.add('lamp/a_nohash_0.wav')
    test.add('_silence_/a.wav')
    with pytest.raises(ValueError, match="'_silence_', but the labels have no such class"):
        load(test_dir=test.root, labels='lamp,heater')
    made.background(recordings=1)
    assert load(test_dir=test.root, labels='lamp,heater').labels.silence == 2


def test_own_words_get_unknown_and_silence_where_there_is_data_for_them(twelve, folder, load):
    assert load(labels='bed,cat').labels.names == ('bed', 'cat', 'silence', 'unknown')
    assert load(labels='bed,cat', unknown_percent=0, silence_percent=0).labels.names == (
        'bed',
        'cat',
    )
    own = folder('own').words(['lamp', 'heater'])
    assert load(data_dir=own.root, labels=['lamp', 'heater']).labels.names == ('lamp', 'heater')
    assert load(data_dir=own.root, labels='lamp').labels.names == ('lamp', 'unknown')
    got = load(data_dir=own.root, labels='lamp,heater', extra_unknown_dir=twelve.root).labels
    assert got.names == ('lamp', 'heater', 'unknown')


def test_folders_called_silence_and_unknown_are_what_they_say(folder, load):
    made = folder().words(['lamp', '_unknown_'])
    made.add('_silence_/a.wav', np.full(32000, 7, np.int16))
    data = load(labels='lamp', unknown_percent=100, silence_percent=100)
    assert data.labels.names == ('lamp', 'silence', 'unknown')
    rows, labels = data.epoch(seed=0, epoch=0)
    assert np.bincount(labels).tolist() == [4, 4, 4]
    assert (rows[labels == 1] == -1).all()
    assert np.unique(data.noise).tolist() == [7]


def test_thirty_five_words_have_neither_silence_nor_unknown(folder, load):
    folder().words([*WORDS_35, 'lamp'], training=1, validation=1, testing=1).background()
    data = load(labels='35')
    assert np.bincount(data.epoch(seed=0, epoch=0)[1]).tolist() == [1] * 35
    assert np.bincount(data.evaluation('testing', silence='zeros')[1]).tolist() == [1] * 35
    assert data.noise.any()  # augmentation still has it


def test_extra_words_widen_unknown_in_training_alone(twelve, folder, load):
    extra = folder('extra').words(['sun', 'moon', 'yes'], training=8)
    data = load(extra_unknown_dir=extra.root)
    seen = set()
    for epoch in range(60):
        rows, labels = data.epoch(seed=0, epoch=epoch)
        assert np.sum(labels == 11) == 4
        seen |= set(rows[labels == 11].tolist())
    words = {
        p.split('/')[0] for p in paths_of(extra, data, [r for r in seen if r >= 120], extra.root)
    }
    assert words == {'sun', 'moon'}  # yes is a keyword
    assert len(seen) == 20 + 24  # all splits of the extra words
    for split in ('validation', 'testing'):
        np.testing.assert_array_equal(data.evaluation(split)[0], load().evaluation(split)[0])
    half = load(extra_unknown_dir=extra.root, extra_unknown_share=0.5)
    for epoch in range(5):
        rows, labels = half.epoch(seed=0, epoch=epoch)
        assert np.sum(rows[labels == 11] >= 120) == 2
    with pytest.raises(ValueError, match='extra_unknown_share must be in 0..1'):
        load(extra_unknown_dir=extra.root, extra_unknown_share=2)
    with pytest.raises(FileNotFoundError, match='extra_unknown_dir does not exist'):
        load(extra_unknown_dir=extra.root / 'gone')


def test_a_keyword_without_a_folder_is_named_with_the_words_there_are(folder, load):
    folder().words(['yes', 'no', 'bed'])
    with pytest.raises(ValueError, match='no folder for up, down, .*labels with.*bed,no,yes'):
        load()


def test_a_keyword_without_training_recordings_is_named(twelve, folder, load):
    folder().words(['lamp'], training=0)
    with pytest.raises(ValueError, match='no training recordings of lamp in data_dir='):
        load(labels='yes,lamp')


def test_a_keyword_whose_recordings_are_all_undecodable_is_named(twelve, load):
    for path in (twelve.root / 'yes').iterdir():
        path.write_bytes(b'nothing')
    with pytest.raises(ValueError, match='no training recordings of yes.*undecodable'):
        load()


def test_no_other_words_for_unknown_is_an_error_with_the_ways_out(folder, load):
    folder().words(WORDS_10).background()
    with pytest.raises(ValueError, match='for unknown.*extra_unknown_dir.*unknown_percent=0'):
        load()
    assert np.sum(load(unknown_percent=0).epoch(seed=0, epoch=0)[1] == 11) == 0


def test_a_split_without_recordings_is_an_error_with_the_way_out(folder, load, log):
    folder().words(['yes', 'no', 'bed'], testing=0)
    data = load(labels='yes,no')
    assert 'no testing recordings of yes, no, unknown' in log.text
    assert 'no validation recordings' not in log.text
    with pytest.raises(ValueError, match='no testing recordings.*pass test_dir, name recordings'):
        data.evaluation('testing')
    with pytest.raises(ValueError, match="must be 'validation' or 'testing', got 'training'"):
        data.evaluation('training')
    assert data.describe()['examples']['testing'] == 0


def test_speakers_in_two_splits_are_logged(folder, load, log):
    made = folder().words(['yes', 'no', 'bed'])
    made.add('yes/va0_nohash_7.wav')  # not in a list, so in training
    load(labels='yes,no')
    assert '1 speakers are in more than one split, the first is va0' in log.text


def test_bad_percentages_are_refused(twelve, load):
    for name in ('unknown_percent', 'silence_percent'):
        with pytest.raises(ValueError, match=f'{name} must be at least 0'):
            load(**{name: -1})


def test_undecodable_recordings_are_left_out_and_listed(twelve, load):
    (twelve.root / 'yes' / 'tr0_nohash_0.wav').write_bytes(b'nothing')
    (twelve.root / '_background_noise_' / 'bad.wav').write_bytes(b'')
    data = load()
    assert np.sum(data.epoch(seed=0, epoch=0)[1] == 0) == 3
    listed = {pathlib.Path(u['path']).name: u['why'] for u in data.describe()['undecodable']}
    assert listed['bad.wav'] == 'empty file' and 'tr0_nohash_0.wav' in listed


def test_describe_counts_what_there_is_and_is_fit_for_json(twelve, load):
    got = load().describe()
    assert json.loads(json.dumps(got)) == got
    assert got['examples'] == {'training': 48, 'validation': 24, 'testing': 24}
    assert got['classes']['training']['yes'] == 4 and got['classes']['testing']['silence'] == 2
    assert got['speakers'] == {'training': 4, 'validation': 2, 'testing': 2}
    assert got['noise_seconds'] == {'training': 16.0, 'validation': 2.0, 'testing': 2.0}
    assert got['unknown_pool'] == {'training': 20, 'validation': 10, 'testing': 10, 'extra': 0}
    assert got['conversions']['undecodable'] == 0 and got['recordings'] == 120


def test_the_fingerprint_follows_audio_and_options_and_not_the_place(twelve, load, tmp_path):
    first = load().fingerprint
    assert load(cache_dir=tmp_path / 'elsewhere').fingerprint == first
    assert load(seed=1).fingerprint != first
    assert load(unknown_percent=20).fingerprint != first
    moved = tmp_path / 'moved'
    twelve.root.rename(moved)
    assert load(data_dir=moved).fingerprint == first
    twelve.root = moved
    twelve.add('yes/tr0_nohash_0.wav')
    assert load(data_dir=moved).fingerprint != first


@pytest.mark.skipif(
    not REAL, reason='needs KWS_JAX_SPEECH_COMMANDS, a folder with train/ and test/ in it'
)
def test_real_recordings_give_the_twelve_classes(load, tmp_path):
    root = pathlib.Path(REAL)
    data = load(data_dir=root / 'train', test_dir=root / 'test')
    assert data.describe()['undecodable'] == []
    for split in index.SPLITS:
        assert all(data.describe()['classes'][split].values())
