"""What is in a folder of recordings, and which of them are suspect."""

import collections
import csv
import dataclasses
import os

import numpy as np

from kws_jax.data import cache as cache_lib
from kws_jax.data import index as index_lib

FULL_SCALE = 32700  # a sample at least this large counts as clipped; converters stop short of 32767
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Suspect:
    """One thing that may be wrong with one recording; `inspect` lists the kinds."""

    path: str
    word: str
    split: str
    kind: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What `inspect` found.

    counts: {word: {split: recordings}}, undecodable ones included.
    speakers: {split: number of speakers}; `shared_speakers` are in more than one split, sorted.
    seconds: float32 [N], durations of those that could be decoded; `conversions` as
      `AudioCache.conversions`.
    noise_seconds: {path: seconds} of the background noise.
    other_files: paths in folders of words that are not recordings.
    suspects: list of `Suspect`, sorted by kind and path.
    """

    counts: dict[str, dict[str, int]]
    speakers: dict[str, int]
    shared_speakers: list[str]
    seconds: np.ndarray
    conversions: dict[str, int]
    noise_seconds: dict[str, float]
    other_files: list[str]
    suspects: list[Suspect]


def inspect(
    *,
    data_dir,
    cache_dir,
    test_dir=None,
    clipped_samples=32,
    silent_dbfs=-50.0,
    short_seconds=0.5,
    long_seconds=1.05,
    progress=True,
):
    """Inspects every recording of a data folder and, where given, of a test folder.

    The kinds of suspects: 'undecodable'; 'clipped', at least `clipped_samples` samples at full
    scale; 'near_silent', the loudest tenth of a second below `silent_dbfs` (recordings of silence
    are exempt); 'short' and 'long'; 'duplicate', the same audio as an earlier recording, with
    'duplicate_across_splits' and 'duplicate_across_words' for the two cases that falsify a result.

    Args:
      data_dir, test_dir, cache_dir, progress: see `dataset.load_dataset`.
      clipped_samples: int > 0.
      silent_dbfs: level in dB, 0 being that of a full-scale square wave.
      short_seconds, long_seconds: durations in seconds beyond which a recording is suspect.

    Raises:
      FileNotFoundError, NotADirectoryError, ValueError: as `index.index_folder`.
    """
    roots = [(data_dir, r) for r in index_lib.index_folder(data_dir)]
    others = [os.path.join(data_dir, p) for p in index_lib.other_files(data_dir)]
    if test_dir is not None:
        roots += [(test_dir, r) for r in index_lib.index_test_folder(test_dir)]
        others += [os.path.join(test_dir, p) for p in index_lib.other_files(test_dir)]
    paths = [os.path.join(root, r.path) for root, r in roots]
    recordings = [r for _, r in roots]
    cache = cache_lib.open_cache(paths, cache_dir, progress=progress)
    noise_paths = [os.path.join(data_dir, p) for p in index_lib.noise_files(data_dir)]
    noise, noise_errors = cache_lib.open_noise(noise_paths, cache_dir) if noise_paths else ([], {})
    decoded_noise = [p for p in noise_paths if os.path.abspath(p) not in noise_errors]

    found = [(row, 'undecodable', why) for row, why in cache.errors.items()]
    level, clipped = levels(cache.audio)
    for row in np.flatnonzero(cache.ok):
        seconds = float(cache.seconds[row])
        if clipped[row] >= clipped_samples:
            found.append((row, 'clipped', f'{clipped[row]} samples at full scale'))
        if level[row] < silent_dbfs and recordings[row].word != index_lib.SILENCE_FOLDER:
            found.append((row, 'near_silent', f'loudest 0.1 s at {level[row]:.1f} dBFS'))
        if seconds < short_seconds:
            found.append((row, 'short', f'{seconds:.3f} s'))
        if seconds > long_seconds:
            found.append((row, 'long', f'{seconds:.3f} s'))
    found += _duplicates(cache, recordings, paths)
    suspects = [
        Suspect(paths[row], recordings[row].word, recordings[row].split, kind, detail)
        for row, kind, detail in found
    ]
    suspects += [
        Suspect(path, index_lib.NOISE_FOLDER, 'training', 'undecodable', why)
        for path, why in noise_errors.items()
    ]
    speakers = {
        split: len(names) for split, names in index_lib.speakers_by_split(recordings).items()
    }
    noise_seconds = [len(n) / cache_lib.SAMPLE_RATE for n in noise]
    return Report(
        counts=_counts(recordings),
        speakers=speakers,
        shared_speakers=index_lib.shared_speakers(recordings),
        seconds=cache.seconds[cache.ok],
        conversions=cache.conversions(),
        other_files=others,
        noise_seconds=dict(zip(decoded_noise, noise_seconds, strict=True)),
        suspects=sorted(suspects, key=lambda s: (s.kind, s.path)),
    )


def levels(audio):
    """Returns (float32 [N] dBFS of the loudest tenth of a second, int [N] samples at full scale).

    Args:
      audio: int16 [N, 16000].
    """
    level, clipped = np.zeros(len(audio), np.float32), np.zeros(len(audio), np.int64)
    for start in range(0, len(audio), _BLOCK):
        block = np.asarray(audio[start : start + _BLOCK], np.float32)
        part = slice(start, start + len(block))
        clipped[part] = np.count_nonzero(np.abs(block) >= FULL_SCALE, axis=1)
        tenths = block.reshape(len(block), 10, -1)
        power = np.einsum('ijk,ijk->ij', tenths, tenths).max(axis=1) / tenths.shape[2]
        level[part] = 10 * np.log10(np.maximum(power / 32768.0**2, 1e-12))
    return level, clipped


def format_report(report):
    """Returns the report as text: words by split, durations, and suspects of each kind."""
    splits = index_lib.SPLITS
    width = max(len(word) for word in [*report.counts, 'speakers'])
    lines = [' ' * width + ''.join(f'{split:>12}' for split in splits)]
    for word, counts in report.counts.items():
        lines.append(f'{word:{width}}' + ''.join(f'{counts[split]:12,}' for split in splits))
    total = {split: sum(counts[split] for counts in report.counts.values()) for split in splits}
    lines.append(f'{"all":{width}}' + ''.join(f'{total[split]:12,}' for split in splits))
    lines.append(
        f'{"speakers":{width}}' + ''.join(f'{report.speakers[split]:12,}' for split in splits)
    )
    lines.append('')
    if len(report.seconds):
        low, median, high = np.percentile(report.seconds, [0, 50, 100])
        exact = np.mean(np.rint(report.seconds * cache_lib.SAMPLE_RATE) == cache_lib.SAMPLES)
        lines.append(
            f'durations: {low:.2f} to {high:.2f} s, median {median:.2f} s, '
            f'{100 * exact:.1f} % of them 1 s'
        )
    noise = sum(report.noise_seconds.values())
    lines.append(f'background noise: {len(report.noise_seconds)} recordings, {noise:.0f} s')
    changed = ', '.join(f'{n:,} {name}' for name, n in report.conversions.items())
    lines.append(f'converted: {changed}')
    if report.shared_speakers:
        lines.append(
            f'speakers in more than one split: {len(report.shared_speakers)}, '
            f'the first is {report.shared_speakers[0]}'
        )
    if report.other_files:
        lines.append(
            f'files that are no recordings: {len(report.other_files)}, '
            f'the first is {report.other_files[0]}'
        )
    kinds = collections.Counter(s.kind for s in report.suspects)
    lines.append(
        'suspects: ' + (', '.join(f'{n:,} {kind}' for kind, n in sorted(kinds.items())) or 'none')
    )
    for suspect in [s for s in report.suspects if s.kind == 'undecodable']:
        lines.append(f'  undecodable: {suspect.path} ({suspect.detail})')
    return '\n'.join(lines)


def write_suspects(report, path):
    """Writes the suspects to a file, tab-separated: path, word, split, kind, detail."""
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file, delimiter='\t', lineterminator='\n')
        writer.writerow([field.name for field in dataclasses.fields(Suspect)])
        writer.writerows(dataclasses.astuple(suspect) for suspect in report.suspects)


def _counts(recordings):
    counts = {
        word: dict.fromkeys(index_lib.SPLITS, 0) for word in sorted({r.word for r in recordings})
    }
    for recording in recordings:
        counts[recording.word][recording.split] += 1
    return counts


def _duplicates(cache, recordings, paths):
    first = {}
    for row in np.flatnonzero(cache.ok):
        earlier = first.setdefault(cache.digest[row].tobytes(), row)
        if earlier == row:
            continue
        one, other = recordings[earlier], recordings[row]
        kind = 'duplicate'
        if one.split != other.split:
            kind = 'duplicate_across_splits'
        elif one.word != other.word:
            kind = 'duplicate_across_words'
        yield row, kind, f'same audio as {paths[earlier]} ({one.word}, {one.split})'
