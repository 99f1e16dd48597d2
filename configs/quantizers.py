"""Ways to learn bit-widths from one and the same float network, judged on validation alone.

    python launch/pipeline.py --config=configs/quantizers.py:VARIANT --data_dir=DIR \\
      --workdir=runs/quantizers/VARIANT

Nine minutes each on 2 cores with about 17,000 training clips; the float network, the same for all
(copy its folders `search` and `float` to the next workdir), takes four of them. Variants:
  step_range   learns steps and ranges, the widths follow; a budget of 3 bits each
  range_bits   learns the widths themselves (the paper's form), with the same budget
  linear       the paper's form with the paper's price, 0.04 per bit; no budget
  fixed        2/2 bits, no widths to learn
"""

import ml_collections

from configs import front_ends

VARIANTS = ('step_range', 'range_bits', 'linear', 'fixed')


def get_config(variant: str = 'step_range') -> ml_collections.ConfigDict:
    """The configuration of one way."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    config = front_ends.get_config('quadrature')
    if variant == 'fixed':
        config.fixed_bits.update({'pairs': ((2, 2),), 'epochs': 4})
        return config
    form = 'range_bits' if variant in ('range_bits', 'linear') else 'step_range'
    price = 'linear' if variant == 'linear' else 'budget'
    config.trained_bits.update({'enabled': True, 'form': form, 'price': price, 'start_bits': 5})
    config.trained_bits.update({'learn_epochs': 3, 'epochs': 3})
    return config
