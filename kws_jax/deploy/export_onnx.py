"""Models as ONNX: a float one as it is, a quantized one with its codes between Q and DQ nodes.

Both take int16 samples `[batch, samples]` and give float logits `[batch, classes]`.

In the quantized graph weights and activations are the codes of the integer network: every
QuantizeLinear and DequantizeLinear has scale 1. Sums of products are whole numbers below 2^24,
which float32 holds; they become the next layer's codes in float64, by the very multipliers and
offsets of the integer network. So a runtime need only compute as IEEE 754 says to give its logits,
bit for bit. Weights of up to four bits are stored as INT4, wider ones as INT8; ONNX has no
container for other widths.
"""

import math

import numpy as np

from kws_jax.deploy.convert import folded, front_end_settings
from kws_jax.deploy.network import LOG_FRACTION, FrontEnd, Layer, Network, log_table
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

    def finish(
        self, name, logits: str, *, samples: int, classes: int, facts: dict, integers: str = ''
    ) -> bytes:
        """The whole, checked and serialized."""
        onnx, kinds = self.onnx, self.onnx.TensorProto
        outputs = []
        for output, of, kind in (
            ('logits', logits, kinds.FLOAT),
            ('integers', integers, kinds.INT32),
        ):
            if of:
                self.nodes.append(onnx.helper.make_node('Identity', [of], [output], output))
                info = onnx.helper.make_tensor_value_info(output, kind, ['batch', classes])
                outputs.append(info)
        graph = onnx.helper.make_graph(
            self.nodes,
            name,
            [onnx.helper.make_tensor_value_info('samples', kinds.INT16, ['batch', samples])],
            outputs,
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


class _Whole:
    """Arithmetic on whole numbers in float64 nodes: exact, as all of them stay below 2^53."""

    def __init__(self, graph: _Graph):
        self.graph, self.kinds = graph, graph.onnx.TensorProto

    def exact(self, value) -> str:
        """A stored float64 tensor."""
        return self.graph.constant(np.asarray(value, np.float64))

    def cast(self, x, kind='DOUBLE') -> str:
        return self.graph.node('Cast', x, to=getattr(self.kinds, kind))

    def times(self, x, value) -> str:
        return self.graph.node('Mul', x, self.exact(value))

    def plus(self, x, value) -> str:
        return self.graph.node('Add', x, self.exact(value))

    def rounded(self, x) -> str:
        """`floor(x + 1/2)`."""
        return self.graph.node('Floor', self.plus(x, 0.5))

    def bounded(self, x, low, high) -> str:
        return self.graph.node('Clip', x, self.exact(low), self.exact(high))

    def where(self, condition, x, y) -> str:
        return self.graph.node('Where', condition, x, y)

    def square_root(self, x) -> str:
        """`floor(sqrt(x))` of int64, as `execute.integer_sqrt` has it."""
        node, one = self.graph.node, self.graph.constant(np.int64(1))
        root = self.cast(node('Sqrt', self.cast(x)), 'INT64')
        less = node('Sub', root, one)
        root = self.where(node('Greater', node('Mul', root, root), x), less, root)
        more = node('Add', root, one)
        return self.where(node('LessOrEqual', node('Mul', more, more), x), more, root)

    def log2(self, x, fraction: int) -> str:
        """`2^16 log2(x / 2^fraction)`, x from 1 on, as `execute.log2` has it."""
        node = self.graph.node
        powers = self.exact(2.0 ** np.arange(54))
        high = node('Floor', self.times(node('Log', x), 1 / math.log(2.0)))
        high = self.bounded(high, 0, 52)  # of the leading one; the logarithm may be one off
        power = node('Gather', powers, self.cast(high, 'INT64'))
        high = self.where(node('Greater', power, x), self.plus(high, -1.0), high)
        power = node('Gather', powers, self.cast(self.plus(high, 1.0), 'INT64'))
        high = self.where(node('LessOrEqual', power, x), self.plus(high, 1.0), high)
        scale = node('Gather', self.exact(2.0 ** (24.0 - np.arange(54))), self.cast(high, 'INT64'))
        behind = self.plus(node('Floor', node('Mul', x, scale)), -(2.0**24))
        at = node('Floor', self.times(behind, 2.0**-16))
        rest = node('Sub', behind, self.times(at, 2.0**16))
        table, at = self.exact(log_table()), self.cast(at, 'INT64')
        first = node('Gather', table, at)
        second = node('Gather', table, node('Add', at, self.graph.constant(np.int64(1))))
        between = node('Mul', node('Sub', second, first), rest)
        whole = node('Add', first, self.rounded(self.times(between, 2.0**-16)))
        return node('Add', whole, self.times(self.plus(high, -fraction), 2.0**LOG_FRACTION))

    def image(self, front_end: FrontEnd, sums: str) -> str:
        """Sums `[batch, columns, frames]` to the image's codes, as `execute.image_row` has it."""
        node, filters = self.graph.node, front_end.filters

        def each(values):
            return np.asarray(values, np.float64)[:, None]

        x = self.rounded(self.times(self.cast(sums), each(front_end.columns.values())))
        if front_end.pairs:
            ends = [self.graph.constant(np.array([v], np.int64)) for v in (0, filters, 2 * filters)]
            axis, x = self.graph.constant(np.array([1], np.int64)), self.cast(x, 'INT64')
            parts = [node('Slice', x, ends[i], ends[i + 1], axis) for i in range(2)]
            power = node('Add', *(node('Mul', part, part) for part in parts))
            floor = self.graph.constant(np.int64(front_end.floor))
            x = self.cast(self.square_root(node('Add', power, floor)))
        elif front_end.magnitude != 'plain':
            x = node({'abs': 'Abs', 'relu': 'Relu'}[front_end.magnitude], x)
        if front_end.log:
            x = self.log2(self.plus(x, 2.0**front_end.fraction), front_end.fraction)
        x = self.times(x, each(front_end.factor / 2.0**front_end.factor_fraction))
        x = self.rounded(self.plus(x, each(front_end.offset / 2.0**front_end.offset_fraction)))
        return self.bounded(x, -front_end.high, front_end.high)

    def rescale(self, layer: Layer, sums: str, block_input: str | None) -> str:
        """Sums `[batch, channels, h, w]` to codes, as `execute.rescale` has it."""

        def each(values):
            return np.asarray(values, np.float64)[:, None, None]

        largest = layer.rescale.shift + np.log2(
            np.abs(layer.offset) / 2.0**layer.fraction + 2.0 * (layer.high - layer.low) + 1.0
        )
        if largest.max() > 52:
            raise ValueError(f'{layer.name}: its multipliers are too small to be exact in ONNX')
        x = self.times(self.cast(sums), each(layer.rescale.values()))
        x = self.plus(x, each(layer.offset / 2.0**layer.fraction))
        if layer.residual is not None:
            unit = 2.0 ** layer.rescale.shift.astype(np.float64)
            more = self.times(self.cast(block_input), each(layer.residual.values()[0] * unit))
            more = self.times(self.graph.node('Floor', more), each(1 / unit))
            x = self.graph.node('Add', x, more)
        return self.bounded(self.rounded(x), layer.low, layer.high)


def from_network(network: Network) -> bytes:
    """A quantized model's integer network as ONNX with Q and DQ nodes.

    Args:
      network: from `deploy.from_model`.

    Returns:
      The file's content, which onnx's checker has accepted. Its output `integers`, int32
      `[batch, classes]`, are the logits of the integer network bit for bit; `logits` are these
      times the step.

    Raises:
      ValueError: a layer's numbers are out of the range in which float32 (sums) or float64 (the
        rest) are exact; names it.
      ImportError: the package onnx is missing.
    """
    network.check_float32('ONNX')
    front_end, graph = network.front_end, _Graph()
    whole = _Whole(graph)
    one = graph.real(1.0)
    zeros = {kind: graph.constant(np.zeros((), kind)) for kind in (np.int8, np.uint8)}

    def code(x, low):
        """Codes as a tensor of a byte each, and back."""
        zero = zeros[np.int8 if low < 0 else np.uint8]
        quantized = graph.node('QuantizeLinear', whole.cast(x, 'FLOAT'), one, zero)
        return graph.node('DequantizeLinear', quantized, one, zero)

    def weights(codes, bits):
        kind = graph.nibbles if bits <= 4 else lambda v: graph.constant(v.astype(np.int8))
        return graph.node('DequantizeLinear', kind(codes), one, kind(np.zeros((), np.int8)))

    def conv(layer: Layer, x, block_input=None):
        if layer.kind == 'pointwise':
            codes = layer.weights.T[:, :, None, None]
        else:
            codes = np.transpose(layer.weights, (2, 0, 1))[:, None]
        sums = graph.node(
            'Conv',
            x,
            weights(codes, layer.bits),
            strides=list(layer.stride),
            pads=_pads(codes.shape[2:], network.causal),
            group=len(codes) if layer.kind == 'depthwise' else 1,
        )
        return code(whole.rescale(layer, sums, block_input), layer.low)

    x = graph.node('Unsqueeze', whole.cast('samples'), graph.constant(np.array([1], np.int64)))
    x = whole.rounded(whole.times(x, front_end.input.values()[0]))
    x = code(whole.bounded(x, -front_end.top, front_end.top), -1)
    taps = weights(front_end.taps.T[:, None], front_end.bits)
    x = whole.image(front_end, graph.node('Conv', x, taps, strides=[front_end.stride]))
    x = graph.node('Transpose', x, perm=[0, 2, 1])
    x = code(graph.node('Unsqueeze', x, graph.constant(np.array([1], np.int64))), -1)
    x = conv(network.stem, x)
    for block in network.blocks:
        y = x if block.expand is None else conv(block.expand, x)
        x = conv(block.project, conv(block.depthwise, y), x)
    x = conv(network.head, x)
    x = graph.node('ReduceSum', x, graph.constant(np.array([2, 3], np.int64)), keepdims=0)
    last = network.classifier
    w = whole.cast(weights(last.weights, last.bits))
    x = whole.plus(graph.node('MatMul', whole.cast(x), w), last.offset)
    return graph.finish(
        'integers',
        whole.cast(whole.times(x, network.logit_step), 'FLOAT'),
        samples=network.samples,
        classes=len(network.labels),
        facts={
            'labels': ','.join(network.labels),
            'sample_rate': 16000,
            'logit_step': network.logit_step,
        },
        integers=whole.cast(x, 'INT32'),
    )


def stored_bits(network: Network) -> dict[str, int]:
    """Bits that a weight of each layer takes in the file, beside its own."""
    sites = {'frontend': network.front_end.bits} | {
        n: la.bits for n, la in network.layers().items()
    }
    return {name: 4 if bits <= 4 else 8 for name, bits in sites.items()}
