"""Speaks the clips of one synthetic speaker: a voice, its settings, a room and a microphone.

Every speaker is rendered in a process of its own (see `espeak`), forked from a parent that has
imported only what speaking needs: `render` starts that parent, `main` is it.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
import wave

import numpy as np
import scipy.fft
import scipy.signal

from kws_jax.data import espeak

SAMPLE_RATE = 16000
CLIP_SAMPLES = 16000
_LONGEST_WORD = 14700  # samples: leaves room for the offset in the second
_FFT = 32768  # a clip and its echo
_FRAME = 160
_SPOKEN, _REASON = b'clip\n', b'reason: '  # lines that a process of `render` writes to stdout


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One synthetic speaker: a base voice and what settings are drawn from.

    `name` is the eight hex digits of its files; `engine` 'espeak' or 'hibari'; `timbre` the base
    voice, which lives in one split only; `variant` and `language` (an accent) choose the voice
    inside it; with `vocoder` its formants, melody and pace pass through WORLD; all its random draws
    come from `seed`. `clips` are pairs (word, n).
    """

    name: str
    split: str
    engine: str
    timbre: str
    variant: str
    language: str
    vocoder: bool
    seed: tuple[int, ...]
    clips: tuple[tuple[str, int], ...]


def import_hibari():
    """Returns the class `hibari.Hibari`.

    Raises:
      ImportError: the package is not installed; the message says what to install, or to do without.
    """
    try:
        from hibari import Hibari
    except ImportError as error:
        raise ImportError(
            'the neural voice needs the package hibari-tts: pip install "kws_jax[synth]", or make '
            'the corpus with neural_voice=False'
        ) from error
    return Hibari


def import_pyworld():
    """Returns the module `pyworld`.

    Raises:
      ImportError: it does not import; the message says why that may be, and how to do without.
    """
    try:
        import pyworld
    except ImportError as error:
        raise ImportError(
            f'pyworld does not import ({error}): pip install "kws_jax[synth]" (pyworld-prebuilt), '
            'or make the corpus with vocoder=False'
        ) from error
    return pyworld


def trim(samples, *, rate, floor_db=-42.0, margin=0.02):
    """Cuts silence off both ends: what lies more than `-floor_db` dB below the loudest 10 ms.

    Args:
      samples: float [samples].
      rate: samples per second.
      floor_db: level of silence, relative to the loudest 10 ms.
      margin: seconds that stay on either side.

    Returns:
      float [n], n <= samples; empty where everything is silent.

    >>> silence = np.zeros(800)
    >>> trim(np.concatenate([silence, np.ones(800), silence]), rate=8000, margin=0.01).shape
    (960,)
    """
    frame = rate // 100
    if len(samples) < frame:
        return samples[:0]
    power = np.square(samples[: len(samples) // frame * frame]).reshape(-1, frame).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (floor_db / 10))
    if power.max() == 0 or not len(loud):
        return samples[:0]
    keep = int(margin * rate)
    return samples[max(0, loud[0] * frame - keep) : (loud[-1] + 1) * frame + keep]


def _resampler(rate, stretch):
    """Returns what brings samples to 16 kHz, `stretch` times shorter, so higher by as much."""
    up, down = 400, round(400 * rate * stretch / SAMPLE_RATE)
    up, down = up // math.gcd(up, down), down // math.gcd(up, down)
    # The filter that resample_poly would design anew for every word.
    taps = scipy.signal.firwin(20 * max(up, down) + 1, 1 / max(up, down), window=('kaiser', 5.0))
    return lambda samples: scipy.signal.resample_poly(samples, up, down, window=taps)


def _vocode(samples, *, pitch, formants, liveliness, pace):
    """Analyses speech with WORLD (Morise et al. 2016) and says it again in another voice.

    Args:
      samples: float [samples] at 16 kHz.
      pitch, formants: factors on frequency.
      liveliness: factor on the deviations of log pitch from its mean.
      pace: factor on speed.
    """
    pyworld = import_pyworld()
    samples = np.ascontiguousarray(samples, dtype=np.float64)
    f0, times = pyworld.dio(samples, SAMPLE_RATE, f0_floor=60.0, f0_ceil=600.0)
    f0 = pyworld.stonemask(samples, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(samples, f0, times, SAMPLE_RATE)
    aperiodicity = pyworld.d4c(samples, f0, times, SAMPLE_RATE)
    voiced = f0 > 0
    if voiced.any():
        mean = np.log(f0[voiced]).mean()
        f0[voiced] = np.exp(mean + liveliness * (np.log(f0[voiced]) - mean)) * pitch
    bins = envelope.shape[1]
    source = np.minimum(np.arange(bins) / formants, bins - 1)
    low = np.minimum(source.astype(int), bins - 2)
    part = source - low
    log_envelope = np.log(envelope)
    envelope = np.exp(log_envelope[:, low] * (1 - part) + log_envelope[:, low + 1] * part)
    frames = np.minimum(np.round(np.arange(0, len(f0), pace)).astype(int), len(f0) - 1)
    return pyworld.synthesize(
        f0[frames], np.ascontiguousarray(envelope[frames]), aperiodicity[frames], SAMPLE_RATE
    )


def _room(rng, *, decay, direct_db):
    """Returns the spectrum [_FFT/2 + 1] of a room: direct, early and exponentially fading sound."""
    response = np.zeros(int(min(decay, 0.9) * SAMPLE_RATE) + 800)
    early = rng.integers(30, 700, size=8)
    response[early] += rng.uniform(-1, 1, size=8) * np.exp(-early / 400)
    tail = np.arange(len(response))
    late = rng.standard_normal(len(response)) * np.exp(-6.9 * tail / (decay * SAMPLE_RATE))
    late[:300] = 0.0
    response += 0.08 * scipy.signal.lfilter(
        [0.5], [1.0, -0.5], late
    )  # walls swallow the treble first
    response *= 10 ** (-direct_db / 20) / np.sqrt(np.square(response).sum())
    response[0] += 1.0
    return scipy.fft.rfft(response, _FFT)


def _microphone(*, low, high, tilt_db):
    """Returns the gain [_FFT/2 + 1] of a microphone: band limits in Hz, tilt in dB per octave."""
    frequency = np.maximum(np.arange(_FFT // 2 + 1) * (SAMPLE_RATE / _FFT), 1.0)
    gain = 1 / np.sqrt((1 + (low / frequency) ** 4) * (1 + (frequency / high) ** 8))
    return gain * 10 ** (np.clip(tilt_db * np.log2(frequency / 1000), -15, 15) / 20)


def coloured_noise(rng, samples, exponent):
    """Returns noise float64 [samples] of unit power, its spectrum falling as frequency**-exponent.

    Args:
      rng: numpy Generator.
      samples: length.
      exponent: 0 white, 1 pink, 2 brown. Flat below 20 Hz.
    """
    size = scipy.fft.next_fast_len(samples, real=True)
    spectrum = scipy.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.arange(len(spectrum)) * (SAMPLE_RATE / size), 20.0)
    noise = scipy.fft.irfft(spectrum * frequency ** (-exponent / 2), size)[:samples]
    return noise / np.sqrt(np.square(noise).mean())


def write_wav(path, pcm):
    """Writes int16 [samples] as a 16 kHz mono WAV file."""
    with wave.open(os.fspath(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.asarray(pcm, '<i2').tobytes())


class _EspeakVoice:
    """Says words with espeak-ng: `say(word, rng, hurry)` -> float [samples] at 16 kHz, trimmed."""

    def __init__(self, speaker, rng):
        self._engine = espeak.Espeak(seed=int(rng.integers(2**31)))
        self._engine.set_voice(speaker.language, speaker.variant)
        self._pitch, self._range = rng.uniform(20, 85), rng.uniform(15, 85)
        self._pace = 175 * 2 ** rng.uniform(-0.45, 0.3)
        self._stretch = 2 ** rng.uniform(-0.27, 0.27)
        self._resample = _resampler(self._engine.sample_rate, self._stretch)

    def say(self, word, rng, hurry):
        text = word + ('', '.', '!', '?', ',')[rng.integers(5)]
        samples = self._engine.say(
            text,
            rate=hurry * self._pace * 2 ** rng.normal(0, 0.15) / self._stretch,
            pitch=self._pitch + rng.normal(0, 8),
            pitch_range=self._range + rng.normal(0, 10),
        )
        samples = trim(samples / 32768, rate=self._engine.sample_rate)
        return self._resample(samples)


class _HibariVoice:
    """Says words with hibari-tts, cut out of a carrier: a word alone comes out garbled."""

    def __init__(self, speaker, rng):
        del speaker
        self._engine = import_hibari()()
        self._resample = _resampler(self._engine.sample_rate, 2 ** rng.uniform(-0.3, 0.12))

    def say(self, word, rng, hurry):
        del hurry  # the vocoder hurries; the place of the pause is known at speed 1 only
        samples = self._engine(f'Ready... {word}.', speed=1.0, seed=int(rng.integers(2**31)))
        rate = self._engine.sample_rate
        # The pause after the carrier is the deepest 30 ms between 0.72 and 0.88 s.
        first, frame = int(0.72 * rate), rate // 100
        power = np.square(samples[first : first + 16 * frame]).reshape(-1, frame).sum(axis=1)
        pause = (
            first + (1 + int(np.convolve(power, np.ones(3), 'valid').argmin())) * frame + frame // 2
        )
        return self._resample(trim(samples[pause:], rate=rate))


def render_speaker(speaker, root, *, on_clip=lambda: None):
    """Speaks, varies and writes all clips of one speaker; to be called once in a process.

    Args:
      speaker: the `Speaker`.
      root: folder that has a folder for each word.
      on_clip: called after each clip.

    Raises:
      ImportError: a package that the speaker needs is missing.
      OSError: a clip cannot be written.
      ValueError: a word is not said, or takes longer than a clip at the fastest pace.
    """
    rng = np.random.default_rng(speaker.seed)
    voice = {'espeak': _EspeakVoice, 'hibari': _HibariVoice}[speaker.engine](speaker, rng)
    settings = {
        'pitch': 2 ** rng.uniform(-0.6, 0.4),
        'formants': 2 ** rng.uniform(-0.22, 0.18),
        'liveliness': rng.uniform(0.4, 1.6),
        'pace': 2 ** rng.uniform(-0.25, 0.25),
    }
    echo = rng.random() < 0.65
    decay, direct_db = rng.uniform(0.12, 0.6), rng.uniform(1, 16)
    microphone = _microphone(
        low=rng.uniform(20, 280), high=2 ** rng.uniform(11.6, 13.0), tilt_db=rng.normal(0, 2.5)
    )
    noise_db, noise_exponent, level_db = (
        rng.uniform(10, 45),
        rng.uniform(0.3, 2.0),
        rng.uniform(-20, -5),
    )
    for word, number in speaker.clips:
        for hurry in (1.0, 1.3, 1.7, 2.2, 3.0):
            speech = voice.say(word, rng, hurry)
            if speaker.vocoder and len(speech):
                speech = _vocode(speech, **{**settings, 'pace': settings['pace'] * hurry})
            if 0 < len(speech) <= _LONGEST_WORD:
                break
        else:
            raise ValueError(
                f'words must be speakable within 0.9 s, got {word!r}, which takes the voice '
                f'{speaker.variant!r} {len(speech) / SAMPLE_RATE:.2f} s at its fastest'
            )
        spectrum = microphone * _room(rng, decay=decay, direct_db=direct_db) if echo else microphone
        samples = CLIP_SAMPLES
        if rng.random() < 0.1:  # some recordings of Speech Commands are shorter than a second
            samples = int(rng.integers(max(len(speech), 8000), CLIP_SAMPLES + 1))
        offset = int(rng.integers(samples - len(speech) + 1))
        dry = np.zeros(CLIP_SAMPLES)
        dry[offset : offset + len(speech)] = speech
        wet = scipy.fft.irfft(scipy.fft.rfft(dry, _FFT) * spectrum, _FFT)[:samples]
        loudness = np.sqrt(np.square(wet[offset : offset + len(speech)]).mean())
        wet += coloured_noise(rng, samples, noise_exponent) * loudness * 10 ** (-noise_db / 20)
        peak = 10 ** (min(level_db + rng.normal(0, 3), -0.5) / 20)
        pcm = np.round(wet * (peak * 32767 / np.abs(wet).max()))
        write_wav(os.path.join(root, word, f'{speaker.name}_nohash_{number}.wav'), pcm)
        on_clip()


def render(speakers, root, *, workers, on_clip=lambda: None):
    """Renders speakers, each in a process of its own, `workers` of them at a time.

    Args:
      speakers: sequence of `Speaker`.
      root: folder that has a folder for each word.
      workers: processes at a time, at least 1. The files do not depend on it.
      on_clip: called in this process after each clip that one of them wrote.

    Raises:
      RuntimeError: a speaker failed. The message is the reason, in one line, where a word, a
        package or the disk is to blame; else it ends with what was printed.
    """
    job = json.dumps({
        'root': os.fspath(root),
        'workers': workers,
        'path': sys.path,
        'speakers': [dataclasses.asdict(speaker) for speaker in speakers],
    })
    # A fork of this process would copy the threads' locks of JAX, and every fork would copy its
    # memory map.
    program = (
        'import json, sys; job = json.load(sys.stdin); sys.path[:] = job["path"]; '
        'from kws_jax.data import rendering; sys.exit(rendering.main(job))'
    )
    threads = {name: '1' for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')}
    reasons = []
    with tempfile.TemporaryFile() as job_file, tempfile.TemporaryFile() as printed:
        job_file.write(job.encode())
        job_file.seek(0)
        with subprocess.Popen(
            [sys.executable, '-c', program],
            stdin=job_file,
            stdout=subprocess.PIPE,
            stderr=printed,
            env={**os.environ, **threads},
        ) as process:
            try:
                for line in process.stdout:
                    if line == _SPOKEN:
                        on_clip()
                    elif line.startswith(_REASON):
                        reasons.append(line.removeprefix(_REASON).decode(errors='replace').strip())
            except BaseException:
                process.kill()
                raise
        printed.seek(0)
        text = printed.read().decode(errors='replace')[-3000:]
    if process.returncode:
        reason = f'rendering the corpus failed (exit {process.returncode}):\n{text}'
        raise RuntimeError(reasons[0] if reasons else reason)


def main(job):
    """Renders the speakers of a job (see `render`) in forks of this process; returns 0 or 1."""
    speakers = [
        Speaker(**{**speaker, 'seed': tuple(speaker['seed'])}) for speaker in job['speakers']
    ]
    if not hasattr(os, 'fork'):
        return _main_without_fork(speakers, job)
    for engine, package in (('espeak', espeak.import_loader), ('hibari', import_hibari)):
        if any(speaker.engine == engine for speaker in speakers):
            package()  # once here, so that the forks have it
    if any(speaker.vocoder for speaker in speakers):
        import_pyworld()
    running, failed = set(), False
    for speaker in speakers:
        if len(running) >= job['workers']:
            failed |= _wait_for_one(running)
        if failed:
            break
        process = os.fork()
        if process == 0:
            _render_and_exit(speaker, job['root'])
        running.add(process)
    while running:
        failed |= _wait_for_one(running)
    return int(failed)


def _wait_for_one(running):
    """Waits until a process of the set ends, takes it out, and returns whether it failed."""
    process, status = os.wait()
    running.discard(process)
    return status != 0


def _render_and_exit(speaker, root):
    """The life of a fork: one speaker, then out without running anything of the parent's."""
    status = 1
    try:
        render_speaker(speaker, root, on_clip=_tell_clip)
        status = 0
    except (ImportError, OSError, ValueError) as error:
        _tell(_REASON + ' '.join(str(error).split()).encode()[:2000] + b'\n')
        raise
    finally:
        if status:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


def _tell(line):
    """Writes a line to the process that called `render`, in one piece."""
    os.write(1, line)


def _tell_clip():
    _tell(_SPOKEN)


def _main_without_fork(speakers, job):
    """What `main` does without fork: a fresh interpreter for each speaker, one by one."""
    if len(speakers) == 1:
        render_speaker(speakers[0], job['root'], on_clip=_tell_clip)
    else:
        for speaker in speakers:
            render([speaker], job['root'], workers=1, on_clip=_tell_clip)
    return 0
