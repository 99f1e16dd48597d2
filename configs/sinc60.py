"""SincConv with 60 filters, searched within 75.7k parameters and 13.6M MACs, then quantized.

    python launch/pipeline.py --config=configs/sinc60.py --data_dir=DIR --workdir=runs/sinc60

With recordings of few other words, synthetic speech of many makes `unknown` wider:

    python launch/make_corpus.py --out=runs/other_words --words_file=configs/other_words.txt \\
      --clips=8000
    python launch/pipeline.py ... --config.data.extra_unknown_dir=runs/other_words \\
      --config.data.unknown_percent=20

Variants (`--config=configs/sinc60.py:VARIANT`):
  (none)      about 45 minutes on 2 cores with about 17,000 training clips
  quickstart  minutes, for the synthetic corpus; the default of launch/quickstart.sh
  mini        shows that everything runs, learns nothing of worth
  paper       40 + 120 epochs of search and 120 of training, as published (Peter et al. 2021);
              never run
"""

import copy

import ml_collections

CHOICES = ('e2k7', 'e2k7', 'e3k5', 'e4k7', 'e3k7', 'e3k7')  # of sinc60-float: its search's
PAPER_AUGMENT = {'max_shift': 1600, 'noise_probability': 0.8, 'noise_volume': 0.1}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch = 100
    config.float_model = ''  # a released model or a run's: nothing is searched or trained in float
    config.test = True  # score every model on the test split, once
    config.data = {
        'labels': '12',
        'unknown_percent': 12.0,
        'silence_percent': 10.0,
        'extra_unknown_dir': '',  # a folder of further other words, for training alone
        'extra_unknown_share': 0.5,  # of the unknown, where there is such a folder
    }
    config.front_end = {'name': 'sinc', 'filters': 60, 'compression': 'log', 'quadrature': True}
    config.space = {'name': 'table1', 'causal': False}  # causal: no layer sees later frames
    config.target = {'macs': 13.6e6, 'tolerance': 0.05, 'parameters': 75700.0}
    augment = PAPER_AUGMENT | {
        'silence_volume': 1.0,
        'max_speed_change': 0.1,
        'low_db': -10.0,
        'high_db': 6.0,
        'equalize_db': 6.0,
        'splice_probability': 0.0,
        'room_tone_share': 0.5,
    }
    plain = {'label_smoothing': 0.1, 'augment': augment}
    config.search = {
        'method': 'proxyless',  # or uniform, random, given
        'choices': ('',),  # of the method given: e1k3, identity, ...
        'batch': 32,  # small batches: more updates to each of the many candidates
        'warmup_epochs': 5,
        'epochs': 6,
        'warmup_lr': 0.2,
        'lr': 0.2,
        'weight_decay': 4e-5,
        'arch_every': 5,
        'arch_lr': 0.015,
        'price': {'name': 'target', 'beta': 1.0, 'weight': 1.0},
        'choose': 'within',
        'candidates': 64,
        'candidate_clips': 500,
        'recipe': plain,
    }
    train = {
        'from_supernet': True,
        'epochs': 26,
        'lr': 0.2,
        'warmup_epochs': 0.5,
        'weight_decay': 1e-4,
        'recipe': plain
        | {
            'spec_augment': {
                'time_masks': 1,
                'time_width': 15,
                'frequency_masks': 1,
                'frequency_width': 6,
            },
            'ema': 0.999,
            'mixup': 0.0,
            'distill': 0.0,  # above 0: taught by the network of `teacher`
            'temperature': 2.0,
        },
    }
    config.train = train
    config.teacher = {
        'enabled': False,
        'model': '',  # a released model or a run's; else one of `space` is trained
        'space': {'name': 'table1', 'width': 2.0},
        'choices': ('e6k7',) * 6,
        **{k: v for k, v in copy.deepcopy(train).items() if k != 'from_supernet'},
    }
    quantized = {
        'form': 'step_range',
        'epochs': 4,
        'lr': 0.06,
        'quant_lr': 0.01,
        'weight_decay': 2e-5,
        'batch_statistics': 0.7,
        'teachers': (),  # further ones beside the float model: released models or those of runs
        'recipe': plain | {'label_smoothing': 0.0, 'distill': 0.7, 'temperature': 2.0, 'ema': 0.0},
    }
    config.fixed_bits = quantized | {
        'pairs': ((4, 4), (2, 2)),
        'input_bits': 8,
        'signed_bits': 0,  # of the image and of block outputs; 0: as every activation
        'start_model': '',  # of float_model's network, at more bits; '': begins with its weights
    }
    config.trained_bits = quantized | {
        'enabled': True,
        'profile': 'learned',  # or sensitivity, random, uniform: what widths are compared with
        'epochs': 6,
        'start_bits': 0,  # of every tensor; 0: those of the profile sensitivity
        'learn_epochs': 4,
        'learn_lr': 0.1,
        'quant_lr': 0.02,
        'price': 'budget',
        'mean_weight_bits': 3.0,
        'mean_activation_bits': 3.0,
        'strength': 2.0,
        'flash_bytes': 0.0,
        'weight_lambda': 0.04,
        'activation_lambda': 0.04,
    }
    if variant == 'paper':
        _paper(config)
    elif variant == 'quickstart':
        _quickstart(config)
    elif variant == 'mini':
        _mini(config)
    elif variant:
        raise ValueError(f"variant must be '', 'quickstart', 'mini' or 'paper', got {variant!r}")
    return config


def _paper(config):
    recipe = {'label_smoothing': 0.1, 'augment': PAPER_AUGMENT}
    config.data.unknown_percent = 10.0
    config.front_end = {'name': 'sinc', 'filters': 60, 'compression': 'none', 'quadrature': False}
    config.search.update({'warmup_epochs': 40, 'epochs': 120, 'warmup_lr': 0.05, 'lr': 0.2})
    config.search.update({'batch': 100, 'arch_lr': 4e-3, 'choose': 'argmax'})
    config.search.price = {'name': 'mul_log', 'beta': 4.0, 'reference': 20e6}
    config.search.recipe = recipe
    config.train.update({'epochs': 120, 'lr': 0.2, 'warmup_epochs': 0.0, 'weight_decay': 4e-5})
    config.train.recipe = recipe
    for group in (config.fixed_bits, config.trained_bits):
        group.update({'form': 'range_bits'})
        group.recipe = recipe
    config.trained_bits.update({'price': 'linear', 'start_bits': 8})


def _quickstart(config):
    # few clips: small batches give the supernet enough updates
    config.batch = 32
    config.target.macs = 6.0e6
    config.front_end.filters = 40
    config.search.update({'warmup_epochs': 5, 'epochs': 7, 'arch_lr': 0.05})
    config.train.update({'epochs': 25, 'lr': 0.1})
    config.fixed_bits.update({'epochs': 4, 'lr': 0.01})
    config.trained_bits.update({'epochs': 4, 'learn_epochs': 4, 'lr': 0.01, 'learn_lr': 0.015})
    config.trained_bits.start_bits = 5


def _mini(config):
    config.batch = config.search.batch = 16
    config.front_end.filters = 20
    config.target.macs = 3.0e6
    config.search.update({'warmup_epochs': 1, 'epochs': 1, 'arch_lr': 0.2, 'candidates': 4})
    config.search.candidate_clips = 32
    config.train.epochs = config.teacher.epochs = 1
    config.train.recipe.ema = 0.9
    config.fixed_bits.update({'epochs': 1, 'pairs': ((4, 4),)})
    config.trained_bits.update({'epochs': 1, 'learn_epochs': 1, 'quant_lr': 0.1, 'start_bits': 5})
