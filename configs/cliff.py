"""Weights of 8 bits, activations of 2, and what cures the fall in accuracy there.

    python launch/study.py --config=configs/cliff.py --data_dir=DIR --workdir=runs/cliff \\
      --json=configs/results/cliff.json

Four minutes a run on 2 cores with about 17,000 training clips, and twenty for the wider network,
which is trained in float first, for ten epochs. Variants:
  frozen     steps as calibrated on the float model, no teacher
  ranges     steps are learned
  distilled  steps as calibrated, taught by the float model
  both       steps are learned, taught by the float model
  longer     both, for three times the epochs
  signed     both, with 8 bits for the image and for block outputs, which take both signs
  wider      both, with 1.5 times the channels
"""

import ml_collections

from configs import sinc60

VARIANTS = ('frozen', 'ranges', 'distilled', 'both', 'longer', 'signed', 'wider')


def get_config(variant: str = 'both') -> ml_collections.ConfigDict:
    """The configuration of one cure."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    config = sinc60.get_config()
    config.trained_bits.enabled = False
    config.float_model = 'sinc60-float'
    config.fixed_bits.update({'pairs': ((8, 2),), 'epochs': 12 if variant == 'longer' else 4})
    if variant in ('frozen', 'distilled'):
        config.fixed_bits.quant_lr = 0.0
    if variant in ('frozen', 'ranges'):
        config.fixed_bits.recipe.distill = 0.0
    if variant == 'signed':
        config.fixed_bits.signed_bits = 8
    if variant == 'wider':
        config.float_model = ''
        config.space = {'name': 'table1', 'width': 1.5}
        config.target = {'macs': 60e6, 'tolerance': 0.99, 'parameters': 400e3}
        config.search.update({'method': 'given', 'choices': sinc60.CHOICES})
        config.train.update({'epochs': 10, 'from_supernet': False})
    return config
