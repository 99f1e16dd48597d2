"""The synthetic corpus: repeatable, split by voice, complete or absent, and really speech."""

import collections
import hashlib
import importlib.util
import io
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import wave

import numpy as np
import pytest

from kws_jax.data import baseline, espeak, rendering, synthetic
from kws_jax.data.index import index_folder
from kws_jax.data.labels import KEYWORDS_10, WORDS_35


def _needs(*packages):
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(absent), reason=f'{absent} not installed: pip install "kws_jax[synth]"'
    )


speaks = _needs('espeakng_loader')
_SMALL = {
    'clips': 40,
    'words': ('yes', 'no', 'left', 'seven'),
    'neural_voice': False,
    'vocoder': False,
    'noise_seconds': 2.0,
}
_PARAMETERS = {
    'clips': 6000,
    'words': list(WORDS_35),
    'seed': 0,
    'language': 'en',
    'keyword_share': 0.55,
    'keywords': list(KEYWORDS_10),
    'neural_voice': True,
    'vocoder': True,
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A small corpus by one process at a time."""
    return synthetic.make_corpus(tmp_path_factory.mktemp('small') / 'one', workers=1, **_SMALL)


def _bytes(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


def _clips(root):
    return [path for path in root.glob('[a-z]*/*.wav')]


@speaks
def test_bytes_depend_on_the_seed_and_not_on_the_workers(corpus, tmp_path):
    two = synthetic.make_corpus(tmp_path / 'two', workers=2, **_SMALL)
    assert _bytes(two) == _bytes(corpus)
    other = synthetic.make_corpus(tmp_path / 'other', workers=2, seed=1, **_SMALL)
    assert not set(_bytes(other).values()) & set(_bytes(corpus).values())


@speaks
def test_layout_lists_and_record_describe_the_same_corpus(corpus):
    recordings = index_folder(corpus)
    assert collections.Counter(found.split for found in recordings) == {
        'training': 32,
        'validation': 4,
        'testing': 4,
    }
    assert {found.word for found in recordings} == set(_SMALL['words'])
    record = json.loads((corpus / 'CORPUS.json').read_text())
    assert record['clips'] == {'training': 32, 'validation': 4, 'testing': 4}
    assert record['versions']['espeakng-loader'] and 'GPL' in record['licences']
    assert len(list((corpus / '_background_noise_').iterdir())) == 5
    listed = (corpus / 'validation_list.txt').read_text().split()
    assert listed == sorted(listed) and all((corpus / name).exists() for name in listed)


@speaks
def test_clips_are_16_khz_mono_16_bit_of_at_most_a_second_and_hold_a_whole_word(corpus):
    assert len(_clips(corpus)) == 40
    for path in _clips(corpus):
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        samples = synthetic.read_wav(path) / 32768
        assert 8000 <= len(samples) <= 16000
        assert 0.01 < np.abs(samples).max() < 0.95  # audible, not clipped
        power = np.square(samples[: len(samples) // 160 * 160]).reshape(-1, 160).mean(axis=1)
        loud = np.flatnonzero(power > power.max() / 6)  # 8 dB: the noise is below
        assert 0.03 < (loud[-1] - loud[0]) / 100 < 0.95, path


@speaks
def test_noises_are_as_long_as_asked_and_not_silent(corpus):
    for path in (corpus / '_background_noise_').iterdir():
        noise = synthetic.read_wav(path)
        assert noise.shape == (32000,) and np.abs(noise).max() == pytest.approx(16384, abs=2)
        seconds = noise.reshape(2, -1).astype(float)
        assert np.square(seconds).mean(axis=1).min() > 100**2


@_needs('espeakng_loader', 'hibari', 'pyworld')
def test_neural_voice_and_vocoder_speak_words_of_bounded_length(tmp_path):
    speakers = [
        rendering.Speaker(name, 'training', engine, variant, variant, 'en', True, (3,), clips)
        for name, engine, variant, clips in [
            ('0000000a', 'hibari', 'heart', (('stop', 0), ('visual', 0), ('eight', 0))),
            ('0000000b', 'espeak', 'm2', (('stop', 0),)),
        ]
    ]
    for word in ('stop', 'visual', 'eight'):
        (tmp_path / word).mkdir()
    rendering.render(speakers, tmp_path, workers=2)
    assert len(_clips(tmp_path)) == 4
    for path in _clips(tmp_path):
        spoken = rendering.trim(
            synthetic.read_wav(path) / 32768, rate=16000, floor_db=-15.0, margin=0.0
        )
        assert 0.1 < len(spoken) / 16000 < 0.9, path


def test_no_voice_is_in_two_splits_and_the_neural_one_only_trains():
    speakers = synthetic.plan_speakers(_PARAMETERS)
    splits = collections.defaultdict(set)
    for speaker in speakers:
        splits[speaker.timbre].add(speaker.split)
        assert speaker.engine == 'hibari' or speaker.variant in next(
            timbre for timbre in espeak.TIMBRES if timbre[0] == speaker.timbre
        )
    assert set(map(len, splits.values())) == {1}
    assert len(splits) == len(espeak.TIMBRES) + 1
    assert splits['hibari'] == {'training'}
    assert len({speaker.name for speaker in speakers}) == len(speakers)
    names = [(speaker.name, clip) for speaker in speakers for clip in speaker.clips]
    assert len(names) == len(set(names)) == 6000


def test_keywords_get_their_share_and_every_word_is_in_every_split():
    speakers = synthetic.plan_speakers(_PARAMETERS)
    for split, size in (('training', 4800), ('validation', 600), ('testing', 600)):
        counts = collections.Counter(
            word for speaker in speakers if speaker.split == split for word, _ in speaker.clips
        )
        assert set(counts) == set(WORDS_35) and sum(counts.values()) == size
        keywords = [counts[word] for word in KEYWORDS_10]
        assert sum(keywords) / size == pytest.approx(0.55, abs=0.02)
        assert max(keywords) - min(keywords) <= 1


def test_words_that_are_no_keywords_share_alike():
    parameters = {**_PARAMETERS, 'words': ['ja', 'nein'], 'keywords': [], 'clips': 100}
    counts = collections.Counter(
        word
        for speaker in synthetic.plan_speakers({**parameters, 'language': 'de'})
        for word, _ in speaker.clips
    )
    assert counts == {'ja': 50, 'nein': 50}


@speaks
def test_same_corpus_is_reused_and_another_is_refused(corpus, monkeypatch):
    before = (corpus / 'CORPUS.json').stat().st_mtime_ns
    monkeypatch.setattr(rendering, 'render', lambda *_, **__: pytest.fail('rendered again'))
    monkeypatch.setitem(sys.modules, 'espeakng_loader', None)  # not even needed
    assert synthetic.make_corpus(corpus, **_SMALL) == corpus
    assert (corpus / 'CORPUS.json').stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match='another clips, seed'):
        synthetic.make_corpus(corpus, **{**_SMALL, 'clips': 41, 'seed': 9})


@speaks
def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='CORPUS.json'):
        synthetic.make_corpus(tmp_path, **_SMALL)
    assert os.listdir(tmp_path) == ['thesis.tex']


@speaks
@pytest.mark.parametrize('stage', ['render', 'noise'])
def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch, stage):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if stage == 'render':
        monkeypatch.setattr(rendering, 'render', interrupt)
    else:
        monkeypatch.setattr(rendering, 'render', lambda *_, **__: None)
        monkeypatch.setattr(synthetic, '_write_noises', interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthetic.make_corpus(tmp_path / 'corpus', **_SMALL)
    assert os.listdir(tmp_path) == []


@speaks
def test_every_clip_is_counted_when_it_is_there(tmp_path):
    speakers = [
        rendering.Speaker(name, 'training', 'espeak', 'm2', 'm2', 'en', False, (3,), clips)
        for name, clips in [
            ('0000000a', (('yes', 0), ('yes', 1), ('yes', 2))),
            ('0000000b', (('yes', 0), ('yes', 1))),
        ]
    ]
    (tmp_path / 'yes').mkdir()
    there = []
    rendering.render(speakers, tmp_path, workers=2, on_clip=lambda: there.append(_clips(tmp_path)))
    assert len(there) == 5
    assert all(len(clips) >= number for number, clips in enumerate(there, 1))
    assert len(there[0]) < 5  # while others are still spoken


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _pretend_to_render(speakers, root, *, workers, on_clip):
    del workers
    for speaker in speakers:
        for word, number in speaker.clips:
            path = root / word / f'{speaker.name}_nohash_{number}.wav'
            rendering.write_wav(path, np.full(16000, 1000))
            on_clip()


@speaks
def test_progress_is_a_bar_on_a_terminal_and_lines_of_the_log_elsewhere(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(rendering, 'render', _pretend_to_render)
    monkeypatch.setattr(synthetic, '_SECONDS_BETWEEN_LINES', 0.0)
    monkeypatch.setattr(sys, 'stderr', _Terminal())
    synthetic.make_corpus(tmp_path / 'one', **_SMALL)
    assert '0/40' in sys.stderr.getvalue() and '40/40' in sys.stderr.getvalue()
    assert 'spoke' not in caplog.text
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    synthetic.make_corpus(tmp_path / 'two', **_SMALL)
    said = [message for message in caplog.messages if message.startswith('spoke')]
    assert said == [f'spoke {n} of 40 clips' for n in range(1, 41)]
    caplog.clear()
    synthetic.make_corpus(tmp_path / 'three', progress=False, **_SMALL)
    assert 'spoke' not in caplog.text and sys.stderr.getvalue() == ''


@speaks
def test_without_pyworld_the_corpus_is_made_and_says_what_it_lacks(
    corpus, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, 'pyworld', None)
    options = {**_SMALL, 'vocoder': None}
    out = synthetic.make_corpus(tmp_path / 'corpus', **options)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert 'without formant shifts' in line and '\n' not in line
    assert f'pip install pyworld-prebuilt, delete {out}, and run again' in line
    record = json.loads((out / 'CORPUS.json').read_text())
    assert record['parameters']['vocoder'] is False
    assert 'pyworld-prebuilt' not in record['versions']
    assert _bytes(out) == _bytes(corpus)  # as if asked for with vocoder=False
    caplog.clear()
    monkeypatch.setitem(sys.modules, 'pyworld', type(sys)('pyworld'))
    assert synthetic.make_corpus(out, **options) == out  # kept, and said, once pyworld is there
    assert 'is there already, made without formant shifts' in caplog.text
    with pytest.raises(FileExistsError, match='another vocoder'):
        synthetic.make_corpus(out, **{**_SMALL, 'vocoder': True})


@speaks
def test_with_pyworld_the_vocoder_is_used_unasked_and_its_corpus_kept_without(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(rendering, 'render', _pretend_to_render)
    monkeypatch.setattr(synthetic.importlib.metadata, 'version', lambda name: '1')
    monkeypatch.setitem(sys.modules, 'pyworld', type(sys)('pyworld'))
    options = {**_SMALL, 'vocoder': None}
    out = synthetic.make_corpus(tmp_path / 'corpus', **options)
    assert json.loads((out / 'CORPUS.json').read_text())['parameters']['vocoder'] is True
    monkeypatch.setitem(sys.modules, 'pyworld', None)
    assert synthetic.make_corpus(out, **options) == out
    assert 'formant' not in caplog.text


_PROGRAM = pathlib.Path(synthetic.__file__).parents[2] / 'launch' / 'make_corpus.py'


def _launch(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(_PROGRAM), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@speaks
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--clips=10', '--words=yes,yes'), 'words must be given, each once'),
        (('--clips=10', '--words=yes', '--language=klingonish'), "speaks .*, got 'klingonish'"),
        (('--clips=10', '--words=yes', '--out=FILE/corpus'), 'FILE'),
        (('--clips=10', '--words=yes', '--vocoder'), 'pyworld does not import'),
        (
            ('--clips=10', f'--words={"donaudampfschifffahrtskapitaen" * 3}'),
            'words must be speakable within 0.9 s',
        ),
    ],
)
def test_the_program_ends_with_one_line_where_the_user_is_wrong(tmp_path, arguments, message):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'pyworld.py').write_text('raise ImportError("no compiler")')
    arguments = [a.replace('FILE', str(tmp_path / 'file')) for a in arguments]
    done = _launch(
        f'--out={tmp_path / "corpus"}', '--noneural_voice', *arguments, PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if 'formant shifts' not in line]
    assert len(lines) == 1 and lines[0].startswith('make_corpus: '), done.stderr
    assert re.search(message.replace('FILE', str(tmp_path / 'file')), lines[0])
    assert not (tmp_path / 'corpus').exists()


@speaks
def test_the_program_goes_on_without_pyworld_and_says_so_in_one_line(tmp_path):
    (tmp_path / 'pyworld.py').write_text('raise ImportError("no compiler")')
    done = _launch(
        f'--out={tmp_path / "corpus"}',
        '--noneural_voice',
        '--clips=10',
        '--words=yes',
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if 'formant' in line]
    assert len(said) == 1 and '(no compiler)' in said[0] and 'pyworld-prebuilt' in said[0]
    assert len(_clips(tmp_path / 'corpus')) == 10


@speaks
def test_failing_voice_is_an_error_with_its_reason_and_leaves_nothing(tmp_path):
    endless = 'donaudampfschifffahrtsgesellschaftskapitaensmuetzenabzeichenverordnung'
    with pytest.raises(RuntimeError, match=f'speakable within 0.9 s, got .{endless}') as caught:
        synthetic.make_corpus(tmp_path / 'corpus', **{**_SMALL, 'words': (endless,)}, language='de')
    assert str(caught.value).startswith('words must be') and '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('module', 'package'),
    [('espeakng_loader', 'espeakng-loader'), ('hibari', 'hibari-tts'), ('pyworld', 'pyworld')],
)
def test_missing_package_is_an_error_and_no_voice_vanishes(monkeypatch, tmp_path, module, package):
    for present in {'espeakng_loader', 'hibari', 'pyworld'} - {module}:
        monkeypatch.setitem(sys.modules, present, type(sys)(present))
    sys.modules.get('hibari', type(sys)('hibari')).Hibari = None
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{package}(.|\n)*kws_jax\[synth\]'):
        synthetic.make_corpus(tmp_path / 'corpus', clips=40, vocoder=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'clips': 9}, 'clips must be at least 10'),
        ({'words': ()}, 'words must be given'),
        ({'words': ('yes', 'yes')}, 'words must be given, each once'),
        ({'words': ('../yes',)}, 'words must be able to name a folder'),
        ({'words': ('_silence_',)}, 'words must be able to name a folder'),
        ({'language': 'de'}, "words must be given for language 'de'"),
        ({'keyword_share': 1.5}, r'keyword_share must be in 0..1, got 1.5'),
        ({'noise_seconds': 0.5}, 'noise_seconds must be at least 1'),
        ({'workers': 0}, 'workers must be at least 1'),
    ],
)
def test_argument_out_of_range_is_an_error_that_names_it(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthetic.make_corpus(tmp_path / 'corpus', **options)


def test_noise_falls_with_frequency_as_its_exponent_says():
    rng = np.random.default_rng(0)
    for exponent in (0, 1, 2):
        noise = rendering.coloured_noise(rng, 160000, exponent)
        power = np.square(np.abs(np.fft.rfft(noise)))
        # The octaves 250..500 and 1000..2000 Hz: two octaves apart, 3 dB an octave per unit.
        low, high = (power[10 * edge : 20 * edge].mean() for edge in (250, 1000))
        assert 10 * np.log10(low / high) == pytest.approx(6.02 * exponent, abs=0.3)
        assert np.square(noise).mean() == pytest.approx(1.0)


def test_linear_baseline_solves_tones_and_not_noise(tmp_path):
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    lists = {'validation': [], 'testing': []}
    for number, word in enumerate(('low', 'high')):
        (tmp_path / word).mkdir()
        for clip in range(10):
            split = {0: 'validation', 1: 'testing'}.get(clip)
            tone = np.sin(2 * np.pi * (500 + 1500 * number) * time + rng.random())
            rendering.write_wav(
                tmp_path / word / f'{clip:08x}_nohash_0.wav',
                1000 * (tone + 0.1 * rng.standard_normal(16000)),
            )
            if split:
                lists[split].append(f'{word}/{clip:08x}_nohash_0.wav')
    for split, names in lists.items():
        (tmp_path / f'{split}_list.txt').write_text('\n'.join(names))
    found = baseline.linear_baseline(tmp_path, keywords=('low', 'high'))
    assert found['accuracy'] == 1.0 and found['training'] == 16 and found['testing'] == 2
    with pytest.raises(ValueError, match='must have recordings in the training split'):
        baseline.linear_baseline(tmp_path, keywords=('middle',))
