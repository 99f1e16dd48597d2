"""Where sound comes from while it is listened to: int16 pieces at 16 kHz, one after the other."""

from collections.abc import Iterator

import numpy as np

from kws_jax.data.cache import SAMPLE_RATE

PIECE = 1280  # samples: 80 ms


def from_file(path) -> Iterator[np.ndarray]:
    """The pieces of a WAV or FLAC file of any rate and number of channels.

    Raises:
      OSError: there is no such file, or it cannot be read as sound; names it.
    """
    import soundfile
    import soxr

    try:
        audio, rate = soundfile.read(path, dtype='float32', always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OSError(f'{path} cannot be read as sound: {error}') from None
    audio = audio.mean(axis=1)
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    audio = np.clip(np.round(audio * 32768), -32768, 32767).astype(np.int16)
    for first in range(0, len(audio), PIECE):
        yield audio[first : first + PIECE]


def from_pcm(stream) -> Iterator[np.ndarray]:
    """The pieces of raw 16-bit little-endian samples that are already 16 kHz and mono.

    Args:
      stream: binary file; a last odd byte is dropped.
    """
    rest = b''
    while read := stream.read1(2 * PIECE) if hasattr(stream, 'read1') else stream.read(2 * PIECE):
        read = rest + read
        whole = len(read) // 2 * 2
        rest = read[whole:]
        if whole:
            yield np.frombuffer(read[:whole], '<i2')


def from_microphone(device: str | None = None) -> Iterator[np.ndarray]:
    """What a microphone hears, for ever.

    Args:
      device: its number or a part of its name, as `python -m sounddevice` lists them.

    Raises:
      OSError: the package, PortAudio or the microphone is missing; says how to get it.
    """
    try:
        import sounddevice
    except ImportError:
        raise OSError(
            'the microphone needs the package sounddevice (pip install .[listen]); or give --wav'
        ) from None
    except OSError as error:
        raise OSError(
            f'{error}; on Debian or Ubuntu: apt install libportaudio2; or give --wav'
        ) from None
    name = int(device) if device and device.isdigit() else device
    try:
        with sounddevice.InputStream(
            samplerate=SAMPLE_RATE, channels=1, dtype='int16', blocksize=PIECE, device=name
        ) as stream:
            while True:
                yield stream.read(PIECE)[0][:, 0]
    except (sounddevice.PortAudioError, ValueError) as error:
        raise OSError(f'no microphone: {error}; `python -m sounddevice` lists them') from None
