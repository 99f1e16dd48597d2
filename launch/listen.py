"""Listens: shows what is heard, as it is heard, with a level meter and the scores.

    python launch/listen.py --model=NAME_OR_PATH                      the microphone
    python launch/listen.py --model=NAME_OR_PATH --wav=FILE           a recording (WAV or FLAC)
    arecord -f S16_LE -r 16000 -t raw | python launch/listen.py --model=NAME_OR_PATH --pcm

Quantized models listen in integers, as on a device. The microphone needs the package sounddevice
(pip install .[listen]) and PortAudio (Debian: libportaudio2). Thresholds come from
launch/evaluate_stream.py's JSON, or are one for all keywords. Ctrl-C ends it.
"""

import json
import logging as std_logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_MODEL = flags.DEFINE_string(
    'model', None, 'Name of a released model, or a folder that holds one.', required=True
)
_WAV = flags.DEFINE_string('wav', None, 'Recording to listen to, instead of the microphone.')
_PCM = flags.DEFINE_bool('pcm', False, 'Raw 16-bit samples at 16 kHz on standard input instead.')
_DEVICE = flags.DEFINE_string('device', None, 'Microphone, by number or a part of its name.')
_THRESHOLD = flags.DEFINE_float('threshold', 0.8, 'Of the smoothed score, for every keyword.')
_POINTS = flags.DEFINE_string(
    'operating_points', None, 'JSON of launch/evaluate_stream.py: a threshold for each keyword.'
)
_SMOOTHING = flags.DEFINE_integer('smoothing', 4, 'Windows (80 ms) averaged.', lower_bound=1)
_REFRACTORY = flags.DEFINE_integer('refractory', 12, 'Windows until the next.', lower_bound=1)
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)


def main(argv):
    """Listens until the sound ends."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, detection, listening, zoo

    try:
        for path in _IMPORT.value:
            config.import_file(path)
        model = zoo.load(_MODEL.value)
        keywords = [label for label in model.labels if label not in detection.NOT_KEYWORDS]
        thresholds = dict.fromkeys(keywords, _THRESHOLD.value)
        smoothing, refractory = _SMOOTHING.value, _REFRACTORY.value
        if _POINTS.value:
            found = json.loads(pathlib.Path(_POINTS.value).read_text())
            thresholds = {k: point['threshold'] for k, point in found['validation'].items()}
            smoothing, refractory = found['smoothing'], found['refractory']
        rule = detection.Rule(tuple(model.labels), thresholds, smoothing, refractory)
        _listen(listening.stepper(model), rule, _source())
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f'listen: {error}') from None
    except KeyboardInterrupt:
        print()


def _source():
    """int16 pieces of sound, of any length."""
    from kws_jax import sound

    if _WAV.value:
        return sound.from_file(_WAV.value)
    if _PCM.value:
        return sound.from_pcm(sys.stdin.buffer)
    return sound.from_microphone(_DEVICE.value)


def _listen(step, rule, pieces):
    from kws_jax import detection

    state, heard, samples = detection.start(rule), False, 0
    live = sys.stderr.isatty()
    for piece in pieces:
        samples += len(piece)
        for scores in step(piece):
            state, found = detection.listen(rule, state, scores)
            for one in found:
                if live:
                    sys.stderr.write('\r\x1b[K')
                print(f'{samples / 16000:8.2f} s  {one.label:<12} {one.score:.2f}', flush=True)
                heard = True
            if live:
                sys.stderr.write('\r\x1b[K' + _line(piece, rule.labels, state.recent.mean(axis=0)))
                sys.stderr.flush()
    if live:
        sys.stderr.write('\r\x1b[K')
    if not heard:
        print(f'{samples / 16000:8.2f} s  nothing was heard')


def _line(piece, labels, scores) -> str:
    """A meter of the level (-60 dB to full scale) and the three highest scores."""
    import numpy as np

    level = np.sqrt(np.mean(np.square(piece.astype(np.float64)))) / 32768 if len(piece) else 0.0
    decibels = 20 * np.log10(max(level, 1e-6))
    filled = int(np.clip((decibels + 60) / 60 * 20, 0, 20))
    best = sorted(zip(scores, labels, strict=True), reverse=True)[:3]
    shown = '  '.join(f'{label:<8}{"#" * round(10 * score):<10}' for score, label in best)
    return f'[{"=" * filled:<20}] {decibels:4.0f} dB  {shown}'


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
