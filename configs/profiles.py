"""Learned bit-widths against others of the same mean, from the released float model.

    python launch/study.py --config=configs/profiles.py --data_dir=DIR --workdir=runs/profiles \\
      --seeds=0,1,2 --json=configs/results/profiles.json

Six minutes a run on 2 cores with about 17,000 training clips. Variants are a profile and the mean,
in tenths of a bit, of weights and of activations: `learned` (2 epochs of learning, from the widths
of `sensitivity`, and 2 at the whole widths), `learned_even` (from 5 bits everywhere),
`sensitivity`, `random` and `uniform` (4 epochs at theirs); learned25, random40, ...
"""

import ml_collections

from configs import sinc60

PROFILES = ('learned', 'learned_even', 'sensitivity', 'uniform', 'random')
MEANS = (20, 25, 30, 40)
VARIANTS = tuple(f'{profile}{mean}' for mean in MEANS for profile in PROFILES)


def get_config(variant: str = 'learned30') -> ml_collections.ConfigDict:
    """The configuration of one profile and mean."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    config = sinc60.get_config()
    config.fixed_bits.pairs = ()
    profile, mean = variant[:-2], int(variant[-2:]) / 10
    config.float_model = 'sinc60-float'
    config.trained_bits.update(
        {
            'profile': profile.removesuffix('_even'),
            'start_bits': 0 if profile == 'learned' else 5,
            'mean_weight_bits': mean,
            'mean_activation_bits': mean,
            'learn_epochs': 2,
            'epochs': 2,
        }
    )
    return config
