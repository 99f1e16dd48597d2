"""Runs every variant of a config, with several seeds, one after the other; one JSON of results.

    python launch/study.py --config=configs/front_ends.py --seeds=0,1,2 --data_dir=DIR \\
      --workdir=runs/front_ends --json=configs/results/front_ends.json

The config file lists its variants as VARIANTS. Each run is one of launch/pipeline.py, in the folder
VARIANT-SEED of the workdir. The same command continues an interrupted study, and takes up variants
and seeds that were added; the JSON grows by each finished run, and what it holds is not run again,
even on another machine.
"""

import logging
import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags  # noqa: E402

from kws_jax import config as config_lib  # noqa: E402

flags.DEFINE_string('data_dir', None, 'Folder of recordings; for tfds its data directory.')
flags.DEFINE_string('test_dir', None, 'Folder in the layout of the official test archive.')
flags.DEFINE_enum('dataset', 'folder', ['folder', 'tfds'], 'Where recordings come from.')
flags.DEFINE_string('workdir', None, 'Where every run has its folder.', required=True)
flags.DEFINE_string('json', None, 'Where the results go; default results.json in the workdir.')
flags.DEFINE_string('cache_dir', None, 'Decoded audio and compiled code; default ~/.cache/kws_jax.')
flags.DEFINE_list('variants', None, 'Those to run; default all that the config lists.')
flags.DEFINE_list('seeds', ['0'], 'Seeds, each for every variant.')


def main(config):
    """Runs what is not finished and prints the table of all."""
    args = flags.FLAGS
    logging.getLogger('jax').setLevel(logging.WARNING)
    from kws_jax import study
    from kws_jax.data.sources import open_dataset
    from kws_jax.training.devices import use_compilation_cache

    cache = config_lib.cache_folder(args.cache_dir)
    use_compilation_cache(cache / 'compiled')
    opened = {}

    def data(settings):
        key = repr(sorted(settings.items()))
        if key not in opened:
            opened[key] = open_dataset(
                dataset=args.dataset,
                data_dir=args.data_dir,
                test_dir=args.test_dir,
                cache_dir=cache / 'audio',
                **settings,
            )
        return opened[key]

    runs = study.plan(
        args.config,
        variants=args.variants,
        seeds=[int(seed) for seed in args.seeds],
        overrides=config_lib.overrides(sys.argv),
    )
    workdir = pathlib.Path(args.workdir)
    results = study.run(
        runs,
        data=data,
        workdir=workdir,
        path=pathlib.Path(args.json) if args.json else workdir / 'results.json',
        command=shlex.join(['python', 'launch/study.py', *sys.argv[1:]]),
    )
    print(study.table(results))


if __name__ == '__main__':
    config_lib.run(main)
