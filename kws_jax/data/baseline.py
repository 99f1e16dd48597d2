"""How far a linear classifier gets on a corpus: what a network has to beat."""

import os

import numpy as np
import scipy.fft
import scipy.special

from kws_jax.data.index import SPLITS, index_folder
from kws_jax.data.labels import KEYWORDS_10
from kws_jax.data.synthetic import read_wav

_RATE, _SAMPLES = 16000, 16000
_FRAME, _HOP, _FFT = 400, 160, 512


def linear_baseline(root, *, keywords=KEYWORDS_10):
    """Trains softmax regression on log-mel images of a corpus of WAV files and tests it.

    An image has 40 filters and 25 frames of 40 ms, less its mean; then every pixel is standardised.
    The L2 penalty, of three, is the one that is best on the validation split.

    Args:
      root: a corpus in the Speech Commands layout, 16 kHz mono WAV files of at most 1 s.
      keywords: the words to tell apart; recordings of other words are left out.

    Returns:
      dict: 'accuracy' on the testing split and 'validation_accuracy', both 0..1; 'penalty'; and the
      number of recordings in 'training', 'validation' and 'testing'.

    Raises:
      ValueError: a split has no recording of the keywords.
    """
    recordings = [found for found in index_folder(root) if found.word in keywords]
    images, labels = {}, {}
    for split in SPLITS:
        chosen = [found for found in recordings if found.split == split]
        if not chosen:
            raise ValueError(
                f'keywords must have recordings in the {split} split of {root}, got {keywords}'
            )
        waveforms = np.zeros((len(chosen), _SAMPLES), np.float32)
        for row, found in zip(waveforms, chosen, strict=True):
            samples = read_wav(os.path.join(root, found.path))[:_SAMPLES]
            row[: len(samples)] = samples / np.float32(32768)
        images[split] = log_mel_image(waveforms)
        labels[split] = np.array([keywords.index(found.word) for found in chosen])
    mean, deviation = images['training'].mean(axis=0), images['training'].std(axis=0) + 1e-6
    images = {split: (value - mean) / deviation for split, value in images.items()}
    best = None
    for penalty in (0.3, 0.1, 0.03):
        weights, bias = _fit(images['training'], labels['training'], len(keywords), penalty)
        right = {
            split: float(((images[split] @ weights + bias).argmax(axis=1) == labels[split]).mean())
            for split in SPLITS
        }
        if best is None or right['validation'] > best['validation_accuracy']:
            best = {
                'accuracy': right['testing'],
                'validation_accuracy': right['validation'],
                'penalty': penalty,
            }
    return {**best, **{split: len(labels[split]) for split in SPLITS}}


def _fit(x, y, classes, penalty, steps=200):
    """Returns weights [features, classes] and bias [classes], by Adam on the whole batch."""
    target = np.eye(classes, dtype=np.float32)[y]
    parameters = np.zeros((x.shape[1] + 1, classes), np.float32)
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, steps + 1):
        probability = scipy.special.softmax(x @ parameters[:-1] + parameters[-1], axis=1)
        error = (probability - target) / len(target)
        to_weights = x.T @ error + penalty * parameters[:-1]
        gradient = np.concatenate([to_weights, error.sum(axis=0, keepdims=True)])
        first += 0.1 * (gradient - first)
        second += 0.01 * (gradient**2 - second)
        rate = np.float32(0.01 * (1 - (step - 1) / steps))
        update = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
        parameters -= rate * update
    return parameters[:-1], parameters[-1]


def log_mel_image(waveforms, *, filters=40, frames=25):
    """Returns log-mel images, averaged over stretches of frames, each less its own mean.

    Args:
      waveforms: float32 [recordings, 16000] in [-1, 1), 16 kHz.
      filters, frames: size of the image.

    Returns:
      float32 [recordings, frames * filters].
    """
    starts = np.arange((_SAMPLES - _FRAME) // _HOP + 1) * _HOP
    window = np.hanning(_FRAME).astype(np.float32)
    top = 2595 * np.log10(1 + _RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, filters + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequency = np.arange(_FFT // 2 + 1) * _RATE / _FFT
    rising, falling = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    bank = np.clip(np.minimum(rising, falling), 0, None).T.astype(np.float32)
    borders = np.arange(frames) * len(starts) // frames
    lengths = np.diff(np.append(borders, len(starts))).astype(np.float32)
    images = np.empty((len(waveforms), frames, filters), np.float32)
    for i in range(0, len(waveforms), 64):  # 64 at a time, so that the spectra stay in the cache
        part = waveforms[i : i + 64, starts[:, None] + np.arange(_FRAME)] * window
        power = np.square(np.abs(scipy.fft.rfft(part, _FFT, overwrite_x=True)))
        log_power = np.log(power @ bank + 1e-8)
        images[i : i + 64] = np.add.reduceat(log_power, borders, axis=1) / lengths[:, None]
    images -= images.mean(axis=(1, 2), keepdims=True)
    return images.reshape(len(images), -1)
