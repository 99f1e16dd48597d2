"""A causal network against one that hears windows: the same architecture, trained alike.

    python launch/study.py --config=configs/causal.py --data_dir=DIR --workdir=runs/causal \\
      --seeds=0,1,2 --json=configs/results/causal.json

Six minutes a run on 2 cores with about 17,000 training clips: 12 epochs of the float network of
sinc60. Variants:
  window   convolutions that are padded on both sides
  causal   none of them sees a later frame: a stream computes each row of every map once
  mini     a causal one, shows that everything runs, learns nothing of worth
"""

import ml_collections

from configs import sinc60

VARIANTS = ('window', 'causal')


def get_config(variant: str = 'causal') -> ml_collections.ConfigDict:
    """The configuration of one of the two."""
    if variant not in (*VARIANTS, 'mini'):
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, mini, got {variant!r}')
    config = sinc60.get_config('mini' if variant == 'mini' else '')
    config.space.causal = variant != 'window'
    config.train.from_supernet = False
    config.fixed_bits.pairs = ()
    if variant == 'mini':
        config.search.method = 'random'
        return config
    config.search.update({'method': 'given', 'choices': sinc60.CHOICES})
    config.train.epochs = 12
    config.train.recipe.ema = 0.99
    config.trained_bits.enabled = False
    return config
