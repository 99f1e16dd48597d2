"""How a model does on hours of noise and speech: false accepts, false rejects, latency.

    python launch/evaluate_stream.py --model=NAME_OR_PATH --data_dir=DIR --hours=1 \\
      --false_accepts=0.5 --json=FILE --picture=FILE.png

Two streams are built from recordings at known times, the same for the same seed: keywords and other
words in running noise. On the stream of validation clips every keyword gets the lowest threshold
that keeps its false accepts at the rate asked for; on the stream of test clips these thresholds are
judged. The JSON is what launch/export.py --operating_points takes. Quantized models listen in
integers. DIR is as for launch/pipeline.py.
"""

import json
import logging as std_logging
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_MODEL = flags.DEFINE_string(
    'model', None, 'Name of a released model, or a folder that holds one.', required=True
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of recordings.', required=True)
_TEST_DIR = flags.DEFINE_string('test_dir', None, 'Folder in the layout of the test archive.')
_HOURS = flags.DEFINE_float('hours', 1.0, 'Length of each of the two streams.', lower_bound=0.01)
_RATE = flags.DEFINE_float('false_accepts', 0.5, 'Wanted per hour and keyword.', lower_bound=0.0)
_SMOOTHING = flags.DEFINE_integer('smoothing', 4, 'Windows (80 ms) averaged.', lower_bound=1)
_REFRACTORY = flags.DEFINE_integer('refractory', 12, 'Windows until the next.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the streams.')
_JSON = flags.DEFINE_string('json', None, 'File to write the result to.')
_PICTURE = flags.DEFINE_string('picture', None, 'PNG file for the DET curves of the test stream.')
_CACHE_DIR = flags.DEFINE_string(
    'cache_dir', None, 'Decoded audio and compiled code; default ~/.cache/kws_jax.'
)
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)


def main(argv):
    """Prints a table of keywords; writes what the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, zoo
    from kws_jax.training.devices import use_compilation_cache

    cache = config.cache_folder(_CACHE_DIR.value)
    use_compilation_cache(cache / 'compiled')
    try:
        for path in _IMPORT.value:
            config.import_file(path)
        result = _evaluate(zoo.load(_MODEL.value), cache)
    except (OSError, ValueError) as error:
        raise SystemExit(f'evaluate_stream: {error}') from None
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')


def _evaluate(model, cache):
    from kws_jax import detection, listening
    from kws_jax.data import streams
    from kws_jax.data.sources import open_dataset
    from kws_jax.report import detections, style

    began = time.monotonic()
    keywords = [label for label in model.labels if label not in detection.NOT_KEYWORDS]
    data = open_dataset(
        data_dir=_DATA_DIR.value,
        test_dir=_TEST_DIR.value,
        cache_dir=cache / 'audio',
        labels=','.join(keywords),
    )
    recordings = {
        split: streams.build(
            *data.evaluation(split),
            data.labels.names,
            seconds=3600 * _HOURS.value,
            seed=_SEED.value,
        )
        for split in ('validation', 'testing')
    }
    scored = {split: listening.scores(model, own.audio) for split, own in recordings.items()}
    rule = {'smoothing': _SMOOTHING.value, 'refractory': _REFRACTORY.value}
    points = {
        label: detection.operating_point(curve, _RATE.value)
        for label, curve in listening.curves(
            scored['validation'], recordings['validation'], **rule
        ).items()
    }
    thresholds = {label: point['threshold'] for label, point in points.items()}
    found = listening.at_thresholds(scored['testing'], recordings['testing'], thresholds, **rule)
    if _PICTURE.value:
        curves = listening.curves(scored['testing'], recordings['testing'], **rule)
        with style.house_style():
            detections.det(curves, found['keywords']).figure.savefig(_PICTURE.value)
    print(f'{"keyword":<12}  threshold  false accepts/h  not heard  latency')
    for label, row in found['keywords'].items():
        late = '-' if row['latency_seconds'] is None else f'{1000 * row["latency_seconds"]:.0f} ms'
        print(
            f'{label:<12}  {row["threshold"]:9.4f}  {row["false_accepts_per_hour"]:15.2f}  '
            f'{100 * row["false_reject_rate"]:7.1f} %  {late:>7}'
        )
    under = ', '.join(
        f'{kind.replace("_", " ")} {rate:.1f}' for kind, rate in found['under'].items()
    )
    print(
        f'All: {found["false_accepts_per_hour"]:.1f} false accepts an hour ({under}), '
        f'{100 * found["false_reject_rate"]:.1f} % of words not heard, in {found["hours"]:.2f} h '
        f'(thresholds: {_RATE.value:g} an hour and keyword on the validation stream)'
    )
    return {
        'model': _MODEL.value,
        'seed': _SEED.value,
        'wanted_false_accepts_per_hour': _RATE.value,
        **rule,
        'validation': points,
        'test': found,
        'data': data.describe(),
        'wall_seconds': time.monotonic() - began,
    }


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
