"""The miniature of sinc60 made smaller: three words, one searched layer, few steps."""

import importlib.util
import pathlib

import ml_collections
import small

ROOT = pathlib.Path(__file__).resolve().parents[2]


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration; `other-lr` and `other-batch` differ in one value."""
    spec = importlib.util.spec_from_file_location('sinc60', ROOT / 'configs' / 'sinc60.py')
    sinc60 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sinc60)
    config = sinc60.get_config('mini')
    config.batch = config.search.batch = 8
    config.data.labels = 'low,middle,high'
    config.front_end = small.FRONT_END
    config.space = small.SPACE | {'stages': (small.SPACE['stages'][0] | {'layers': 1},)}
    config.target = {'macs': 86_000.0, 'tolerance': 0.1, 'parameters': 500.0}
    for part in (config.search, config.train, config.fixed_bits, config.trained_bits):
        part.recipe.augment = small.AUGMENT
        part.epochs = 2
    config.search.arch_every = 2
    config.fixed_bits.pairs = ((2, 3),)
    if variant == 'other-lr':
        config.train.lr = 0.1
    if variant == 'other-batch':
        config.search.batch = 9
    return config
