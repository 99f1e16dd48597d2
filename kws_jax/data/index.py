"""What recordings there are in a folder, and the split each belongs to.

Nothing here opens a recording: an index is made of names alone, so 100,000 files take a second.
"""

import dataclasses
import difflib
import hashlib
import logging
import os
import re

AUDIO_SUFFIXES = ('.wav', '.flac', '.ogg')
NOISE_FOLDER = '_background_noise_'
SILENCE_FOLDER = '_silence_'
UNKNOWN_FOLDER = '_unknown_'
SPLITS = ('training', 'validation', 'testing')

_MAX_PER_CLASS = 2**27 - 1  # the constant of the data set's own rule; changing it moves speakers
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One recording of one word by one speaker.

    `path` is relative to the root it was indexed from, `word` the name of its folder, `speaker` the
    part of the file name before `_nohash_`, and `split` one of 'training', 'validation', 'testing'.
    """

    path: str
    word: str
    speaker: str
    split: str


def speaker_split(filename, validation_percent=10, testing_percent=10):
    """Returns the split of a recording's speaker: the SHA-1 rule of Speech Commands (Warden 2018).

    Args:
      filename: name or path of the recording; what follows `_nohash_` does not matter, so all
        recordings of a speaker fall into one split, and stay there when recordings are added.
      validation_percent, testing_percent: share of the speakers, in percent.

    Raises:
      ValueError: the two shares are negative or leave nothing for training.

    >>> speaker_split('yes/0a7c2a8d_nohash_0.wav') == speaker_split('no/0a7c2a8d_nohash_3.wav')
    True
    """
    if min(validation_percent, testing_percent) < 0 or validation_percent + testing_percent >= 100:
        raise ValueError(
            'validation_percent and testing_percent must be at least 0 and below 100 together, '
            f'so that speakers are left for training; got {validation_percent}, {testing_percent}'
        )
    speaker = re.sub(r'_nohash_.*$', '', os.path.basename(filename))
    number = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_MAX_PER_CLASS + 1)
    percent = number * (100.0 / _MAX_PER_CLASS)
    if percent < validation_percent:
        return 'validation'
    if percent < validation_percent + testing_percent:
        return 'testing'
    return 'training'


def index_folder(root, *, validation_percent=10, testing_percent=10):
    """Lists the recordings of a folder laid out like Speech Commands.

    That is `<word>/<speaker>_nohash_<n>.wav`.

    The split of a recording comes from `validation_list.txt` and `testing_list.txt` where they are;
    a list that is missing is replaced by `speaker_split`. Lists name recordings by word and stem,
    so they stay valid when the audio was converted to FLAC. Hidden files are passed over.

    Args:
      root: folder with one folder of .wav, .flac or .ogg files per word.
      validation_percent, testing_percent: see `speaker_split`.

    Returns:
      list of `Recording`, sorted by path: the same in every process and on every file system.

    Raises:
      FileNotFoundError: `root` does not exist.
      NotADirectoryError: `root` is not a folder.
      ValueError: there is no recording in it.
    """
    root = _existing_folder(root, 'data_dir')
    listed = {split: _read_list(os.path.join(root, f'{split}_list.txt')) for split in SPLITS[1:]}
    found, seen = [], set()
    for word in _folders(root):
        if word in (NOISE_FOLDER, SILENCE_FOLDER):
            continue
        for name in _audio_names(os.path.join(root, word)):
            path = f'{word}/{name}'
            stem = os.path.splitext(path)[0]
            seen.add(stem)
            ruled = speaker_split(name, validation_percent, testing_percent)
            split = 'training'
            for candidate in SPLITS[1:]:
                names = listed[candidate]
                if (ruled == candidate) if names is None else (stem in names):
                    split = candidate
                    break
            found.append(Recording(path, word, _speaker(name), split))
    if not found:
        raise ValueError(_nothing_found(root, 'data_dir'))
    for split, names in listed.items():
        absent = sorted((names or set()) - seen)
        if absent:
            _log.warning(
                '%s: %d of %d recordings named by %s_list.txt are not there, the first is %s',
                root,
                len(absent),
                len(names),
                split,
                absent[0],
            )
    return found


def index_test_folder(root):
    """Lists the recordings of a test folder in the layout of the official test archive.

    One folder per label, among them `_silence_` and `_unknown_`; every recording is of split
    'testing' and its `word` is the name of its folder.

    Raises:
      FileNotFoundError, NotADirectoryError, ValueError: as `index_folder`.
    """
    root = _existing_folder(root, 'test_dir')
    found = [
        # The archive puts the word before the speaker where the folder does not tell it:
        # four_0c40e715_nohash_0.wav.
        Recording(
            f'{label}/{name}', label, re.sub(r'^.*_(?=[0-9a-f]{8}$)', '', _speaker(name)), 'testing'
        )
        for label in _folders(root)
        if label != NOISE_FOLDER
        for name in _audio_names(os.path.join(root, label))
    ]
    if not found:
        raise ValueError(_nothing_found(root, 'test_dir'))
    return found


def speakers_by_split(recordings):
    """Returns {split: set of speakers}; recordings of silence have none."""
    speakers = {split: set() for split in SPLITS}
    for recording in recordings:
        if recording.word != SILENCE_FOLDER:
            speakers[recording.split].add(recording.speaker)
    return speakers


def shared_speakers(recordings):
    """Returns the speakers that are in more than one split, sorted."""
    one, two, three = speakers_by_split(recordings).values()
    return sorted((one & two) | (one & three) | (two & three))


def noise_files(root):
    """Lists the background noise of a data folder: paths, relative to `root`, sorted.

    They are the recordings of `_background_noise_` and, in folders of one's own, of `_silence_`.
    """
    return [
        f'{folder}/{name}'
        for folder in (NOISE_FOLDER, SILENCE_FOLDER)
        if os.path.isdir(os.path.join(root, folder))
        for name in _audio_names(os.path.join(root, folder))
    ]


def holds_words(root):
    """Returns whether `root` is a folder of folders, with no recording directly in it."""
    return os.path.isdir(root) and bool(_folders(root)) and not _audio_names(root)


def other_files(root):
    """Lists what is in the folders of `root` but no recording and not hidden: paths, sorted."""
    found = []
    for folder in _folders(root):
        with os.scandir(os.path.join(root, folder)) as entries:
            found += [
                f'{folder}/{e.name}'
                for e in entries
                if not e.name.startswith('.') and not e.name.lower().endswith(AUDIO_SUFFIXES)
            ]
    return sorted(found)


def _existing_folder(root, argument):
    root = os.fspath(root)
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        raise NotADirectoryError(
            f'{argument} must be a folder, got the file {root!r}; unpack an archive first'
        )
    parent, name = os.path.split(os.path.abspath(root))
    near = difflib.get_close_matches(name, _folders(parent) if os.path.isdir(parent) else [], n=1)
    hint = f'; did you mean {os.path.join(parent, near[0])!r}?' if near else ''
    raise FileNotFoundError(f'{argument} does not exist: {root!r}{hint}')


def _nothing_found(root, argument):
    for inner in _folders(root):
        deeper = os.path.join(root, inner)
        if any(_audio_names(os.path.join(deeper, word)) for word in _folders(deeper)):
            return (
                f'{argument}={root!r} holds no recordings in folders of words, but its folder '
                f'{inner!r} does; pass {argument}={deeper!r}'
            )
    if _audio_names(root):
        return (
            f'{argument}={root!r} holds recordings but no folders of words; move them into one '
            'folder per word, <word>/<speaker>_nohash_<n>.wav'
        )
    return (
        f'{argument}={root!r} holds no recordings; expected folders of words with '
        f'{", ".join(AUDIO_SUFFIXES)} files in them, <word>/<speaker>_nohash_<n>.wav'
    )


def _folders(root):
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not e.name.startswith('.') and e.is_dir())


def _audio_names(folder):
    # By suffix alone: asking each entry what it is would cost a system call per file, and would
    # drop broken links silently; the decoder reports those.
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if e.name.lower().endswith(AUDIO_SUFFIXES) and not e.name.startswith('.')
        )


def _speaker(name):
    return re.sub(r'_nohash_.*$', '', os.path.splitext(name)[0])


def _read_list(path):
    if not os.path.exists(path):
        return None
    with open(path, encoding='utf-8') as file:
        lines = (line.strip().replace('\\', '/').removeprefix('./') for line in file)
        return {os.path.splitext(line)[0] for line in lines if line}
