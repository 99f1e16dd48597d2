"""A small one: at most 20k parameters and 5M MACs, taught by the released float model.

    python launch/pipeline.py --config=configs/sinc_small.py --data_dir=DIR \\
      --workdir=runs/sinc_small

Parameters bind before MACs do: 32 filters keep the rate of frames and leave room for both.
"""

import ml_collections

from configs import sinc60


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration, which has no variants."""
    if variant:
        raise ValueError(f'there are no variants, got {variant!r}')
    config = sinc60.get_config()
    config.front_end.filters = 32
    config.target.update({'macs': 5e6, 'tolerance': 0.1, 'parameters': 20e3})
    config.teacher.update({'enabled': True, 'model': 'sinc60-float'})
    config.train.update({'epochs': 75, 'from_supernet': False})
    config.train.recipe.update({'distill': 0.5})
    config.trained_bits.update({'learn_epochs': 5, 'epochs': 10})
    config.fixed_bits.pairs = ()
    return config
