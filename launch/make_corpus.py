"""Makes a spoken keyword corpus without a microphone, and measures how hard it is.

  python launch/make_corpus.py --out=corpus            # 6,000 clips of 35 words, about a minute
  python launch/make_corpus.py --out=corpus --measure  # then a linear classifier: about 0.45
  python launch/make_corpus.py --out=runs/other_words --words_file=configs/other_words.txt
  python launch/make_corpus.py --out=korpus --language=de --words=ja,nein,licht,an,aus --clips=2000

Needs the extra packages of `pip install "kws_jax[synth]"`; without pyworld it does without formant
shifts and says so.
"""

import logging as std_logging
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_OUT = flags.DEFINE_string(
    'out', None, 'Folder to make; the same corpus already there is reused.', required=True
)
_CLIPS = flags.DEFINE_integer('clips', 6000, 'Recordings in all, at least 10.', lower_bound=10)
_SEED = flags.DEFINE_integer('seed', 0, 'The same seed gives the same bytes.', lower_bound=0)
_WORDS = flags.DEFINE_list(
    'words', None, 'What is said, comma-separated; the 35 words of Speech Commands if absent.'
)
_WORDS_FILE = flags.DEFINE_string('words_file', None, 'File of what is said, instead of --words.')
_LANGUAGE = flags.DEFINE_string(
    'language', 'en', 'Language or accent of espeak-ng: en (eight accents), de, en-us, ...'
)
_KEYWORD_SHARE = flags.DEFINE_float(
    'keyword_share', 0.55, 'Share of the clips for the ten keywords (yes, no, ..., go).', 0.0, 1.0
)
_NEURAL_VOICE = flags.DEFINE_bool(
    'neural_voice', None, 'Use hibari-tts for 4 % of training (default: English only).'
)
_VOCODER = flags.DEFINE_bool(
    'vocoder', None, 'Vary some of the voices with WORLD (default: where pyworld imports).'
)
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes at a time; one per CPU if absent.', lower_bound=1
)
_MEASURE = flags.DEFINE_bool(
    'measure', False, 'Train and test a linear classifier on the ten keywords.'
)


def main(argv):
    """Ends with one line where something is wrong that a user can put right."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}')
    try:
        _make()
    except (ImportError, OSError, RuntimeError, ValueError) as e:
        raise SystemExit(f'make_corpus: {e}') from None


def _make():
    """Makes the corpus that the flags describe, and prints where it is."""
    from kws_jax.data import baseline, synthetic

    std_logging.getLogger('kws_jax').setLevel(std_logging.INFO)
    start = time.perf_counter()
    words = _WORDS.value
    if _WORDS_FILE.value:
        try:
            words = pathlib.Path(_WORDS_FILE.value).read_text().split()
        except OSError as error:
            raise SystemExit(f'make_corpus: --words_file cannot be read: {error}') from None
    options = {'words': tuple(words)} if words else {}
    out = synthetic.make_corpus(
        _OUT.value,
        clips=_CLIPS.value,
        seed=_SEED.value,
        language=_LANGUAGE.value,
        workers=_WORKERS.value,
        keyword_share=_KEYWORD_SHARE.value,
        neural_voice=_NEURAL_VOICE.value,
        vocoder=_VOCODER.value,
        **options,
    )
    print(f'{out}: ready after {time.perf_counter() - start:.1f} s')
    if _MEASURE.value:
        start = time.perf_counter()
        found = baseline.linear_baseline(out)
        print(
            f'linear classifier, ten keywords: testing accuracy {found["accuracy"]:.3f} '
            f'({found["testing"]} clips), validation {found["validation_accuracy"]:.3f} '
            f'({found["validation"]} clips), after {time.perf_counter() - start:.1f} s'
        )


if __name__ == '__main__':
    logging.use_absl_handler()
    app.run(main)
