"""Searched architectures against random ones of the same MACs, on a shorter schedule.

    python launch/study.py --config=configs/architectures.py --data_dir=DIR \\
      --workdir=runs/architectures --seeds=0,1,2 --json=configs/results/architectures.json

On 2 cores with about 17,000 training clips a search takes 15 minutes, a training 4. Every network
is trained anew, for 8 epochs. Variants:
  proxyless   the searcher of sinc60
  uniform     single-path search with uniformly drawn paths
  random      drawn within the same bounds of MACs and parameters; nothing is searched
"""

import ml_collections

from configs import sinc60

VARIANTS = ('random', 'proxyless', 'uniform')


def get_config(variant: str = 'proxyless') -> ml_collections.ConfigDict:
    """The configuration of one searcher."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    config = sinc60.get_config()
    config.search.method = variant
    config.train.update({'from_supernet': False, 'epochs': 8})
    config.train.recipe.ema = 0.99
    config.fixed_bits.pairs = ()
    config.trained_bits.enabled = False
    return config
