"""Tests a model on a folder of recordings: accuracy with its interval, confusions, costs.

    python launch/evaluate.py --model=NAME_OR_PATH --test_dir=DIR --json=FILE

The model is a released one by name, or the folder of any run's output. DIR has a folder of
recordings per class, as the official test archive of Speech Commands has, among them _silence_ and
_unknown_; no training data is needed.
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
_TEST_DIR = flags.DEFINE_string(
    'test_dir', None, 'Folder in the layout of the official test archive.', required=True
)
_JSON = flags.DEFINE_string('json', None, 'File to write the result to.')
_CACHE_DIR = flags.DEFINE_string(
    'cache_dir', None, 'Decoded audio and compiled code; default ~/.cache/kws_jax.'
)
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)
_SILENCE = flags.DEFINE_enum(
    'silence', 'noise', ['noise', 'zeros'], 'Silence as it was recorded, or all zeros.'
)
_INTEGERS = flags.DEFINE_bool(
    'integers', False, 'Run a quantized model in integers, as a device does.'
)


def main(argv):
    """Prints the evaluation; writes it where --json says."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, evaluate, zoo
    from kws_jax.training.devices import use_compilation_cache

    cache = config.cache_folder(_CACHE_DIR.value)
    use_compilation_cache(cache / 'compiled')
    try:
        for path in _IMPORT.value:
            config.import_file(path)
        result = evaluate.evaluate_folder(
            zoo.load(_MODEL.value),
            _TEST_DIR.value,
            cache_dir=cache / 'audio',
            silence=_SILENCE.value,
            integers=_INTEGERS.value,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f'evaluate: {error}') from None
    result = {'model': _MODEL.value, 'test_dir': _TEST_DIR.value} | result
    print(evaluate.format_evaluation(result))
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
