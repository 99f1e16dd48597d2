"""Folders of made-up recordings for the tests of the data room."""

import logging
import pathlib
import zlib

import numpy as np
import pytest
import soundfile

WORDS_10 = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')


def noise(seed, samples=16000, peak=3000):
    """Returns int16 [samples] of white noise, different for every seed."""
    return np.random.default_rng(seed).integers(-peak, peak, samples).astype(np.int16)


class Folder:
    """Builds a folder in the Speech Commands layout; every recording it writes differs."""

    def __init__(self, root):
        """Starts with an empty folder at `root`."""
        self.root = pathlib.Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.count = zlib.crc32(self.root.name.encode())  # so that no two folders share audio

    def add(self, path, audio=None, rate=16000, **options):
        """Writes one recording; `options` go to soundfile."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.count += 1
        soundfile.write(target, noise(self.count) if audio is None else audio, rate, **options)
        return target

    def words(self, words, *, training=4, validation=2, testing=2):
        """Adds recordings of words and writes both split lists."""
        lists = {'validation': [], 'testing': []}
        for word in words:
            for split, number in (
                ('training', training),
                ('validation', validation),
                ('testing', testing),
            ):
                for i in range(number):
                    path = f'{word}/{split[:2]}{i}_nohash_0.wav'
                    self.add(path)
                    if split in lists:
                        lists[split].append(path)
        for split, paths in lists.items():
            with open(self.root / f'{split}_list.txt', 'a') as file:
                file.writelines(f'{path}\n' for path in paths)
        return self

    def background(self, *, recordings=2, seconds=10):
        """Adds background noise."""
        for i in range(recordings):
            self.add(f'_background_noise_/hum{i}.wav', noise(10**7 + i, 16000 * seconds))
        return self


@pytest.fixture
def folder(tmp_path):
    """Returns a function that makes a `Folder` in the test's own directory."""
    return lambda name='train': Folder(tmp_path / name)


@pytest.fixture
def log(caplog):
    """Returns the captured log, from level INFO."""
    caplog.set_level(logging.INFO)
    return caplog
