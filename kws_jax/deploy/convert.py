"""A quantized model as an integer network."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from kws_jax import frontends, quantizers
from kws_jax.deploy.network import (
    LOG_FRACTION,
    WIDE_BITS,
    Block,
    FrontEnd,
    Layer,
    Multipliers,
    Network,
)
from kws_jax.frontends.base import MAGNITUDE_FLOOR
from kws_jax.layers.basic import BN_EPSILON
from kws_jax.model import Model
from kws_jax.quantizers.forms import (
    MAX_BITS,
    has_four_levels,
    is_signed,
    round_weight,
    weight_step,
)
from kws_jax.quantizers.rounding import largest_code

FRACTION = 24  # most bits behind the point of an offset
_NEAR_TIE = 1e-5  # codes; float32 errs by less
_MOST_SUMS = 20000  # in the range of a code's values; among more, some lie that near anyway


@functools.partial(jax.jit, static_argnames=('form', 'name', 'bits'))
def _rounded(own, w, *, form, name, bits):
    """A weight, rounded, and its step: compiled as in training, and as one program, not ten."""
    return round_weight(form, own, name, w, bits), weight_step(form, own, name, w, bits)


class _Sites:
    """Steps and largest codes of the tensors of a quantized model."""

    def __init__(self, model: Model):
        """Raises ValueError if the model or its quantizer has no codes."""
        if model.quant is None:
            raise ValueError(
                'the model is a float one and has no integers; take a quantized one, such as '
                'trained-bits or fixed-4-4 of a run'
            )
        self.form = quantizers.get_form(model.quant['form'])
        if self.form.step is None:
            raise ValueError(
                f'the quantizer {self.form.name} has no `step`, so its values are not whole '
                'multiples of one; give its Form a `step` function'
            )
        self.model = model

    def bits(self, name: str, kind: str) -> int:
        bits = int(self.model.quant['bits'][name][kind])
        if bits > MAX_BITS:
            raise ValueError(f'{name}: {bits} bits; integer networks have at most {MAX_BITS}')
        return bits

    def step(self, name: str) -> float:
        """Of an activation."""
        own, bits = self.model.quant['params'][name]['activation'], self.bits(name, 'activation')
        signed = is_signed(name, 'activation')
        return float(self.form.step(own, None, bits=bits, signed=signed))

    def top(self, name: str) -> int:
        bits = self.bits(name, 'activation')
        if is_signed(name, 'activation') and bits < 2:
            raise ValueError(f'{name}: a signed activation of 1 bit has no integer form; use 2')
        return int(largest_code(bits, is_signed(name, 'activation')))

    def weights(self, name: str, w) -> tuple[np.ndarray, np.ndarray]:
        """Codes of weights, int64, and their step: of every output channel, or one."""
        own, bits = self.model.quant['params'][name]['weight'], self.bits(name, 'weight')
        found = _rounded(own, np.asarray(w, np.float32), form=self.form, name=name, bits=bits)
        rounded, step = (np.asarray(value, np.float64) for value in found)
        codes = np.round(rounded / step).astype(np.int64)
        if not np.allclose(codes * step, rounded, rtol=1e-4, atol=1e-6 * step.max()):
            raise ValueError(f'{name}: weights are not whole multiples of their step {step}')
        return codes, step.ravel()


def _fixed_point(values, bits: int, most: int) -> tuple[np.ndarray, int]:
    """`values` as `whole / 2^fraction`, whole within `bits` signed bits; as fine as that allows.

    >>> _fixed_point(np.array([1.5, -2.0]), 16, 8)
    (array([ 384, -512]), 8)
    """
    largest = max(float(np.abs(values).max(initial=0.0)), 1e-12)
    top = 2 ** (bits - 1) - 1
    fraction = min(most, math.floor(math.log2(top / largest)))
    whole = np.clip(np.round(np.asarray(values, np.float64) * 2.0**fraction), -top, top)
    return whole.astype(np.int64), fraction


def _off_ties(rescale, whole, fraction, low, high) -> np.ndarray:
    """Offsets, moved by a few units where some sum would lie just between two codes.

    Sums are whole numbers, so they can hit such a point exactly, again and again; which code it
    then is would depend on how a runtime rounds. A channel that no move helps stays as it is.
    """
    moved = whole.copy()
    for i, (scale, offset) in enumerate(zip(rescale.values(), whole, strict=True)):
        for move in (0, 1, -1, 2, -2, 3, -3, 4, -4):
            start = (offset + move) / 2.0**fraction
            first, last = np.floor((low - 1 - start) / scale), np.ceil((high + 1 - start) / scale)
            if last - first > _MOST_SUMS:
                break
            codes = np.arange(first, last + 1) * scale + start
            if np.abs(codes - np.floor(codes) - 0.5).min() > _NEAR_TIE:
                moved[i] = offset + move
                break
    return moved


def folded(params, state) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of a batch norm in evaluation, float64; `params` may have no scale."""
    mean, var = (np.asarray(state[k], np.float64) for k in ('mean', 'var'))
    factor = 1.0 / np.sqrt(var + BN_EPSILON)
    if 'scale' not in params:
        return factor, -mean * factor
    factor = factor * np.asarray(params['scale'], np.float64)
    return factor, np.asarray(params['bias'], np.float64) - mean * factor


def _layer(sites, name, kind, params, state, *, x_step, stride=(1, 1), residual_step=None):
    """One convolution; returns it and the step of its output."""
    codes, w_step = sites.weights(name, params['w'])
    factor, offset = folded(params, state)
    codes = codes * np.where(factor < 0, -1, 1)  # multipliers are positive, weights take both signs
    out_step, top = sites.step(name), sites.top(name)
    rescale = Multipliers.nearest(np.abs(factor) * w_step * x_step / out_step)
    low, high = -top, top
    if not is_signed(name, 'activation'):
        low, high = 0, min(top, int(np.round(6.0 / out_step)))
    whole, fraction = _fixed_point(offset / out_step, 16, min(FRACTION, int(rescale.shift.min())))
    if fraction < 0 or rescale.shift.min() < 1 or rescale.shift.max() > 62:
        raise ValueError(f'{name}: its batch norm is out of range ({factor.min()}..{factor.max()})')
    if residual_step is None:
        whole = np.clip(_off_ties(rescale, whole, fraction, low, high), -32767, 32767)
    residual = (
        None
        if residual_step is None
        else Multipliers.nearest([residual_step / out_step], WIDE_BITS)
    )
    layer = Layer(
        name=name,
        kind=kind,
        bits=sites.bits(name, 'weight'),
        weights=codes.astype(np.int8),
        stride=tuple(stride),
        rescale=rescale,
        offset=whole.astype(np.int16),
        fraction=fraction,
        residual=residual,
        low=low,
        high=high,
        out_bits=sites.bits(name, 'activation'),
        odd=has_four_levels(sites.form, name, sites.bits(name, 'weight')),
    )
    return layer, out_step


def front_end_settings(model: Model, form: str) -> tuple[frontends.FrontEnd, dict]:
    """The front end of a model and its settings, if it is a filter bank on samples.

    Raises:
      ValueError: it has no `form`, which the message names.
    """
    front_end = model.make_front_end()
    if front_end.taps is None:
        raise ValueError(
            f'frontend: the fixed features {front_end.name} have no {form} form here; train with '
            "front_end.name 'sinc' or 'conv'"
        )
    spec = frontends.settings(**model.front_end)
    if spec['hops'] != 1:
        raise ValueError(f'frontend: hops={spec["hops"]} has no {form} form; train with hops=1')
    return front_end, spec


def _front_end(model: Model, sites: _Sites) -> tuple[FrontEnd, float, int]:
    front_end, spec = front_end_settings(model, 'integer')
    taps = np.asarray(front_end.taps(model.params['frontend']), np.float32)
    codes, w_step = sites.weights('frontend', taps)
    gains = np.ones(taps.shape[1])
    if front_end.gains is not None:
        gains = np.asarray(front_end.gains(model.params['frontend']), np.float64)
    # what the multiplier makes of samples is the step from here on
    per_sample = 1.0 / (32768.0 * sites.step('input'))
    given = Multipliers.nearest([per_sample], WIDE_BITS)
    x_step = 1.0 / (32768.0 * float(given.values()[0]))
    scale = x_step * w_step * gains
    log, pairs = spec['compression'].startswith('log'), bool(spec['quadrature'])
    gain = {'log': spec['log_gain'], 'log_plain': 1.0}.get(spec['compression'], 1.0)
    scale = scale * gain

    # as many bits behind the point as keep the largest response within 30 bits
    sums = np.abs(codes).sum(axis=0) * sites.top('input')
    largest = max(float((sums * scale).max()) * (math.sqrt(2) if pairs else 1), 1e-6)
    fraction = min(24, math.floor(30 - math.log2(largest)))
    columns = Multipliers.nearest(scale * 2.0**fraction, WIDE_BITS)
    if fraction < 0 or columns.shift.min() < 1 or columns.shift.max() > 62:
        raise ValueError(f'frontend: responses are out of range (gains up to {gains.max()})')

    filters = codes.shape[1] // (1 + pairs)
    factor, offset = np.ones(filters), np.zeros(filters)
    if front_end.normalize:
        factor, offset = folded({}, model.averages['image'])
    out_step = sites.step('frontend')
    unit = math.log(2.0) / 2.0**LOG_FRACTION if log else 1.0 / 2.0**fraction
    whole_factor, factor_fraction = _fixed_point(factor * unit / out_step, 16, 46)
    whole_offset, offset_fraction = _fixed_point(
        offset / out_step, 16, min(FRACTION, factor_fraction)
    )
    half = codes.shape[0] // 2
    signs = np.ones(codes.shape[1], np.int64)
    if pairs:
        signs[codes.shape[1] // 2 :] = -1
    symmetric = model.front_end['name'] == 'sinc'
    if symmetric and not np.array_equal(codes[:half], (codes[::-1] * signs)[:half]):
        raise ValueError('frontend: quantized filters lost their symmetry')
    return (
        FrontEnd(
            kernel=spec['kernel'],
            stride=spec['stride'],
            bits=sites.bits('frontend', 'weight'),
            taps=codes.astype(np.int8),
            symmetric=symmetric,
            pairs=pairs,
            magnitude={'relu': 'relu', 'none': 'plain'}.get(spec['compression'], 'abs'),
            log=log,
            input=given,
            top=sites.top('input'),
            input_bits=sites.bits('input', 'activation'),
            columns=columns,
            fraction=fraction,
            floor=round(MAGNITUDE_FLOOR * gain**2 * 4.0**fraction) if pairs else 0,
            factor=whole_factor.astype(np.int16),
            factor_fraction=factor_fraction,
            offset=whole_offset.astype(np.int16),
            offset_fraction=offset_fraction,
            high=sites.top('frontend'),
            out_bits=sites.bits('frontend', 'activation'),
        ),
        out_step,
        spec['samples'],
    )


def from_model(model: Model) -> Network:
    """The integer network of a quantized model.

    Raises:
      ValueError: it is a float model, or a layer has no integer form; names the layer.
    """
    sites, space = _Sites(model), model.architecture.space
    front_end, step, samples = _front_end(model, sites)
    params, averages = model.params, model.averages
    stem, step = _layer(
        sites,
        'stem',
        'stem',
        params['stem'] | {'w': np.asarray(params['stem']['w'])[:, :, 0]},
        averages['stem'],
        x_step=step,
        stride=space.stem.stride,
    )
    blocks = []
    for layer, choice in zip(space.layers, model.architecture.choices, strict=True):
        if choice.is_identity:
            continue
        own, state, inside, expand = params[layer.name], averages[layer.name], step, None
        if 'expand' in own:
            expand, inside = _layer(
                sites,
                f'{layer.name}.expand',
                'pointwise',
                own['expand'],
                state['expand'],
                x_step=step,
            )
        depthwise, inside = _layer(
            sites,
            f'{layer.name}.depthwise',
            'depthwise',
            own['depthwise'],
            state['depthwise'],
            x_step=inside,
            stride=(layer.stride, layer.stride),
        )
        project, step = _layer(
            sites,
            f'{layer.name}.project',
            'pointwise',
            own['project'],
            state['project'],
            x_step=inside,
            residual_step=step if layer.keeps_shape else None,
        )
        blocks.append(Block(expand, depthwise, project))
    head, step = _layer(sites, 'head', 'pointwise', params['head'], averages['head'], x_step=step)
    codes, w_step = sites.weights('classifier', params['classifier']['w'])
    logit_step = float(w_step[0]) * step / math.prod(space.final_shape)
    bias = np.round(np.asarray(params['classifier']['b'], np.float64) / logit_step)
    classifier = Layer(
        name='classifier',
        kind='classifier',
        bits=sites.bits('classifier', 'weight'),
        weights=codes.astype(np.int8),
        stride=(1, 1),
        rescale=None,
        offset=bias.astype(np.int32),
        fraction=0,
        residual=None,
        low=0,
        high=0,
        out_bits=32,
        odd=has_four_levels(sites.form, 'classifier', sites.bits('classifier', 'weight')),
    )
    return Network(
        front_end=front_end,
        stem=stem,
        blocks=tuple(blocks),
        head=head,
        classifier=classifier,
        samples=samples,
        labels=tuple(model.labels),
        logit_step=logit_step,
        causal=space.causal,
    )


def snap(model: Model) -> Model:
    """The model whose batch norms are those that integers can say.

    `from_model` rounds factors to twelve bits and offsets to sixteen, which takes values that lie
    between two codes to the other one here and there; at few bits that is heard in the logits. This
    writes the rounded factors and offsets back into the weights and averages, so that the network
    in floating point and its integers say the same. Models without an integer form are returned as
    they are.
    """
    try:
        network, sites = from_model(model), _Sites(model)
    except ValueError as error:
        logging.info('no integer form, so nothing is snapped to it: %s', error)
        return model
    params = jax.tree.map(lambda v: v, model.params)  # new dicts, the same leaves
    layers = network.layers()
    x_step = sites.step('frontend')

    def write(part, state, name, x_step):
        layer, out_step = layers[name], sites.step(name)
        _, w_step = sites.weights(name, part['w'])
        sign = np.where(np.asarray(part['scale']) < 0, -1.0, 1.0)
        factor = sign * layer.rescale.values() * out_step / (w_step * x_step)
        offset = layer.offset / 2.0**layer.fraction * out_step
        mean, var = (np.asarray(state[k], np.float64) for k in ('mean', 'var'))
        part['scale'] = jnp.asarray(factor * np.sqrt(var + BN_EPSILON), jnp.float32)
        part['bias'] = jnp.asarray(offset + mean * factor, jnp.float32)
        return out_step

    x_step = write(params['stem'], model.averages['stem'], 'stem', x_step)
    for layer in model.architecture.space.layers:
        for name in ('expand', 'depthwise', 'project'):
            if name in params.get(layer.name, {}):
                part, state = params[layer.name][name], model.averages[layer.name][name]
                x_step = write(part, state, f'{layer.name}.{name}', x_step)
    write(params['head'], model.averages['head'], 'head', x_step)
    bias = network.classifier.offset * network.logit_step
    params['classifier']['b'] = jnp.asarray(bias, jnp.float32)

    averages = dict(model.averages)
    front_end = network.front_end
    if model.make_front_end().normalize:
        unit = math.log(2.0) / 2.0**LOG_FRACTION if front_end.log else 2.0**-front_end.fraction
        out_step = sites.step('frontend')
        factor = front_end.factor / 2.0**front_end.factor_fraction * out_step / unit
        offset = front_end.offset / 2.0**front_end.offset_fraction * out_step
        averages['image'] = {
            'mean': jnp.asarray(-offset / factor, jnp.float32),
            'var': jnp.asarray(1.0 / factor**2 - BN_EPSILON, jnp.float32),
        }
    return dataclasses.replace(model, params=params, averages=averages)
