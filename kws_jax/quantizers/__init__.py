"""Ways to round: straight-through functions whose steps, ranges and bit-widths are learned."""

from kws_jax.quantizers.allocate import allocate_bits, greedy_bits
from kws_jax.quantizers.calibrate import collect, init_quant_params, uniform_bits
from kws_jax.quantizers.forms import (
    FORMS,
    Form,
    fix_bits,
    get_form,
    learned_bits,
    make_quant,
    project,
)
from kws_jax.quantizers.rounding import binarize, quantize, round_through

__all__ = [
    'FORMS',
    'Form',
    'allocate_bits',
    'binarize',
    'collect',
    'fix_bits',
    'get_form',
    'greedy_bits',
    'init_quant_params',
    'learned_bits',
    'make_quant',
    'project',
    'quantize',
    'round_through',
    'uniform_bits',
]
