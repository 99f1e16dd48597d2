"""Front ends before one and the same network, some epochs each, judged on validation alone.

    python launch/pipeline.py --config=configs/front_ends.py:VARIANT --data_dir=DIR \\
      --workdir=runs/front_ends/VARIANT

Three minutes each on 2 cores with about 17,000 training clips. Variants:
  sinc, sinc_none                 SincConv, 60 filters, with log compression and without
  quadrature, quadrature_raw      pairs of filters in quadrature; without normalization of the image
  conv, conv_mel                  Conv1D, every tap free; from random taps and from the mel bank
  log_mel, mfcc                   60 mel bands; 40 coefficients
and a front end before a smaller or a larger network:
  quadrature_small, mfcc_large, log_mel_large (the MACs of quadrature)
"""

import ml_collections

from configs import sinc60

CHOICES = ('e2k3', 'e3k5', 'e2k3', 'e5k5', 'e4k5', 'e4k5')
FRONT_ENDS = {
    'sinc': {'name': 'sinc', 'filters': 60},
    'sinc_none': {'name': 'sinc', 'filters': 60, 'compression': 'none'},
    'quadrature': {'name': 'sinc', 'filters': 60, 'quadrature': True},
    'quadrature_raw': {'name': 'sinc', 'filters': 60, 'quadrature': True, 'normalize': False},
    'conv': {'name': 'conv', 'filters': 60},
    # Taps of norm sqrt(2) answer thirteen times as loudly as SincConv's of unit gain, so a gain of
    # 100 puts the knee of the logarithm where SincConv has it; `unit` is how far taps learn.
    'conv_mel': {'name': 'conv', 'filters': 60, 'initial': 'mel', 'log_gain': 100.0, 'unit': 0.03},
    'log_mel': {'name': 'log_mel', 'filters': 60},
    'mfcc': {'name': 'mfcc', 'filters': 40, 'kernel': 400, 'stride': 160, 'framing': 'valid'},
}
SIZES = {
    'quadrature_small': ('quadrature', ('e1k3', 'e2k5', 'e1k3', 'e3k5', 'e2k5', 'e2k5')),
    'mfcc_large': ('mfcc', ('e6k5',) * 6),
    'log_mel_large': ('log_mel', ('e6k3', 'e6k5', 'e6k3', 'e5k5', 'e4k5', 'e4k5')),
}
VARIANTS = (*FRONT_ENDS, *SIZES)


def get_config(variant: str = 'quadrature') -> ml_collections.ConfigDict:
    """The configuration of one front end."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
    front_end, choices = SIZES.get(variant, (variant, CHOICES))
    config = sinc60.get_config()
    config.test = False
    config.front_end = FRONT_ENDS[front_end]
    config.target = {'macs': 40e6, 'tolerance': 0.99, 'parameters': 150e3}
    config.search.update({'method': 'given', 'choices': choices})
    config.train.update({'epochs': 6, 'from_supernet': False})
    config.train.recipe.ema = 0.99
    config.fixed_bits.pairs = ()
    config.trained_bits.enabled = False
    return config
