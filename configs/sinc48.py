"""The network of sinc60-float with 48 filters and 1.2 times the channels, for few bits.

    python launch/pipeline.py --config=configs/sinc48.py --data_dir=DIR --workdir=runs/sinc48 \\
      --config.data.extra_unknown_dir=runs/other_words --config.data.unknown_percent=20

Operations are those that the search of `configs/sinc60.py` chose. Fewer filters make the front end
and every map smaller; channels take what that frees, up to the same 75.7k parameters and 13.6M
MACs. 40 epochs in float, then 2.5 bits a weight and 2.9 an activation: an hour and a half on 2
cores with about 17,000 training clips. What came of it is in docs/results.md.
"""

import ml_collections

from configs import sinc60

SPACE = {
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


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    config = sinc60.get_config()
    config.front_end.filters = 48
    config.space = SPACE
    config.search.update({'method': 'given', 'choices': sinc60.CHOICES})
    config.train.update({'from_supernet': False, 'epochs': 40})
    config.fixed_bits.pairs = ()
    config.trained_bits.update(
        {
            'start_bits': 5,
            'learn_epochs': 8,
            'epochs': 44,
            'mean_weight_bits': 2.5,
            'mean_activation_bits': 2.9,
        }
    )
    return config
