"""Tests of the index of recordings and of the split rule."""

import hashlib
import os
import pathlib

import pytest

from kws_jax.data import index

REAL = os.environ.get('KWS_JAX_SPEECH_COMMANDS')
needs_real_data = pytest.mark.skipif(
    not REAL, reason='needs KWS_JAX_SPEECH_COMMANDS, a folder with train/ and test/ in it'
)


def which_set(filename):
    """The rule, written anew from its description: the SHA-1 of the speaker, modulo 2**27."""
    name = filename.rsplit('/', 1)[-1]
    speaker = name.split('_nohash_')[0]
    # 2**27 divides 16**7, so the number modulo 2**27 is in the last seven hexadecimal digits.
    bucket = int(hashlib.sha1(speaker.encode('utf-8')).hexdigest()[-7:], 16) % 134217728
    share = bucket / 134217727 * 100
    return 'validation' if share < 10 else 'testing' if share < 20 else 'training'


def test_speaker_rule_agrees_with_one_written_independently():
    names = [f'yes/{number:08x}_nohash_{number % 5}.wav' for number in range(0, 10**7, 5003)]
    splits = [index.speaker_split(name) for name in names]
    assert splits == [which_set(name) for name in names]
    # 2,000 speakers: a tenth each for validation and testing, within four standard errors.
    assert 146 < splits.count('validation') < 254
    assert 146 < splits.count('testing') < 254


def test_speaker_rule_ignores_the_word_and_the_number_of_the_recording():
    assert (
        len(
            {
                index.speaker_split(f'{word}/0ab3b47d_nohash_{n}.wav')
                for word in ('yes', 'no')
                for n in range(20)
            }
        )
        == 1
    )


@pytest.mark.parametrize('percents', [(-1, 10), (50, 50)])
def test_shares_that_leave_nothing_for_training_are_refused(percents):
    with pytest.raises(ValueError, match='validation_percent and testing_percent'):
        index.speaker_split('a_nohash_0.wav', *percents)


@needs_real_data
def test_speaker_rule_agrees_with_the_real_validation_list():
    train = pathlib.Path(REAL) / 'train'
    listed = set((train / 'validation_list.txt').read_text().split())
    assert listed
    for recording in index.index_folder(train):
        assert (index.speaker_split(recording.path) == 'validation') == (recording.path in listed)


@needs_real_data
def test_no_real_speaker_is_in_two_splits():
    root = pathlib.Path(REAL)
    recordings = index.index_folder(root / 'train') + index.index_test_folder(root / 'test')
    assert index.shared_speakers(recordings) == []


def test_lists_decide_the_split_where_they_are(folder):
    made = folder().words(['yes', 'no'], training=1, validation=1, testing=1)
    got = {r.path: r.split for r in index.index_folder(made.root)}
    assert got == {
        'no/te0_nohash_0.wav': 'testing',
        'no/tr0_nohash_0.wav': 'training',
        'no/va0_nohash_0.wav': 'validation',
        'yes/te0_nohash_0.wav': 'testing',
        'yes/tr0_nohash_0.wav': 'training',
        'yes/va0_nohash_0.wav': 'validation',
    }


def test_an_empty_testing_list_means_that_nothing_is_for_testing(folder):
    made = folder()
    (made.root / 'testing_list.txt').write_text('')
    names = [f'yes/{n:08x}_nohash_0.wav' for n in range(40)]
    for name in names:
        made.add(name)
    got = [r.split for r in index.index_folder(made.root)]
    assert 'testing' in {which_set(name) for name in names}
    assert 'testing' not in got
    assert 'validation' in got  # its list is missing, so the rule stands in


def test_without_lists_the_rule_decides(folder):
    made = folder()
    for n in range(40):
        made.add(f'yes/{n:08x}_nohash_0.wav')
    for recording in index.index_folder(made.root):
        assert recording.split == which_set(recording.path)
        assert recording.speaker == recording.path[4:12]


def test_lists_stay_valid_when_recordings_become_flac(folder):
    made = folder()
    made.add('yes/a_nohash_0.flac')
    (made.root / 'validation_list.txt').write_text('yes/a_nohash_0.wav\n')
    assert index.index_folder(made.root)[0].split == 'validation'


def test_a_listed_recording_that_is_not_there_is_logged(folder, log):
    made = folder()
    made.add('yes/a_nohash_0.wav')
    (made.root / 'testing_list.txt').write_text('yes/gone_nohash_0.wav\n')
    index.index_folder(made.root)
    assert '1 of 1 recordings named by testing_list.txt are not there' in log.text
    assert 'yes/gone_nohash_0' in log.text


def test_noise_hidden_and_other_files_are_no_recordings(folder):
    made = folder().background(recordings=1, seconds=1)
    made.add('yes/a_nohash_0.wav')
    (made.root / 'yes' / '._a_nohash_0.wav').write_bytes(b'x')
    (made.root / 'yes' / 'notes.txt').write_text('x')
    (made.root / 'README.md').write_text('x')
    assert [r.path for r in index.index_folder(made.root)] == ['yes/a_nohash_0.wav']
    assert index.noise_files(made.root) == ['_background_noise_/hum0.wav']
    assert index.other_files(made.root) == ['yes/notes.txt']


def test_test_folder_takes_labels_from_folders_and_speakers_from_names(folder):
    made = folder('test')
    for path in (
        'yes/0c40e715_nohash_1.wav',
        '_unknown_/four_0c40e715_nohash_0.wav',
        '_silence_/1037.wav',
    ):
        made.add(path)
    got = index.index_test_folder(made.root)
    assert [(r.word, r.speaker, r.split) for r in got] == [
        ('_silence_', '1037', 'testing'),
        ('_unknown_', '0c40e715', 'testing'),
        ('yes', '0c40e715', 'testing'),
    ]
    assert index.speakers_by_split(got)['testing'] == {'0c40e715'}


@pytest.mark.parametrize(
    'function, argument', [(index.index_folder, 'data_dir'), (index.index_test_folder, 'test_dir')]
)
def test_wrong_paths_are_named_with_the_way_out(function, argument, folder, tmp_path):
    made = folder('speech_commands')
    with pytest.raises(
        FileNotFoundError, match=f'{argument} does not exist.*did you mean.*speech_c'
    ):
        function(tmp_path / 'speech_command')
    archive = tmp_path / 'speech_commands.tar.gz'
    archive.write_bytes(b'')
    with pytest.raises(NotADirectoryError, match=f'{argument} must be a folder.*unpack'):
        function(archive)
    with pytest.raises(ValueError, match=f'{argument}=.*holds no recordings; expected'):
        function(made.root)
    made.add('a_nohash_0.wav')
    with pytest.raises(ValueError, match='move them into one folder per word'):
        function(made.root)
    made.add('train/yes/a_nohash_0.wav')
    with pytest.raises(ValueError, match=f"its folder 'train' does; pass {argument}="):
        function(made.root)
