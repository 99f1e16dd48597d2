"""Times what a search and a training do all day, against PyTorch in the same run.

    python launch/benchmark.py                         # about six minutes on 2 cores
    python launch/benchmark.py --json=speed.json --rows=train_step,eval_step
    python launch/benchmark.py --suite=growth --figure=growth.png
    python launch/benchmark.py --suite=inference --data_dir=DIR --json=inference.json

The suite inference runs a released model on one core, window by window and as a stream: our C, and
what is installed of tflite_micro, ai-edge-litert, onnxruntime; accuracies need recordings.

PyTorch is optional (`pip install .[bench]`); rows without it say so. Nothing else should run: a
busy machine moves both sides of a ratio, but not alike.
"""

import json
import logging
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags  # noqa: E402

from kws_jax import config as config_lib  # noqa: E402

_SUITE = flags.DEFINE_enum(
    'suite',
    'training',
    ['training', 'growth', 'inference'],
    'What to measure: steps, how they grow, or runtimes of a trained model.',
)
_ROWS = flags.DEFINE_list('rows', [], 'Rows to measure, separated by commas; all if empty.')
_JSON = flags.DEFINE_string('json', None, 'File to keep the rows in, written after each.')
_FIGURE = flags.DEFINE_string('figure', None, 'Picture to draw of the suite growth.')
_MODEL = flags.DEFINE_string(
    'model', 'sinc60-trained-bits', 'Of the suite inference: a released model, or a folder.'
)
_FLOAT = flags.DEFINE_string('float_model', 'sinc60-float', 'The same for the float runtimes.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Recordings for the suite inference.')
_CACHE_DIR = flags.DEFINE_string('cache_dir', None, 'Decoded audio; default ~/.cache/kws_jax.')


def main(argv):
    """Measures and prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    if _FIGURE.value and _SUITE.value != 'growth':
        raise app.UsageError('--figure needs --suite=growth')
    logging.getLogger('jax').setLevel(logging.WARNING)
    from kws_jax import zoo
    from kws_jax.benchmark import growth, inference, suites

    def keep(report):
        if _JSON.value:
            temporary = f'{_JSON.value}.tmp'
            pathlib.Path(temporary).write_text(json.dumps(report, indent=1) + '\n')
            os.replace(temporary, _JSON.value)

    try:
        if _SUITE.value == 'inference':
            report = inference.report(
                zoo.load(_MODEL.value),
                zoo.load(_FLOAT.value),
                data_dir=_DATA_DIR.value,
                cache_dir=config_lib.cache_folder(_CACHE_DIR.value) / 'audio',
            )
            keep(report)
        else:
            report = suites.run(_SUITE.value, _ROWS.value, keep=keep)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f'benchmark: {error}') from None
    if _SUITE.value == 'growth':
        print(growth.markdown(report))
        if _FIGURE.value:
            growth.draw(report).savefig(_FIGURE.value)
    else:
        print((inference if _SUITE.value == 'inference' else suites).table(report))
    print(f'{report["wall_seconds"]:.0f} s')


if __name__ == '__main__':
    if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & {*os.environ}:
        # PyTorch's threads spin after their work, for so long that they would slow down whatever
        # comes next; with this limit PyTorch is as fast and the next turn is undisturbed.
        os.environ['GOMP_SPINCOUNT'] = '30000'
    config_lib.use_huge_pages()
    app.run(main)
