"""Networks behind 48 filters, for few bits.

    python launch/pipeline.py --config=configs/sinc48.py --data_dir=DIR --workdir=runs/sinc48 \\
      --config.data.extra_unknown_dir=runs/other_words --config.data.unknown_percent=20

What a mean bit-width buys is a number of bits, so a network for few bits has many values per MAC.
Fewer filters make the front end cheaper, 3 x 3 kernels the blocks; the MACs and parameters that
this frees, within 13.6M and 75.7k, go to expansions of 6. 75 epochs in float, then 2.51 bits a
weight and 2.91 an activation: two hours on 2 cores with about 17,000 training clips.
What came of it is in docs/results.md.

Variants (`--config=configs/sinc48.py:VARIANT`):
  (none)  expansion 6 and kernel 3 in every layer
  wide    the operations of sinc60-float and 1.2 times its channels
"""

import ml_collections

from configs import sinc60

WIDE = {
    'stem': {'channels': 16, 'kernel': (3, 3), 'stride': (2, 2)},
    'stages': tuple(
        {
            'name': name,
            'channels': channels,
            'layers': 3,
            'stride': 2,
            'candidates': tuple(sorted(set(sinc60.CHOICES))),
        }
        for name, channels in (('iii', 24), ('iv', 48))
    ),
    'head_channels': 96,
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    if variant not in ('', 'wide'):
        raise ValueError(f"variant must be '' or 'wide', got {variant!r}")
    config = sinc60.get_config()
    config.front_end.filters = 48
    config.search.update({'method': 'given', 'choices': ('e6k3',) * 6})
    config.train.update({'from_supernet': False, 'epochs': 75})
    config.fixed_bits.pairs = ()
    config.trained_bits.update(
        {
            'learn_epochs': 6,
            'epochs': 41,
            'lr': 0.1,
            'mean_weight_bits': 2.51,
            'mean_activation_bits': 2.91,
        }
    )
    if variant == 'wide':
        config.space = WIDE
        config.search.choices = sinc60.CHOICES
        config.train.epochs = 40
        config.trained_bits.update(
            {
                'start_bits': 5,
                'learn_epochs': 8,
                'epochs': 44,
                'lr': 0.06,
                'mean_weight_bits': 2.5,
                'mean_activation_bits': 2.9,
            }
        )
    return config
