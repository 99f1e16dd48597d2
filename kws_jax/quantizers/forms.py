"""Ways to round one tensor: each a `Form` of pure functions over a small dict of learned scalars.

- `step_range`: learns step and range, the bit-width follows from both (Uhlich et al. 2020); at a
  fixed bit-width it learns the step alone, which is LSQ (Esser et al. 2020).
- `range_bits`: learns the bit-width itself and the range of activations; the range of weights is
  their largest magnitude (Peter et al. 2021, with the quantizers of Brevitas 0.2).

Bounds: a learned bit-width lives in [2, 8] signed and [1, 8] unsigned (`range_bits`: [2, 8], as in
the paper). Nothing is clipped in the forward pass: `project` moves the parameters back inside after
each update, so that a parameter at its bound still receives its gradient and can leave again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.quantizers.rounding import (
    binarize,
    largest_code,
    quantize,
    quantize_odd,
    round_through,
)

MAX_BITS = 8


class Form(NamedTuple):
    """A way to quantize one tensor.

    Attributes:
      name: how configs call it.
      init: `init(sample, *, bits, signed, is_weight) -> params`, from an array of typical values.
      apply: `apply(params, x, *, bits, signed) -> x` rounded; `bits=None` uses the learned width.
        A whole width is read from `params['levels']`, so that one compiled program serves all;
        `bits` only tells one signed bit from more.
      bits: `bits(params, *, signed) -> scalar`, the width, real and differentiable.
      project: `project(params, *, signed) -> params` within the bounds.
      fix: `fix(params, *, bits, signed) -> params` for a whole width, keeping the range: adds
        `levels`, the largest code, which no optimizer moves.
      step: `step(params, x, *, bits, signed) -> scalar`: rounded values are whole multiples of it,
        once the width is fixed. None if they are multiples of nothing; such a form trains, and
        cannot be exported to integers.
      per_channel: whether weights are rounded in units of the root mean square of their output
        channel, which costs nothing: each channel is multiplied by a number of its own anyway.
      four_levels: whether 2-bit weights are ±step and ±step / 3; else ±step and 0. The zero costs
        one of four levels (as in ParetoQ, Liu et al. 2025).
    """

    name: str
    init: Callable
    apply: Callable
    bits: Callable
    project: Callable
    fix: Callable
    step: Callable | None = None
    per_channel: bool = False
    four_levels: bool = False


def best_range(sample: np.ndarray, *, bits: float, signed: bool) -> float:
    """The clipping range of least squared error for `sample` at `bits` (search over 80 ranges)."""
    sample = np.asarray(sample, np.float64).ravel()
    top = float(np.abs(sample).max()) if signed else float(sample.max(initial=0.0))
    if top <= 0:
        return 1.0
    if signed and bits < 2:
        return float(np.abs(sample).mean()) or 1.0
    levels = max(largest_code(bits, signed), 1.0)
    best, best_error = top, np.inf
    for ratio in np.linspace(1.0, 0.02, 80):
        limit = top * ratio
        step = limit / levels
        low = -levels if signed else 0.0
        error = np.square(step * np.round(np.clip(sample / step, low, levels)) - sample).sum()
        if error < best_error:
            best, best_error = limit, error
    return float(best)


def _minimum_bits(signed: bool) -> int:
    return 2 if signed else 1


def _whole_bits(params, signed):
    return jax.lax.stop_gradient(jnp.log2(params['levels'] + 1.0) + signed)


def _step_range_init(sample, *, bits, signed, is_weight):
    del is_weight
    limit = best_range(sample, bits=bits, signed=signed)
    levels = max(float(largest_code(bits, signed)), 1.0)
    return {
        'log_step': jnp.float32(np.log2(limit / levels)),
        'log_range': jnp.float32(np.log2(limit)),
    }


def _step_range_apply(params, x, *, bits, signed):
    step = jnp.exp2(params['log_step'])
    if bits is None:
        return quantize(x, step, jnp.exp2(params['log_range']) / step, signed)
    if bits == 1 and signed:
        return binarize(x, step)
    return quantize(x, step, jax.lax.stop_gradient(params['levels']), signed)


def _step_range_bits(params, *, signed):
    if 'levels' in params:
        return _whole_bits(params, signed)
    levels = jnp.exp2(params['log_range'] - params['log_step'])
    return jnp.log2(levels + 1.0) + signed


def _step_range_project(params, *, signed):
    if 'levels' in params:
        return params
    low = np.log2(largest_code(_minimum_bits(signed), signed))
    high = np.log2(largest_code(MAX_BITS, signed))
    log_range = jnp.maximum(params['log_range'], params['log_step'] + low)
    return {'log_step': jnp.maximum(params['log_step'], log_range - high), 'log_range': log_range}


def _step_range_fix(params, *, bits, signed):
    levels = np.float32(largest_code(bits, signed))
    step = params['log_range'] - np.log2(max(levels, np.float32(1)))
    return params | {'log_step': step, 'levels': jnp.asarray(levels)}


def _step_range_step(params, x, *, bits, signed):
    del x, bits, signed
    return jnp.exp2(params['log_step'])


def _range_bits_init(sample, *, bits, signed, is_weight):
    params = {'bits': jnp.float32(bits)}
    if not is_weight:
        limit = best_range(sample, bits=bits, signed=signed)
        params['log_range'] = jnp.float32(np.log2(limit))
    return params


def _limit(params, x):
    limit = jnp.exp2(params['log_range']) if 'log_range' in params else jnp.max(jnp.abs(x))
    return jnp.maximum(limit, 1e-8)


def _range_bits_step(params, x, *, bits, signed):
    return _limit(params, x) / max(largest_code(bits, signed), 1)


def _range_bits_apply(params, x, *, bits, signed):
    limit = _limit(params, x)
    if bits == 1 and signed:
        return binarize(x, limit)
    if bits is None:
        levels = jnp.exp2(round_through(params['bits']) - signed) - 1.0
    else:
        levels = jax.lax.stop_gradient(params['levels'])
    return quantize(x, limit / levels, levels, signed)


def _range_bits_bits(params, *, signed):
    return _whole_bits(params, signed) if 'levels' in params else round_through(params['bits'])


def _range_bits_project(params, *, signed):
    del signed
    if 'levels' in params:
        return params
    return params | {'bits': jnp.clip(params['bits'], 2.0, float(MAX_BITS))}


def _range_bits_fix(params, *, bits, signed):
    return params | {'bits': jnp.float32(bits), 'levels': jnp.float32(largest_code(bits, signed))}


FORMS = {
    'step_range': Form(
        'step_range',
        _step_range_init,
        _step_range_apply,
        _step_range_bits,
        _step_range_project,
        _step_range_fix,
        _step_range_step,
        per_channel=True,
        four_levels=True,
    ),
    'range_bits': Form(
        'range_bits',
        _range_bits_init,
        _range_bits_apply,
        _range_bits_bits,
        _range_bits_project,
        _range_bits_fix,
        _range_bits_step,
    ),
}


def get_form(name: str) -> Form:
    """The form of that name in `FORMS`.

    Raises:
      ValueError: there is none.

    >>> get_form('range_bits').name
    'range_bits'
    """
    if name not in FORMS:
        raise ValueError(
            f'there is no quantizer {name!r}, only {", ".join(FORMS)}; one of your own is added to '
            'quantizers.FORMS by a file that is imported (evaluate.py: --import=FILE)'
        )
    return FORMS[name]


def is_signed(name: str, kind: str) -> bool:
    """Whether a tensor takes both signs: weights, samples, images and block outputs do.

    >>> is_signed('stem', 'activation'), is_signed('iii.0.project', 'activation')
    (False, True)
    """
    return kind == 'weight' or name in ('input', 'frontend') or name.endswith('.project')


def weight_scale(form: Form, name: str, w):
    """What a weight is divided by before it is rounded, `[..., out]` or 1.

    Front-end filters are brought to largest magnitude 1 each, other output channels to root mean
    square 1 if the form is `per_channel`. Classes share a step: their logits are compared.

    >>> w = jnp.array([[1.0, 2.0], [7.0, 2.0]])
    >>> print(weight_scale(get_form('step_range'), 'head', w))
    [[5. 2.]]
    >>> weight_scale(get_form('range_bits'), 'head', w)
    1.0
    """
    if name == 'frontend':
        return jnp.maximum(jnp.max(jnp.abs(w), axis=0, keepdims=True), 1e-8)
    if not form.per_channel or name == 'classifier':
        return 1.0
    inputs = tuple(range(w.ndim - 1))
    size = jnp.sqrt(jnp.mean(jnp.square(w), axis=inputs, keepdims=True))
    return jax.lax.stop_gradient(jnp.maximum(size, 1e-8))


def weight_step(form: Form, own: dict, name: str, w, bits: int):
    """Rounded weights at a whole width are whole multiples of this: `[..., out]` or a scalar."""
    scale = weight_scale(form, name, w)
    step = form.step(own, w / scale, bits=bits, signed=True)
    return (step / 3 if has_four_levels(form, name, bits) else step) * scale


def has_four_levels(form: Form, name: str, bits: int) -> bool:
    """Whether a weight takes ±1 and ±3 times `weight_step`, and no zero."""
    return form.four_levels and name != 'frontend' and bits == 2


def round_weight(form: Form, own: dict, name: str, w, bits: int | None):
    """A weight rounded, as `apply_quantizers` does it; arguments as `weight_step`."""
    scale = weight_scale(form, name, w)
    rounded = form.apply(own, w / scale, bits=bits, signed=True)
    if has_four_levels(form, name, 2) and bits != 1 and 'levels' in own:
        step = form.step(own, w / scale, bits=2, signed=True) / 3
        four = quantize_odd(w / scale, step)
        rounded = jnp.where(own['levels'] == largest_code(2, True), four, rounded)
    return rounded * scale


def apply_quantizers(form: Form, quant_params: dict, bits: dict, name: str, kind: str, x):
    """Rounds one tensor of a network: what `network.apply` calls as `quant(name, kind, x)`.

    Args:
      form: how to round.
      quant_params: `{layer: {'weight': {...}, 'activation': {...}}}`.
      bits: `{layer: {'weight': int | None, 'activation': int | None}}`, static; None is learned.
      name, kind: which tensor.
      x: its value.
    """
    own, width = quant_params[name][kind], bits[name][kind]
    if kind == 'weight':
        return round_weight(form, own, name, x, width)
    return form.apply(own, x, bits=width, signed=is_signed(name, kind))


def make_quant(form: Form, quant_params: dict, bits: dict) -> Callable:
    """`apply_quantizers` with its first three arguments given."""
    return functools.partial(apply_quantizers, form, quant_params, bits)


def learned_bits(form: Form, quant_params: dict, kind: str) -> dict[str, jax.Array]:
    """The width of every tensor of one kind, real and differentiable where it is learned."""
    return {
        name: form.bits(own[kind], signed=is_signed(name, kind))
        for name, own in quant_params.items()
        if kind in own
    }


def project(form: Form, quant_params: dict) -> dict:
    """All parameters within their bounds; to be called after each update."""
    return {
        name: {k: form.project(p, signed=is_signed(name, k)) for k, p in own.items()}
        for name, own in quant_params.items()
    }


def fix_bits(form: Form, quant_params: dict, bits: dict) -> dict:
    """Parameters for the whole widths `{layer: {kind: int}}`, each tensor keeping its range."""
    return {
        name: {
            k: form.fix(p, bits=bits[name][k], signed=is_signed(name, k)) for k, p in own.items()
        }
        for name, own in quant_params.items()
    }
