"""From a folder of recordings to a searched, trained, quantized and reported keyword spotter.

    python launch/pipeline.py --config=configs/sinc60.py --data_dir=DIR --workdir=runs/sinc60

The same command continues an interrupted run. DIR is a folder in the Speech Commands layout, or one
that holds such a folder as train/ and a test folder as test/.
"""

import logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags  # noqa: E402

from kws_jax import config as config_lib  # noqa: E402

flags.DEFINE_string('data_dir', None, 'Folder of recordings; for tfds its data directory.')
flags.DEFINE_string('test_dir', None, 'Folder in the layout of the official test archive.')
flags.DEFINE_enum('dataset', 'folder', ['folder', 'tfds'], 'Where recordings come from.')
flags.DEFINE_string('workdir', 'runs/pipeline', 'Where everything goes.')
flags.DEFINE_string('cache_dir', None, 'Decoded audio and compiled code; default ~/.cache/kws_jax.')


def main(config):
    """Runs the pipeline and prints its table."""
    args = flags.FLAGS
    # jax says at length which accelerators it did not find
    logging.getLogger('jax').setLevel(logging.WARNING)
    from kws_jax import pipeline, report
    from kws_jax.data.sources import open_dataset
    from kws_jax.training.devices import use_compilation_cache

    cache = config_lib.cache_folder(args.cache_dir)
    use_compilation_cache(cache / 'compiled')
    data = open_dataset(
        dataset=args.dataset,
        data_dir=args.data_dir,
        test_dir=args.test_dir,
        cache_dir=cache / 'audio',
        **config.data.to_dict(),
    )
    results = pipeline.run(config.to_dict(), data, args.workdir)
    print(report.table(results))
    print(f'report: {report.write(args.workdir)}')


if __name__ == '__main__':
    config_lib.run(main, default='configs/sinc60.py')
