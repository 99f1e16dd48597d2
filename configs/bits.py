"""The released float model at every pair of fixed bit-widths, a few epochs each.

    python launch/study.py --config=configs/bits.py --data_dir=DIR --workdir=runs/bits \\
      --json=configs/results/bits.json

Two minutes a pair on 2 cores with about 17,000 training clips; the samples are kept at 8 bits.
Variants are the pairs: w4a2 has weights of 4 bits and activations of 2.

The best at two bits (docs/open_questions.md) is one long run, 45 minutes on 2 idle cores, with 8
bits where activations take both signs, and begun with weights that were trained at more bits:

    python launch/pipeline.py --config=configs/bits.py:w2a2 --data_dir=DIR --workdir=runs/w2a2 \\
      --config.data.extra_unknown_dir=runs/other_words --config.data.unknown_percent=20.0 \\
      --config.float_model=sinc48-float --config.fixed_bits.start_model=sinc48-trained-bits \\
      --config.fixed_bits.signed_bits=8 --config.fixed_bits.epochs=30
"""

import ml_collections

from configs import sinc60

WIDTHS = (1, 2, 3, 4, 8)
VARIANTS = tuple(f'w{weight}a{activation}' for weight in WIDTHS for activation in WIDTHS)


def get_config(variant: str = 'w4a4') -> ml_collections.ConfigDict:
    """The configuration of one pair."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    config = sinc60.get_config()
    config.trained_bits.enabled = False
    config.float_model = 'sinc60-float'
    config.fixed_bits.pairs = ((int(variant[1]), int(variant[3])),)
    config.fixed_bits.epochs = 2
    return config
