"""A spoken keyword corpus made offline, in the Speech Commands layout, for want of recordings.

Voices of espeak-ng in eight accents and one small neural voice say the words; pace, melody,
formants, room, microphone, noise floor and level vary. Every base voice (timbre) is in one split
only. The speech is synthetic: what a model reaches here says which of two models is better, not how
either does on recordings.
"""

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
import wave

import numpy as np
import tqdm

from kws_jax.data import espeak, rendering
from kws_jax.data.index import NOISE_FOLDER, SPLITS
from kws_jax.data.labels import KEYWORDS_10, WORDS_35

_SHARES = {'training': 0.8, 'validation': 0.1, 'testing': 0.1}
_TIMBRE_SHARES = {
    'training': 0.7,
    'validation': 0.15,
    'testing': 0.15,
}  # few voices would make a test of few voices
_CLIPS_PER_SPEAKER = 20
_NEURAL_SHARE, _NEURAL_CLIPS_PER_SPEAKER = 0.04, 48  # of the training clips
_VOCODER_SHARE = 0.1  # of the espeak speakers: WORLD takes ten times as long as the rest
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where stderr is no terminal
_VERSION = 1  # of the recipe; raise it whenever the bytes of a seed change
_LICENCES = (
    'The recordings were spoken by programs; no person was recorded. espeak-ng is GPL-3.0-or-later '
    'and hibari-tts is Apache-2.0 (its voice was distilled from Kokoro-82M, Apache-2.0); these '
    'licences cover the programs and their voice data, of which this corpus holds no copy. pyworld '
    'is MIT. The noises were computed. The word list is that of Speech Commands v0.02 unless '
    'another was given. Nothing else is claimed for the recordings.'
)
_log = logging.getLogger(__name__)


def make_corpus(
    out,
    *,
    clips=6000,
    words=WORDS_35,
    seed=0,
    workers=None,
    language='en',
    keyword_share=0.55,
    keywords=KEYWORDS_10,
    neural_voice=None,
    vocoder=None,
    noise_seconds=60.0,
    progress=True,
):
    """Makes a synthetic corpus at `out`, or returns at once where the same one is already there.

    Args:
      out: folder to make; it appears, complete, only at the very end.
      clips: recordings in all, at least 10; 80 % training, 10 % validation, 10 % testing.
      words: what is said; each word becomes a folder.
      seed: of every draw. On one machine, with the same package versions, a seed gives the same
        bytes.
      workers: processes at a time, the number of CPUs if None. The bytes do not depend on it.
      language: 'en' for eight accents of English, else any language or accent code of espeak-ng
        ('de', 'en-us').
      keyword_share: share of the clips for those `words` that are in `keywords`; the rest is for
        the others.
      keywords: the words that get this share.
      neural_voice: let hibari-tts speak 4 % of the training clips; None: where `language` is
        English.
      vocoder: pass that voice and a tenth of the speakers of espeak-ng through WORLD (pyworld),
        which shifts formants; None: where pyworld imports, with a line in the log where it does
        not. A corpus that is there already may then be of either kind.
      noise_seconds: length of each file in `_background_noise_`, at least 1.
      progress: whether to show a bar, or a line in the log every ten seconds where stderr is no
        terminal.

    Returns:
      `out` as a `pathlib.Path`. In it: `<word>/<speaker>_nohash_<n>.wav` (16 kHz, mono, 16 bit, 0.5
      to 1 s), `validation_list.txt`, `testing_list.txt`, `_background_noise_/*.wav`, and
      `CORPUS.json` (parameters, package versions, voices of each split, licences, a SHA-256 of all
      audio).

    Raises:
      ImportError: a package is missing; nothing is left out silently.
      ValueError: an argument is out of range.
      FileExistsError: `out` holds something else.
      OSError: `out` cannot be written.
      RuntimeError: a word takes too long, or a voice failed; see `rendering.render`.
    """
    words, keywords, out = tuple(words), tuple(keywords), pathlib.Path(out)
    english = language == 'en' or language.startswith('en-')
    neural_voice = english if neural_voice is None else neural_voice
    _check(clips, words, language, english, keyword_share, noise_seconds, workers)
    parameters = {
        'recipe': _VERSION,
        'clips': clips,
        'words': list(words),
        'seed': seed,
        'language': language,
        'keyword_share': keyword_share,
        'keywords': [word for word in keywords if word in words],
        'neural_voice': neural_voice,
        'vocoder': vocoder,
        'noise_seconds': float(noise_seconds),
    }
    there = _existing(out, parameters)
    if there is not None:
        without = vocoder is None and there.get('vocoder') is False
        _log.info(
            '%s is there already%s',
            out,
            ', made without formant shifts (to have them, install pyworld and remove that folder)'
            if without
            else '',
        )
        return out
    espeak.import_loader()
    if neural_voice:
        rendering.import_hibari()
    if vocoder is None:
        parameters['vocoder'] = _has_vocoder(out)
    elif vocoder:
        rendering.import_pyworld()
    speakers = plan_speakers(parameters)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{out.name}.partial-', dir=out.parent))
    try:
        partial.chmod(0o755)
        for word in words:
            (partial / word).mkdir()
        with _shown(clips, progress) as count:
            rendering.render(
                speakers, partial, workers=workers or os.cpu_count() or 1, on_clip=count
            )
        for split in ('validation', 'testing'):
            (partial / f'{split}_list.txt').write_text(
                ''.join(f'{name}\n' for name in _names(speakers, split))
            )
        _write_noises(
            partial, _names(speakers, 'training'), seed, int(noise_seconds * rendering.SAMPLE_RATE)
        )
        record = _describe(partial, parameters, speakers, english)
        (partial / 'CORPUS.json').write_text(json.dumps(record, indent=1) + '\n')
        try:
            os.rename(partial, out)
        except OSError:
            if _existing(out, parameters) is None:  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _log.info('made %d clips by %d speakers in %s', clips, len(speakers), out)
    return out


def _check(clips, words, language, english, keyword_share, noise_seconds, workers):
    if clips < 10:
        raise ValueError(f'clips must be at least 10, so that every split has one, got {clips}')
    if len(set(words)) != len(words) or not words:
        raise ValueError(f'words must be given, each once, got {words}')
    for word in words:
        if not re.fullmatch(r"[^\W_]([\w' -]*\w)?", word):
            raise ValueError(
                f'words must be able to name a folder (letters, digits, inner spaces), got {word!r}'
            )
    if words == WORDS_35 and not english:
        raise ValueError(f'words must be given for language {language!r}: the usual 35 are English')
    if not 0 <= keyword_share <= 1:
        raise ValueError(f'keyword_share must be in 0..1, got {keyword_share}')
    if noise_seconds < 1:
        raise ValueError(f'noise_seconds must be at least 1, got {noise_seconds}')
    if workers is not None and workers < 1:
        raise ValueError(f'workers must be at least 1, or None for one per CPU, got {workers}')


@contextlib.contextmanager
def _shown(total, enabled):
    """Shows progress; gives the function to call after each of `total` clips."""
    done, said = 0, time.monotonic()
    with tqdm.tqdm(
        total=total,
        desc='speaking',
        unit='clip',
        nrows=20,  # on a terminal that states no size the bar would not show
        disable=None if enabled else True,
    ) as bar:

        def count():
            nonlocal done, said
            done += 1
            bar.update()
            now = time.monotonic()
            if enabled and bar.disable and now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                _log.info('spoke %d of %d clips', done, total)

        yield count


def _has_vocoder(out):
    """Returns whether pyworld imports; logs what is left out, and how to have it, where not."""
    try:
        rendering.import_pyworld()
    except ImportError as error:
        _log.warning(
            'made without formant shifts, because pyworld does not import (%s); to have them: '
            'pip install pyworld-prebuilt, delete %s, and run again',
            error.__cause__,
            out,
        )
        return False
    return True


def _existing(out, parameters):
    """Returns the parameters of the corpus at `out`; None if there is nothing.

    Raises:
      FileExistsError: there is something else. A parameter of None may have any value.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / 'CORPUS.json').read_text())['parameters']
    except (OSError, ValueError, KeyError):
        raise FileExistsError(
            f'out must be absent or a corpus made by make_corpus, got {out}: it has no readable '
            'CORPUS.json'
        ) from None
    differing = sorted(
        key
        for key in found.keys() | parameters.keys()
        if parameters.get(key, '') is not None and found.get(key) != parameters.get(key)
    )
    if differing:
        raise FileExistsError(
            f'out must be absent or the same corpus, got {out}: it was made with another '
            f'{", ".join(differing)}; remove it or choose another folder'
        )
    return found


def plan_speakers(parameters):
    """Decides who says what: a pure function of the parameters of a corpus.

    Args:
      parameters: dict as in CORPUS.json.

    Returns:
      list of `rendering.Speaker`, the slow ones first; no timbre is in two splits.
    """
    rng = np.random.default_rng([parameters['seed'], 0])
    language, clips = parameters['language'], parameters['clips']
    accents = espeak.ENGLISH_ACCENTS if language == 'en' else (language,)
    order = [espeak.TIMBRES[i] for i in rng.permutation(len(espeak.TIMBRES))]
    held_out = {split: max(1, round(clips * _SHARES[split])) for split in ('validation', 'testing')}
    sizes = {'training': clips - sum(held_out.values()), **held_out}
    speakers, names = [], set()
    for split in SPLITS:
        count = (
            len(order)
            if split == SPLITS[-1]
            else round(len(espeak.TIMBRES) * _TIMBRE_SHARES[split])
        )
        timbres, order = order[:count], order[count:]
        said = _draw_words(rng, sizes[split], parameters)
        neural = (
            round(sizes[split] * _NEURAL_SHARE)
            if split == 'training' and parameters['neural_voice']
            else 0
        )
        parts = [('hibari', part) for part in _deal(said[:neural], _NEURAL_CLIPS_PER_SPEAKER)]
        parts += [('espeak', part) for part in _deal(said[neural:], _CLIPS_PER_SPEAKER)]
        for index, (engine, part) in enumerate(parts):
            timbre = timbres[index % len(timbres)]
            name = f'{rng.integers(2**32):08x}'
            while name in names:
                name = f'{rng.integers(2**32):08x}'
            names.add(name)
            accent, variant = accents[rng.integers(len(accents))], timbre[rng.integers(len(timbre))]
            through_world = bool(rng.random() < _VOCODER_SHARE) and parameters['vocoder']
            seen = collections.Counter()
            numbered = []
            for word in part:
                numbered.append((word, seen[word]))
                seen[word] += 1
            if engine == 'hibari':
                timbre, variant, accent, through_world = (
                    ('hibari',),
                    '',
                    'en-us',
                    parameters['vocoder'],
                )
            speakers.append(
                rendering.Speaker(
                    name=name,
                    split=split,
                    engine=engine,
                    timbre=timbre[0],
                    variant=variant,
                    language=accent,
                    vocoder=through_world,
                    seed=(parameters['seed'], 1, len(speakers)),
                    clips=tuple(numbered),
                )
            )
    return sorted(speakers, key=lambda speaker: (speaker.engine != 'hibari', not speaker.vocoder))


def _draw_words(rng, count, parameters):
    """Returns `count` words by keyword_share, shuffled, each at least once where there is room."""
    words, chosen = parameters['words'], set(parameters['keywords'])
    share = (
        parameters['keyword_share'] if 0 < len(chosen) < len(words) else len(chosen) / len(words)
    )
    weights = np.array([
        share / len(chosen) if word in chosen else (1 - share) / (len(words) - len(chosen))
        for word in words
    ])
    least = 1 if count >= len(words) else 0
    exact = weights * (count - least * len(words))
    counts = np.floor(exact).astype(int) + least
    # Words that round down by most come first; ties in an order of their own in each split.
    ties = rng.permutation(len(words))
    order = sorted(range(len(words)), key=lambda i: (-round(exact[i] % 1, 9), ties[i]))
    counts[order[: count - counts.sum()]] += 1
    return [words[i] for i in rng.permutation(np.repeat(np.arange(len(words)), counts))]


def _deal(items, size):
    """Splits a list into the fewest parts of at most `size`, as even as can be."""
    parts = math.ceil(len(items) / size)
    return [items[i * len(items) // parts : (i + 1) * len(items) // parts] for i in range(parts)]


def _names(speakers, split):
    return sorted(
        f'{word}/{speaker.name}_nohash_{number}.wav'
        for speaker in speakers
        if speaker.split == split
        for word, number in speaker.clips
    )


def read_wav(path):
    """Samples of a 16-bit mono WAV file, int16 `[n]`."""
    with wave.open(os.fspath(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), '<i2')


def _write_noises(root, babblers, seed, samples):
    """Writes `_background_noise_`, files of int16 [samples]; babble is made of `babblers`."""
    folder = root / NOISE_FOLDER
    folder.mkdir()
    rng = np.random.default_rng([seed, 2])
    noises = {
        name: rendering.coloured_noise(rng, samples, exponent)
        for name, exponent in (('white_noise', 0), ('pink_noise', 1), ('brown_noise', 2))
    }
    time = np.arange(samples) / rendering.SAMPLE_RATE
    hum = sum(
        np.sin(2 * np.pi * (50 * k * time + rng.random())) * rng.uniform(0.3, 1) / k
        for k in range(1, 13)
    )
    noises['mains_hum'] = hum + 0.05 * rendering.coloured_noise(rng, samples, 1)
    babble = np.zeros(samples)
    for _ in range(8):  # talkers at a time
        position = -int(rng.integers(rendering.CLIP_SAMPLES))
        while position < samples:
            clip = read_wav(root / babblers[rng.integers(len(babblers))]).astype(np.float64)
            clip *= rng.uniform(0.3, 1) / max(np.sqrt(np.square(clip).mean()), 1.0)
            clip = clip[max(0, -position) : max(0, samples - position)]
            babble[max(position, 0) : max(position, 0) + len(clip)] += clip
            position += rendering.CLIP_SAMPLES * 3 // 4
    noises['babble'] = babble
    for name, noise in noises.items():
        rendering.write_wav(
            folder / f'{name}.wav', np.round(noise * (0.5 * 32767 / np.abs(noise).max()))
        )


def _describe(root, parameters, speakers, english):
    """Returns the content of CORPUS.json."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob('*.wav')):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    voices = {
        split: sorted({speaker.timbre for speaker in speakers if speaker.split == split})
        for split in SPLITS
    }
    packages = [
        'numpy',
        'scipy',
        'espeakng-loader',
        *['hibari-tts'] * parameters['neural_voice'],
        *importlib.metadata.packages_distributions().get('pyworld', [])[: parameters['vocoder']],
    ]
    return {
        'parameters': parameters,
        'versions': {
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        'speakers': {
            split: sum(speaker.split == split for speaker in speakers) for split in SPLITS
        },
        'clips': {split: len(_names(speakers, split)) for split in SPLITS},
        'voices': voices,
        'accents': list(espeak.ENGLISH_ACCENTS)
        if english and parameters['language'] == 'en'
        else [parameters['language']],
        'sha256': digest.hexdigest(),
        'licences': _LICENCES,
    }
