"""The synthesiser: it speaks, its voices differ, and it says what is wrong."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from kws_jax.data import espeak

speaks = pytest.mark.skipif(
    importlib.util.find_spec('espeakng_loader') is None,
    reason='espeakng-loader is not installed: pip install "kws_jax[synth]"',
)
_ROOT = pathlib.Path(espeak.__file__).parents[2]


def _in_a_process_of_its_own(program):
    """Runs a program that sets `found`, and returns what that prints as."""
    program = f'import numpy as np\nfrom kws_jax.data.espeak import *\n{program}\nprint(found)'
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    )
    return done.stdout.strip()


def test_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'espeakng_loader', None)
    with pytest.raises(ImportError, match=r'kws_jax\[synth\]'):
        espeak.Espeak(seed=0)


def test_no_variant_is_in_two_timbres():
    variants = [variant for timbre in espeak.TIMBRES for variant in timbre]
    assert len(variants) == len(set(variants))


@speaks
def test_every_variant_and_accent_is_in_the_package():
    data = pathlib.Path(espeak.import_loader().get_data_path())
    present = {path.name for path in (data / 'voices' / '!v').iterdir()}
    assert {variant for timbre in espeak.TIMBRES for variant in timbre} <= present
    languages = {path.name.lower() for path in (data / 'lang').rglob('*') if path.is_file()}
    assert set(espeak.ENGLISH_ACCENTS) <= languages


@speaks
def test_same_seed_says_the_same_in_every_process_and_another_seed_does_not():
    program = """
import hashlib
engine = Espeak(seed={})
engine.set_voice('en-us', 'whisper')
found = hashlib.sha256(engine.say('six').tobytes()).hexdigest()"""
    first, again, other = [_in_a_process_of_its_own(program.format(seed)) for seed in (1, 1, 2)]
    assert first == again != other


@speaks
def test_timbres_sound_different_from_one_another():
    # Long-term spectra in 1/3-octave bands, each of unit sum: two that agreed would be one voice.
    found = _in_a_process_of_its_own("""
engine = Espeak(seed=0)
edges = (110 * 2 ** (np.arange(20) / 3) * 1024 / engine.sample_rate).astype(int)
bands = []
for timbre in TIMBRES:
    engine.set_voice('en-us', timbre[0])
    power = 0
    for word in ('seven', 'house', 'visual'):
        samples = engine.say(word)
        frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512] * np.hanning(1024)
        power = power + np.square(np.abs(np.fft.rfft(frames))).sum(axis=0)
    decibel = 10 * np.log10(np.add.reduceat(power, edges)[:-1])
    bands.append(decibel - decibel.mean())
bands = np.array(bands)
difference = np.abs(bands[:, None] - bands[None]).mean(axis=-1) + 99 * np.eye(len(bands))
found = difference.min(), np.median(difference)""")
    nearest, median = (float(value.split('(')[-1].strip(')')) for value in found[1:-1].split(', '))
    assert nearest > 0.5 and median > 3  # dB per band


@speaks
def test_rate_pitch_and_language_are_heard():
    found = _in_a_process_of_its_own("""
engine = Espeak(seed=0)
engine.set_voice('en-us')
def pitch_of(samples):
    # Autocorrelation peak between 60 and 400 Hz: the pitch.
    samples = samples[2000:6000].astype(float)
    correlation = np.correlate(samples, samples, 'full')[len(samples) - 1:]
    return float(22050 / (55 + correlation[55:367].argmax()))
slow, fast = len(engine.say('marvin', rate=120)), len(engine.say('marvin', rate=240))
low, high = pitch_of(engine.say('no', pitch=10)), pitch_of(engine.say('no', pitch=90))
english = engine.say('jahr')
engine.set_voice('de')
german = engine.say('jahr')
found = [slow > 1.3 * fast, high > 1.3 * low, len(english) != len(german), engine.sample_rate]""")
    assert found == '[True, True, True, 22050]'


@speaks
def test_unknown_language_is_an_error_that_names_it():
    found = _in_a_process_of_its_own("""
try:
    Espeak(seed=0).set_voice('klingonish')
except ValueError as error:
    found = error""")
    assert 'klingonish' in found and 'language must be' in found

