"""Models as ONNX: a float one as it is, a quantized one with its codes between Q and DQ nodes.

Both take int16 samples `[batch, samples]` and give float logits `[batch, classes]`.

In the quantized graph activations are the codes of the integer network: every QuantizeLinear and
DequantizeLinear of one has scale 1, and what a runtime multiplies sums by is the scale of the
weights, a value per output channel. Weights of up to four bits are stored as INT4, wider ones as
INT8; ONNX has no container for other widths.
"""

import math

import numpy as np

from kws_jax.deploy.convert import folded, front_end_settings
from kws_jax.deploy.network import LOG_FRACTION, Layer, Network
from kws_jax.frontends.base import MAGNITUDE_FLOOR
from kws_jax.model import Model

OPSET = 21


class _Graph:
    """Nodes and constants in the making; every method returns the name of its output."""

    def __init__(self):
        import onnx

        self.onnx, self.nodes, self.constants = onnx, [], []

    def constant(self, value) -> str:
        """A stored tensor."""
        name = f'c{len(self.constants)}'
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def nibbles(self, value) -> str:
        """A stored INT4 tensor: two values a byte, the first in the lower half."""
        name, value = f'c{len(self.constants)}', np.asarray(value, np.int8)
        low, high = np.pad(value.ravel(), (0, value.size % 2)).reshape(-1, 2).T & 15
        content = (low | high << 4).astype(np.uint8).tobytes()
        kind = self.onnx.TensorProto.INT4
        tensor = self.onnx.helper.make_tensor(name, kind, value.shape, content, raw=True)
        self.constants.append(tensor)
        return name

    def real(self, value) -> str:
        """A stored float32 tensor."""
        return self.constant(np.asarray(value, np.float32))

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        """One node with one output."""
        name = f'{kind.lower()}{len(self.nodes)}'
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def clip(self, x: str, low: float, high: float) -> str:
        return self.node('Clip', x, self.real(low), self.real(high))

    def finish(self, name, logits: str, *, samples: int, classes: int, facts: dict) -> bytes:
        """The whole, checked and serialized."""
        onnx, kinds = self.onnx, self.onnx.TensorProto
        self.nodes.append(onnx.helper.make_node('Identity', [logits], ['logits'], 'logits'))
        graph = onnx.helper.make_graph(
            self.nodes,
            name,
            [onnx.helper.make_tensor_value_info('samples', kinds.INT16, ['batch', samples])],
            [onnx.helper.make_tensor_value_info('logits', kinds.FLOAT, ['batch', classes])],
            self.constants,
        )
        model = onnx.helper.make_model(
            graph,
            producer_name='kws_jax',
            opset_imports=[onnx.helper.make_opsetid('', OPSET)],
            ir_version=10,
        )
        for key, value in facts.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, str(value)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def _image(graph: _Graph, columns: str, spec: dict, filters: int, floor: float) -> str:
    """Responses `[batch, columns, frames]` to the image `[batch, 1, frames, filters]`."""
    x = columns
    if spec['quadrature']:
        starts, ends, axes = (graph.constant(np.array(v, np.int64)) for v in ([0], [filters], [1]))
        cosine = graph.node('Slice', x, starts, ends, axes)
        ends2 = graph.constant(np.array([2 * filters], np.int64))
        sine = graph.node('Slice', x, ends, ends2, axes)
        squares = (graph.node('Mul', part, part) for part in (cosine, sine))
        power = graph.node('Add', graph.node('Add', *squares), graph.real(floor))
        x = graph.node('Sqrt', power)
    elif spec['compression'] == 'relu':
        x = graph.node('Relu', x)
    elif spec['compression'] != 'none':
        x = graph.node('Abs', x)
    if spec['compression'].startswith('log'):
        gain = spec['log_gain'] if spec['compression'] == 'log' else 1.0
        scaled = graph.node('Mul', x, graph.real(gain))
        x = graph.node('Log', graph.node('Add', scaled, graph.real(1.0)))
    x = graph.node('Transpose', x, perm=[0, 2, 1])
    return graph.node('Unsqueeze', x, graph.constant(np.array([1], np.int64)))


def _pads(kernel, causal: bool) -> list[int]:
    (rows, columns), across = kernel, kernel[1] // 2
    above = rows - 1 if causal else rows // 2
    return [above, across, rows - 1 - above, columns - 1 - across]


def from_float(model: Model) -> bytes:
    """A float model as ONNX, its batch norms folded into the convolutions.

    Args:
      model: float.

    Returns:
      The file's content, which onnx's checker has accepted.

    Raises:
      ValueError: the model is quantized, or its front end has no ONNX form.
      ImportError: the package onnx is missing.
    """
    if model.quant is not None:
        raise ValueError('the model is quantized; export it as onnx with its codes (from_network)')
    functions, spec = front_end_settings(model, 'ONNX')
    space = model.architecture.space
    params, averages, graph = model.params, model.averages, _Graph()

    def conv(x, w, part, state, *, stride=(1, 1), groups=1):
        """`w` is `[out, in / groups, kh, kw]`."""
        factor, offset = folded(part, state)
        w = np.asarray(w, np.float64) * factor[:, None, None, None]
        return graph.node(
            'Conv',
            x,
            graph.real(w),
            graph.real(offset),
            strides=list(stride),
            pads=_pads(w.shape[2:], space.causal),
            group=groups,
        )

    def pointwise(x, part, state):
        w = np.asarray(part['w']).T[:, :, None, None]
        return conv(x, w, part, state)

    taps = np.asarray(functions.taps(params['frontend']))
    if functions.gains is not None:
        taps = taps * np.asarray(functions.gains(params['frontend']))[None]
    x = graph.node('Cast', 'samples', to=graph.onnx.TensorProto.FLOAT)
    x = graph.node('Mul', x, graph.real(1 / 32768))
    x = graph.node('Unsqueeze', x, graph.constant(np.array([1], np.int64)))
    x = graph.node('Conv', x, graph.real(taps.T[:, None]), strides=[spec['stride']])
    filters = functions.image_shape[1]
    x = _image(graph, x, spec, filters, MAGNITUDE_FLOOR)
    if functions.normalize:
        factor, offset = folded({}, averages['image'])
        x = graph.node('Add', graph.node('Mul', x, graph.real(factor)), graph.real(offset))
    w = np.transpose(np.asarray(params['stem']['w']), (3, 2, 0, 1))
    x = graph.clip(conv(x, w, params['stem'], averages['stem'], stride=space.stem.stride), 0, 6)
    for layer, choice in zip(space.layers, model.architecture.choices, strict=True):
        if choice.is_identity:
            continue
        own, state, y = params[layer.name], averages[layer.name], x
        if 'expand' in own:
            y = graph.clip(pointwise(y, own['expand'], state['expand']), 0, 6)
        w = np.transpose(np.asarray(own['depthwise']['w']), (2, 0, 1))[:, None]
        stride = (layer.stride, layer.stride)
        y = conv(y, w, own['depthwise'], state['depthwise'], stride=stride, groups=len(w))
        y = pointwise(graph.clip(y, 0, 6), own['project'], state['project'])
        x = graph.node('Add', y, x) if layer.keeps_shape else y
    x = graph.clip(pointwise(x, params['head'], averages['head']), 0, 6)
    x = graph.node('Flatten', graph.node('GlobalAveragePool', x))
    w, b = (np.asarray(params['classifier'][key]) for key in 'wb')
    logits = graph.node('Gemm', x, graph.real(w), graph.real(b))
    return graph.finish(
        'float',
        logits,
        samples=spec['samples'],
        classes=len(model.labels),
        facts={'labels': ','.join(model.labels), 'sample_rate': 16000},
    )


def from_network(network: Network) -> bytes:
    """A quantized model's integer network as ONNX with Q and DQ nodes.

    Args:
      network: from `deploy.from_model`.

    Returns:
      The file's content, which onnx's checker has accepted. As it is written, its logits times
      `1 / logit_step` are those of the integer network, but where float32 rounds a response of the
      front end to another code. onnxruntime computes it so with the session option
      `session.disable_quant_qdq`; by default it takes integer kernels of its own, which round the
      offset of each channel to a whole sum.

    Raises:
      ImportError: the package onnx is missing.
    """
    front_end, graph = network.front_end, _Graph()
    kinds = graph.onnx.TensorProto
    one = graph.real(1.0)
    zeros = {kind: graph.constant(np.zeros((), kind)) for kind in (np.int8, np.uint8)}

    def code(x, low, high):
        """`x` rounded to a code and back."""
        kind = np.int8 if low < 0 else np.uint8
        quantized = graph.node('QuantizeLinear', x, one, zeros[kind])
        if (low, high) not in ((-128, 127), (0, 255)):
            # on codes: onnxruntime takes away what comes before QuantizeLinear
            ends = (graph.constant(np.array(end, kind)) for end in (low, high))
            quantized = graph.node('Clip', quantized, *ends)
        return graph.node('DequantizeLinear', quantized, one, zeros[kind])

    def weights(codes, scale, bits, axis=0):
        stored = graph.nibbles(codes) if bits <= 4 else graph.constant(codes.astype(np.int8))
        zero = np.zeros(len(scale), np.int8)
        zero = graph.nibbles(zero) if bits <= 4 else graph.constant(zero)
        return graph.node('DequantizeLinear', stored, graph.real(scale), zero, axis=axis)

    def conv(layer: Layer, x, block_input=None):
        if layer.kind == 'pointwise':
            codes = layer.weights.T[:, :, None, None]
        else:
            codes = np.transpose(layer.weights, (2, 0, 1))[:, None]
        x = graph.node(
            'Conv',
            x,
            weights(codes, layer.rescale.values(), layer.bits),
            graph.real(layer.offset / 2.0**layer.fraction),
            strides=list(layer.stride),
            pads=_pads(codes.shape[2:], network.causal),
            group=len(codes) if layer.kind == 'depthwise' else 1,
        )
        if layer.residual is not None:
            scale = graph.real(layer.residual.values()[0])
            x = graph.node('Add', x, graph.node('Mul', block_input, scale))
        return code(x, layer.low, layer.high)

    x = graph.node('Cast', 'samples', to=kinds.FLOAT)
    x = graph.node('Unsqueeze', x, graph.constant(np.array([1], np.int64)))
    x = code(
        graph.node('Mul', x, graph.real(front_end.input.values()[0])),
        -front_end.top,
        front_end.top,
    )
    unit = 2.0**-front_end.fraction  # of a response, as log2(1 + response) takes it
    taps = weights(front_end.taps.T[:, None], front_end.columns.values() * unit, front_end.bits)
    x = graph.node('Conv', x, taps, strides=[front_end.stride])
    compression = (
        'log_plain'
        if front_end.log
        else {'relu': 'relu', 'plain': 'none'}.get(front_end.magnitude, 'abs')
    )
    spec = {'quadrature': front_end.pairs, 'compression': compression}
    x = _image(graph, x, spec, front_end.filters, front_end.floor * unit**2)
    per_unit = 2.0**LOG_FRACTION / math.log(2.0) if front_end.log else 2.0**front_end.fraction
    factor = front_end.factor / 2.0**front_end.factor_fraction * per_unit
    x = graph.node('Mul', x, graph.real(factor))
    x = graph.node('Add', x, graph.real(front_end.offset / 2.0**front_end.offset_fraction))
    x = code(x, -front_end.high, front_end.high)
    x = conv(network.stem, x)
    for block in network.blocks:
        y = x if block.expand is None else conv(block.expand, x)
        x = conv(block.project, conv(block.depthwise, y), x)
    x = conv(network.head, x)
    axes = graph.constant(np.array([2, 3], np.int64))
    x = graph.node('ReduceSum', x, axes, keepdims=0)
    last = network.classifier
    # sums of codes times codes are whole: the step comes last, so that nothing is rounded before
    w = weights(last.weights, np.ones(last.weights.shape[1]), last.bits, axis=1)
    x = graph.node('Add', graph.node('MatMul', x, w), graph.real(last.offset))
    logits = graph.node('Mul', x, graph.real(network.logit_step))
    return graph.finish(
        'integers',
        logits,
        samples=network.samples,
        classes=len(network.labels),
        facts={
            'labels': ','.join(network.labels),
            'sample_rate': 16000,
            'logit_step': network.logit_step,
        },
    )


def stored_bits(network: Network) -> dict[str, int]:
    """Bits that a weight of each layer takes in the file, beside its own."""
    sites = {'frontend': network.front_end.bits} | {
        n: la.bits for n, la in network.layers().items()
    }
    return {name: 4 if bits <= 4 else 8 for name, bits in sites.items()}
