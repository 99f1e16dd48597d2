"""Models as LiteRT (TensorFlow Lite) flatbuffers: a float one as it is, a quantized one in int8.

Both take int16 samples `[batch, samples]` and give float logits `[batch, classes]`; written for a
batch of one, as LiteRT for Microcontrollers has it. Only operations that it knows too are used.

In the quantized graph the codes of activations are those of the integer network, in int8 tensors
whose scale is chosen so that the fused activation clips at the largest code; every weight takes
eight bits, since LiteRT has no narrower ones that these operations read. Three things are rounded
otherwise than in the integer network: filter sums to 16 bits, the offset of a channel to whole
sums, and the sum of a block with its input twice. `export_litert_exact` rounds nothing otherwise.
"""

import math

import numpy as np

from kws_jax.deploy.convert import folded, front_end_settings
from kws_jax.deploy.litert_graph import Graph, Tensor
from kws_jax.deploy.network import LOG_FRACTION, Layer, Network
from kws_jax.frontends.base import MAGNITUDE_FLOOR
from kws_jax.model import Model

_BEYOND = 4.0  # times the largest code: what is kept of a block's sum before its input is added


def _compressed(graph, x, *, pairs, magnitude, floor, gain):
    """Responses `[1, frames, 1, columns]` to `[1, frames, 1, filters]`; without `gain` no log."""
    if pairs:
        half = (*x.shape[:3], x.shape[3] // 2)
        axis = graph.constant(np.array(3, np.int32))
        parts = graph.node(
            'SPLIT', (axis, x), half, options=('SplitOptions', {'numSplits': 2}), outputs=2
        )
        squares = [graph.arithmetic('MUL', part, part) for part in parts]
        power = graph.arithmetic('ADD', *squares)
        x = graph.node('SQRT', (graph.arithmetic('ADD', power, graph.constant([floor])),), half)
    elif magnitude != 'plain':
        x = graph.node({'abs': 'ABS', 'relu': 'RELU'}[magnitude], (x,), x.shape)
    if gain is not None:
        if gain != 1.0:
            x = graph.arithmetic('MUL', x, graph.constant([gain]))
        x = graph.node('LOG', (graph.arithmetic('ADD', x, graph.constant([1.0])),), x.shape)
    return x


def _classified(graph, x, weights, bias):
    """The mean over the map, and the classifier: both in float."""
    mean = graph.node(
        'MEAN',
        (x, graph.constant(np.array([1, 2], np.int32))),
        (1, x.shape[3]),
        options=('ReducerOptions', {'keepDims': False}),
    )
    inputs = mean, graph.constant(np.asarray(weights).T), graph.constant(bias)
    options = 'FullyConnectedOptions', {'fusedActivationFunction': graph.activation('NONE')}
    return graph.node('FULLY_CONNECTED', inputs, (1, len(bias)), options=options)


def _facts(labels, **more) -> dict:
    return {'labels': ','.join(labels), 'sample_rate': 16000} | more


def from_float(model: Model) -> bytes:
    """A float model as a LiteRT flatbuffer, its batch norms folded into the convolutions.

    Args:
      model: float.

    Raises:
      ValueError: the model is quantized, or its front end has no LiteRT form.
      ImportError: the package ai-edge-litert is missing.
    """
    if model.quant is not None:
        raise ValueError('the model is quantized; export its integer network (from_network)')
    functions, spec = front_end_settings(model, 'LiteRT')
    space = model.architecture.space
    params, averages, graph = model.params, model.averages, Graph(space.causal)

    def conv(x, part, state, *, activation='RELU6', stride=(1, 1), depthwise=False):
        factor, offset = folded(part, state)
        w = np.asarray(part['w'], np.float64)
        if depthwise:
            w = (w * factor)[None]
        else:
            w = w[None, None] if w.ndim == 2 else w
            w = np.transpose(w * factor, (3, 0, 1, 2))
        w, offset = graph.constant(w), graph.constant(offset)
        return graph.conv(x, w, offset, stride=stride, depthwise=depthwise, activation=activation)

    taps = np.asarray(functions.taps(params['frontend']), np.float64)
    if functions.gains is not None:
        taps = taps * np.asarray(functions.gains(params['frontend']))[None]
    samples = graph.tensor((1, spec['samples']), 'INT16', scale=1 / 32768)
    x = graph.node('DEQUANTIZE', (samples,), samples.shape)
    x = graph.reshape(x, (1, spec['samples'], 1, 1))
    w, none = graph.constant(taps.T[:, :, None, None]), graph.constant(np.zeros(taps.shape[1]))
    x = graph.conv(x, w, none, stride=(spec['stride'], 1), same=False)
    log = spec['compression'].startswith('log')
    x = _compressed(
        graph,
        x,
        pairs=spec['quadrature'],
        magnitude={'relu': 'relu', 'none': 'plain'}.get(spec['compression'], 'abs'),
        floor=MAGNITUDE_FLOOR,
        gain=(spec['log_gain'] if spec['compression'] == 'log' else 1.0) if log else None,
    )
    if functions.normalize:
        factor, offset = folded({}, averages['image'])
        x = graph.arithmetic('MUL', x, graph.constant(factor))
        x = graph.arithmetic('ADD', x, graph.constant(offset))
    x = graph.reshape(x, (1, *functions.image_shape, 1))
    x = conv(x, params['stem'], averages['stem'], stride=space.stem.stride)
    for layer, choice in zip(space.layers, model.architecture.choices, strict=True):
        if choice.is_identity:
            continue
        own, state, y = params[layer.name], averages[layer.name], x
        if 'expand' in own:
            y = conv(y, own['expand'], state['expand'])
        stride = (layer.stride, layer.stride)
        y = conv(y, own['depthwise'], state['depthwise'], stride=stride, depthwise=True)
        y = conv(y, own['project'], state['project'], activation='NONE')
        x = graph.arithmetic('ADD', y, x) if layer.keeps_shape else y
    x = conv(x, params['head'], averages['head'])
    w, b = (np.asarray(params['classifier'][key], np.float64) for key in 'wb')
    logits = _classified(graph, x, w, b)
    facts = _facts(model.labels)
    return graph.finish(samples, description='kws_jax, float', facts=facts, logits=logits)


def from_network(network: Network) -> bytes:
    """A quantized model's integer network as a LiteRT flatbuffer in int8.

    Args:
      network: from `deploy.from_model`.

    Returns:
      A flatbuffer whose logits times `1 / logit_step` are near those of the integer network, see
      above.

    Raises:
      ImportError: the package ai-edge-litert is missing.
    """
    front_end, graph = network.front_end, Graph(network.causal)
    samples = graph.tensor((1, network.samples), 'INT16', scale=1.0)
    x = _image(graph, front_end, samples)
    x = _layer(graph, network.stem, x)
    for block in network.blocks:
        y = x if block.expand is None else _layer(graph, block.expand, x)
        x = _layer(graph, block.project, _layer(graph, block.depthwise, y), x)
    x = _layer(graph, network.head, x)
    last, count = network.classifier, math.prod(x.shape[1:3])
    w = last.weights * (network.logit_step * count / x.scale)
    x = graph.node('DEQUANTIZE', (x,), x.shape)
    logits = _classified(graph, x, w, last.offset * network.logit_step)
    facts = _facts(network.labels, logit_step=network.logit_step)
    return graph.finish(samples, description='kws_jax, int8', facts=facts, logits=logits)


def _image(graph: Graph, front_end, samples: Tensor) -> Tensor:
    # codes of samples, of eight bits, in 16: int8 convolutions would give sums eight bits
    per_code = 1.0 / float(front_end.input.values()[0])
    codes = graph.node('QUANTIZE', (samples,), samples.shape, 'INT8', scale=per_code)
    if front_end.top < 127:
        codes = _bounded(graph, codes, -front_end.top, front_end.top)
    wide = graph.node('QUANTIZE', (codes,), codes.shape, 'INT16', scale=per_code)
    x = graph.reshape(wide, (1, samples.shape[1], 1, 1))
    # every column of the output has 16 bits for the largest sum that it can have
    largest = np.maximum(np.abs(front_end.taps).sum(axis=0) * front_end.top / 32767.0, 1e-6)
    w = graph.constant(
        np.ascontiguousarray(front_end.taps.T)[:, :, None, None], scale=1.0 / (per_code * largest)
    )
    none = graph.constant(np.zeros(len(largest), np.int64))
    x = graph.conv(x, w, none, stride=(front_end.stride, 1), same=False, out='INT16', scale=1.0)
    unit = 2.0**-front_end.fraction  # of a response, as log2(1 + response) takes it
    x = graph.node('DEQUANTIZE', (x,), x.shape)
    x = graph.arithmetic('MUL', x, graph.constant(largest * front_end.columns.values() * unit))
    x = _compressed(
        graph,
        x,
        pairs=front_end.pairs,
        magnitude=front_end.magnitude,
        floor=front_end.floor * unit**2,
        gain=1.0 if front_end.log else None,
    )
    # in units of the largest code, at which the fused activation clips
    per_unit = 2.0**LOG_FRACTION / math.log(2.0) if front_end.log else 2.0**front_end.fraction
    factor = front_end.factor * (per_unit / 2.0**front_end.factor_fraction / front_end.high)
    offset = front_end.offset / 2.0**front_end.offset_fraction / front_end.high
    x = graph.arithmetic('MUL', x, graph.constant(factor))
    x = graph.arithmetic('ADD', x, graph.constant(offset), activation='RELU_N1_TO_1')
    x = graph.node('QUANTIZE', (x,), x.shape, 'INT8', scale=1.0 / front_end.high)
    return graph.reshape(x, (1, x.shape[1], front_end.filters, 1))


def _bounded(graph, x, low, high):
    """int8 codes, none beyond `low` and `high`."""
    for kind, end in (('MAXIMUM', low), ('MINIMUM', high)):
        bound = graph.constant(np.array([end], np.int8), scale=x.scale)
        options = 'MaximumMinimumOptions', {}
        x = graph.node(kind, (x, bound), x.shape, 'INT8', options=options, scale=x.scale)
    return x


def _layer(graph: Graph, layer: Layer, x: Tensor, block_input: Tensor | None = None) -> Tensor:
    """One convolution, with its rescaling and, if the layer has a residual, the block's input."""
    per_sum, about = layer.rescale.values(), {'out': 'INT8'}
    if layer.residual is not None:  # the block's input counts as much as its scale says
        out_scale = block_input.scale / float(layer.residual.values()[0])
        about['scale'] = out_scale * max(_BEYOND * layer.high / 127.0, 2.0**-10)
    elif layer.low < 0:
        out_scale = about['scale'] = 1.0 / layer.high
        about['activation'] = 'RELU_N1_TO_1'
    else:
        out_scale = about['scale'] = 6.0 / layer.high
        about |= {'activation': 'RELU6', 'zero': -128}
    if layer.kind == 'pointwise':
        codes, axis = layer.weights.T[:, None, None], 0
    elif layer.kind == 'depthwise':
        codes, axis = layer.weights[None], 3
    else:
        codes, axis = np.transpose(layer.weights, (2, 0, 1))[..., None], 0
    scale = per_sum * out_scale / x.scale
    offset = np.round(layer.offset / 2.0**layer.fraction / per_sum)
    offset = np.clip(offset, -(2**31) + 1, 2**31 - 1).astype(np.int32)
    y = graph.conv(
        x,
        graph.constant(np.ascontiguousarray(codes), scale=scale, axis=axis),
        graph.constant(offset, scale=scale * x.scale),
        stride=layer.stride,
        depthwise=layer.kind == 'depthwise',
        **about,
    )
    if layer.residual is None:
        return y
    total = graph.arithmetic('ADD', y, block_input, out='INT8', scale=out_scale)
    return _bounded(graph, total, layer.low, layer.high)


def stored_bits(network: Network) -> dict[str, int]:
    """Bits that a weight of each layer takes in the file, beside its own."""
    return {'frontend': 8} | {
        name: 32 if layer.kind == 'classifier' else 8 for name, layer in network.layers().items()
    }
