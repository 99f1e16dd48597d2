"""Sound as it is listened to, and the program that listens."""

import io
import subprocess
import sys

import numpy as np
import pytest
import small
import soundfile

from kws_jax import detection, listening, sound
from kws_jax import model as model_lib


def joined(pieces):
    return np.concatenate(list(pieces))


def test_a_file_at_16_khz_comes_as_it_is_in_pieces(tmp_path):
    audio = np.random.default_rng(0).integers(-32768, 32768, 3000).astype(np.int16)
    soundfile.write(tmp_path / 'a.wav', audio, 16000)
    pieces = list(sound.from_file(tmp_path / 'a.wav'))
    assert [len(piece) for piece in pieces] == [1280, 1280, 440]
    np.testing.assert_array_equal(joined(pieces), audio)


def test_other_rates_and_two_channels_are_converted(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / 'a.flac', np.stack([tone, tone], axis=1), 44100)
    audio = joined(sound.from_file(tmp_path / 'a.flac'))
    expected = 16384 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert len(audio) == 16000
    assert np.abs(audio - expected)[500:-500].max() < 100


def test_what_is_no_sound_is_an_error_that_names_it(tmp_path):
    (tmp_path / 'a.wav').write_text('no sound')
    for name in ('a.wav', 'b.wav'):
        with pytest.raises(OSError, match=f'{name} cannot be read as sound'):
            next(sound.from_file(tmp_path / name))


def test_raw_samples_may_be_cut_anywhere():
    audio = np.arange(-2000, 2000, dtype='<i2')

    class Dripping(io.BytesIO):
        def read1(self, size):
            return super().read1(min(size, 333))

    np.testing.assert_array_equal(joined(sound.from_pcm(Dripping(audio.tobytes() + b'x'))), audio)


@pytest.fixture(scope='module')
def spoken(tmp_path_factory):
    """A model in its folder, a recording of tones, and what should be heard in it."""
    folder = tmp_path_factory.mktemp('listen')
    model = small.model()
    model_lib.save(model, folder / 'model')
    audio = np.concatenate(list(small.tones(6, seed=4)[0]))
    soundfile.write(folder / 'a.wav', audio, 16000)
    values = listening.scores(model, audio).values
    # a threshold that is crossed here and there
    threshold = float(np.quantile(detection.smooth(values, 2)[:, :2].max(axis=1), 0.7))
    rule = detection.Rule(tuple(model.labels), dict.fromkeys(('low', 'high'), threshold), 2, 5)
    state, expected = detection.start(rule), []
    for row in values:
        state, found = detection.listen(rule, state, row)
        expected += [one.label for one in found]
    assert expected
    return folder, audio, threshold, expected


def listen(folder, threshold, *more, **options):
    return subprocess.run(
        [
            sys.executable,
            'launch/listen.py',
            f'--model={folder}',
            f'--threshold={threshold - 1e-6}',
            '--smoothing=2',
            '--refractory=5',
            *more,
        ],
        capture_output=True,
        check=False,
        **options,
    )


def test_the_program_hears_in_a_file_and_in_raw_samples_what_the_scores_say(spoken):
    folder, audio, threshold, expected = spoken
    done = listen(folder, threshold, f'--wav={folder / "a.wav"}')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert [line.split()[2] for line in lines] == expected
    raw = listen(folder, threshold, '--pcm', input=audio.tobytes())
    assert [line.split()[2] for line in raw.stdout.decode().splitlines()] == expected


def test_it_says_when_nothing_was_heard_and_what_is_wrong(spoken):
    folder, _, _, _ = spoken
    quiet = listen(folder, 1.0, '--pcm', input=bytes(64000))
    assert quiet.stdout.decode().strip().endswith('nothing was heard')
    missing = listen(folder, 0.5, '--wav=absent.wav')
    assert missing.returncode == 1
    assert missing.stderr.decode().startswith('listen: absent.wav cannot be read as sound')
