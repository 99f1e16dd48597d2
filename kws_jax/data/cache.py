"""Recordings decoded once, into one memory-mapped array of int16.

Every recording becomes exactly one second at 16 kHz: a longer one is cut to the second that holds
most energy, a shorter one gets zeros at its end, as in the data set's reference code. A recording
that cannot be decoded keeps its row, all zeros and marked, so that rows and files stay aligned.
"""

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import struct
import tempfile
import time
import typing

import numpy as np
import soundfile
import soxr
import tqdm

SAMPLE_RATE = 16000
SAMPLES = 16000

_FORMAT = 1  # part of every key: raise it when decoding changes, and old caches are left alone
_BLOCK = 256  # recordings decoded before they are written: 8 MB in memory
_THREADS = 4  # files are read and converted outside of Python's lock
_STALE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)


class Decoded(typing.NamedTuple):
    """A decoded recording.

    `samples` is int16 [n] at 16 kHz, or None with an `error`; `rate` and `channels` are the file's.
    """

    samples: np.ndarray | None
    rate: int = SAMPLE_RATE
    channels: int = 1
    error: str = ''


@dataclasses.dataclass(frozen=True)
class AudioCache:
    """Decoded recordings, row i being file i of those the cache was opened for.

    audio: int16 [N, 16000], read-only memory map; zeros where not `ok`.
    ok: bool [N], whether the file could be decoded.
    seconds: float32 [N], duration before it was cut or padded.
    rate, channels: int32 [N], of the file.
    digest: uint8 [N, 16], hash of the decoded samples before they were cut; equal for equal audio.
    errors: why row i could not be decoded, for every row that is not `ok`.
    key: names the cache; a function of paths, sizes and modification times.
    """

    audio: np.ndarray
    ok: np.ndarray
    seconds: np.ndarray
    rate: np.ndarray
    channels: np.ndarray
    digest: np.ndarray
    errors: dict[int, str]
    key: str

    def conversions(self):
        """Returns {what was done: number of recordings}, those left out as undecodable included."""
        ok, length = self.ok, np.rint(self.seconds * SAMPLE_RATE)
        return {
            'resampled': int(np.sum(ok & (self.rate != SAMPLE_RATE))),
            'mixed_to_mono': int(np.sum(ok & (self.channels > 1))),
            'cut': int(np.sum(ok & (length > SAMPLES))),
            'padded': int(np.sum(ok & (length < SAMPLES))),
            'undecodable': int(np.sum(~ok)),
        }


def decode_file(path):
    """Decodes one file to mono int16 at 16 kHz; never raises for what is wrong with the file.

    Plain 16-bit mono WAV at 16 kHz is copied sample by sample; all else goes through libsndfile,
    the mean of the channels, and soxr (HQ). A WAV that ends before the length its header states
    counts as undecodable: half a word under the label of a whole one would only do harm.
    """
    try:
        with open(path, 'rb') as file:
            raw = file.read()
    except OSError as e:
        return Decoded(None, error=e.strerror or str(e))
    if not raw:
        return Decoded(None, error='empty file')
    header = _wav_header(raw)
    if header is not None:
        (encoding, channels, rate, bits), start, promised = header
        present = len(raw) - start
        # Recorders that write to a pipe cannot know the length; they state one near the limit.
        if promised - present > 1 and promised < 0x7FFF0000:
            return Decoded(
                None,
                rate,
                channels,
                f'truncated: its header states {promised} bytes of audio, {present} are there',
            )
        if (encoding, channels, rate, bits) == (1, 1, SAMPLE_RATE, 16):
            samples = np.frombuffer(raw, '<i2', min(promised, present) // 2, start)
            return Decoded(samples) if len(samples) else Decoded(None, error='no samples')
    return _decode_any(raw)


def to_one_second(samples):
    """Cuts or pads int16 samples [n] to int16 [16000].

    A longer recording is cut to its second of highest energy (the middle one where several are
    equal); a shorter one is followed by zeros.

    >>> to_one_second(np.full(3, 7, np.int16))[:5].tolist()
    [7, 7, 7, 0, 0]
    """
    if len(samples) == SAMPLES:
        return samples
    if len(samples) < SAMPLES:
        return np.concatenate([samples, np.zeros(SAMPLES - len(samples), np.int16)])
    energy = np.concatenate([[0], np.cumsum(samples.astype(np.int64) ** 2)])
    energy = energy[SAMPLES:] - energy[:-SAMPLES]
    best = np.flatnonzero(energy == energy.max())
    start = int(best[len(best) // 2])
    return samples[start : start + SAMPLES]


def open_cache(files, cache_dir, *, progress=True):
    """Opens the cache of these files, decoding them first when there is none.

    Args:
      files: paths, in the order of the rows; they may lie under several roots.
      cache_dir: folder of caches, made when missing. A cache is written beside its place and moved
        there in one step, so an interrupted run leaves none that looks whole, and several processes
        may open the same one.
      progress: whether to show a bar (on a terminal only).

    Returns:
      `AudioCache`.

    Raises:
      OSError: the disk is full (nothing is left behind), or `cache_dir` cannot be written.
    """
    files = [os.path.abspath(os.fspath(f)) for f in files]
    return store_clips(
        file_key(files),
        cache_dir,
        lambda: _decode_files(files),
        len(files),
        names=files,
        progress=progress,
    )


def store_clips(key, cache_dir, decode, count, *, names, progress=True):
    """Opens the cache called `key`, writing it first when there is none.

    Args:
      key: str, names the cache.
      cache_dir, progress: as `open_cache`.
      decode: function that returns an iterable of `count` of `Decoded`, called when needed.
      count: int, number of recordings.
      names: list of `count` names for the log.

    Raises:
      OSError: as `open_cache`.
    """

    def build(folder):
        _log.info('decoding %d recordings into %s', count, os.path.join(cache_dir, key))
        started = time.monotonic()
        _write_clips(folder, decode(), count, progress)
        _log.info('decoded %d recordings in %.1f s', count, time.monotonic() - started)

    folder = stored(key, cache_dir, build, needed=count * SAMPLES * 2)
    with np.load(os.path.join(folder, 'clips.npz')) as clips:
        table = {name: clips[name] for name in clips.files}
    with open(os.path.join(folder, 'errors.json'), encoding='utf-8') as file:
        errors = {int(row): error for row, error in json.load(file).items()}
    audio = np.load(os.path.join(folder, 'audio.npy'), mmap_mode='r')
    cache = AudioCache(audio=audio, errors=errors, key=key, **table)
    _log_changes(count, 'recordings', cache.conversions())
    for row, error in itertools.islice(errors.items(), 20):
        _log.warning('left out, undecodable: %s (%s)', names[row], error)
    if len(errors) > 20:
        _log.warning(
            'left out, undecodable: %d more; launch/inspect_data.py lists them all',
            len(errors) - 20,
        )
    return cache


def open_noise(files, cache_dir):
    """Opens long recordings, whole and decoded once.

    Returns:
      (list of int16 [n], one for each file that could be decoded, {path: why} for the others).

    Raises:
      OSError: as `open_cache`.
    """
    files = [os.path.abspath(os.fspath(f)) for f in files]

    def build(folder):
        decoded = [decode_file(f) for f in files]
        about = {
            'errors': {
                f: d.error for f, d in zip(files, decoded, strict=True) if d.samples is None
            },
            'changed': {
                'resampled': sum(d.samples is not None and d.rate != SAMPLE_RATE for d in decoded),
                'mixed_to_mono': sum(d.samples is not None and d.channels > 1 for d in decoded),
                'undecodable': sum(d.samples is None for d in decoded),
            },
        }
        np.savez(
            os.path.join(folder, 'noise.npz'),
            **{f'{i:06d}': d.samples for i, d in enumerate(decoded) if d.samples is not None},
        )
        with open(os.path.join(folder, 'about.json'), 'w', encoding='utf-8') as file:
            json.dump(about, file)

    folder = stored(
        'background-' + file_key(files), cache_dir, build, needed=sum(_size(f) for f in files)
    )
    with np.load(os.path.join(folder, 'noise.npz')) as arrays:
        noise = [arrays[name] for name in sorted(arrays.files)]
    with open(os.path.join(folder, 'about.json'), encoding='utf-8') as file:
        about = json.load(file)
    _log_changes(len(files), 'background noises', about['changed'])
    for path, error in about['errors'].items():
        _log.warning('left out, undecodable noise: %s (%s)', path, error)
    return noise, about['errors']


def file_key(files):
    """Returns the name of the cache of these files: a hash of paths, sizes, modification times."""
    key = hashlib.blake2b(f'kws_jax {_FORMAT} {SAMPLES}'.encode(), digest_size=10)
    for path in files:
        try:
            stat = os.stat(path)
            key.update(
                f'{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode('utf-8', 'surrogateescape')
            )
        except OSError:  # a broken link; decoding reports it
            key.update(f'{path}\0missing\n'.encode('utf-8', 'surrogateescape'))
    return key.hexdigest()


def _wav_header(raw):
    """Returns (fmt, audio offset, stated audio bytes), or None if `raw` is no WAV.

    fmt is (encoding, channels, rate, bits).
    """
    if raw[:4] != b'RIFF' or raw[8:12] != b'WAVE':
        return None
    at, fmt = 12, None
    while at + 8 <= len(raw):
        name, size = struct.unpack_from('<4sI', raw, at)
        at += 8
        if name == b'fmt ' and size >= 16 and at + size <= len(raw):
            encoding, channels, rate, _, _, bits = struct.unpack_from('<HHIIHH', raw, at)
            if (
                encoding == 0xFFFE and size >= 26
            ):  # WAVE_FORMAT_EXTENSIBLE keeps the encoding further on
                (encoding,) = struct.unpack_from('<H', raw, at + 24)
            fmt = encoding, channels, rate, bits
        elif name == b'data':
            return None if fmt is None else (fmt, at, size)
        at += size + (size & 1)
    return None


def _decode_any(raw):
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            samples = file.read(dtype='float32', always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as e:
        return Decoded(None, error=str(e).split(': ', 1)[-1])
    if len(samples) == 0:
        return Decoded(None, rate, channels, 'no samples')
    if len(samples) < frames:
        return Decoded(
            None, rate, channels, f'truncated: {frames} samples stated, {len(samples)} are there'
        )
    if not np.isfinite(samples).all():
        return Decoded(None, rate, channels, 'not finite')
    samples = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality='HQ')
    if len(samples) == 0:
        return Decoded(None, rate, channels, 'no samples')
    return Decoded(
        np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16), rate, channels
    )


def _decode_files(files):
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        waiting = collections.deque()
        for path in files:
            waiting.append(pool.submit(decode_file, path))
            if len(waiting) >= _BLOCK:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _log_changes(count, what, changes):
    changed = ', '.join(f'{n} {name}' for name, n in changes.items() if n)
    if changed:
        _log.info('of %d %s: %s', count, what, changed)


def _write_clips(folder, decoded, count, progress):
    table = {
        'ok': np.zeros(count, bool),
        'seconds': np.zeros(count, np.float32),
        'rate': np.zeros(count, np.int32),
        'channels': np.zeros(count, np.int32),
        'digest': np.zeros((count, 16), np.uint8),
    }
    errors, row = {}, 0
    bar = tqdm.tqdm(total=count, desc='decoding', unit='file', disable=None if progress else True)
    with bar, open(os.path.join(folder, 'audio.npy'), 'wb') as file:
        np.lib.format.write_array_header_1_0(
            file, {'descr': '<i2', 'fortran_order': False, 'shape': (count, SAMPLES)}
        )
        decoded = iter(decoded)
        while items := list(itertools.islice(decoded, _BLOCK)):
            block = np.zeros((len(items), SAMPLES), '<i2')
            for i, item in enumerate(items):
                table['rate'][row + i], table['channels'][row + i] = item.rate, item.channels
                if item.samples is None:
                    errors[row + i] = item.error
                    continue
                block[i] = to_one_second(item.samples)
                table['ok'][row + i] = True
                table['seconds'][row + i] = len(item.samples) / SAMPLE_RATE
                digest = hashlib.blake2b(item.samples.tobytes(), digest_size=16).digest()
                table['digest'][row + i] = np.frombuffer(digest, np.uint8)
            file.write(block.data)
            row += len(items)
            bar.update(len(items))
    if row != count:
        raise RuntimeError(f'expected {count} recordings, got {row}')
    np.savez(os.path.join(folder, 'clips.npz'), **table)
    with open(os.path.join(folder, 'errors.json'), 'w', encoding='utf-8') as file:
        json.dump(errors, file)


def stored(key, cache_dir, build, *, needed):
    """Returns the folder `cache_dir/key`, after `build(folder)` wrote it if it was missing.

    It is written beside its place and moved there in one step.

    Args:
      key: str, name of the folder.
      cache_dir: made when missing.
      build: function that writes into the folder it is given.
      needed: bytes to name when the disk is full.

    Raises:
      OSError: the disk is full; nothing is left behind.
    """
    cache_dir = os.path.abspath(os.path.expanduser(os.fspath(cache_dir)))
    target = os.path.join(cache_dir, key)
    if os.path.isdir(target):
        return target
    os.makedirs(cache_dir, exist_ok=True)
    _remove_stale(cache_dir)
    folder = tempfile.mkdtemp(prefix='.writing-', dir=cache_dir)
    try:
        build(folder)
        os.chmod(folder, 0o755)
        try:
            os.rename(folder, target)
        except OSError as e:
            # Another process was quicker; its cache has the same key, so the same content.
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            e.errno,
            f'no space left for the decoded recordings: cache_dir needs {needed:,} bytes, '
            f'{shutil.disk_usage(cache_dir).free:,} are free; free some, or pass another cache_dir',
            cache_dir,
        ) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _remove_stale(cache_dir):
    """Removes what runs that were killed a day ago or earlier left half-written."""
    with os.scandir(cache_dir) as entries:
        for entry in entries:
            if (
                entry.name.startswith('.writing-')
                and time.time() - entry.stat().st_mtime > _STALE_SECONDS
            ):
                shutil.rmtree(entry.path, ignore_errors=True)


def _size(path):
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
