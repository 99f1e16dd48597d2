"""Ten MFCCs and the twelve-layer space of Peter et al. 2020 (arXiv 2012.10138), as searched there.

    python launch/pipeline.py --config=configs/mfcc.py --data_dir=DIR --workdir=runs/mfcc

Never run at full size. Variants (`--config=configs/mfcc.py:VARIANT`):
  (none)   20M MACs, the schedule of sinc60
  mini     shows that everything runs, learns nothing of worth
"""

import ml_collections

from configs import sinc60


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    if variant not in ('', 'mini'):
        raise ValueError(f"variant must be '' or 'mini', got {variant!r}")
    config = sinc60.get_config(variant)
    mini = variant == 'mini'
    config.front_end = {'name': 'mfcc', 'filters': 10}
    config.space = {'name': 'mfcc', 'width': 0.25 if mini else 1.0}
    config.target = {'macs': 2e6 if mini else 20e6, 'tolerance': 0.05, 'parameters': 500e3}
    return config
