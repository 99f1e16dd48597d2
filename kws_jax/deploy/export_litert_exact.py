"""A quantized model as a LiteRT (TensorFlow Lite) flatbuffer that gives its integers bit for bit.

Sums of products are whole numbers below 2^24, which the float32 kernels hold exactly; all else is
done in int64 and int32, of which LiteRT has multiplication, addition and comparison. A shift of 64
bits is a multiplication that brings what is wanted into the upper half, which is then taken. An
image code is the number of thresholds that the filter's response has reached.

Slower than `export_litert.from_network`, whose int8 kernels round some things otherwise; LiteRT for
Microcontrollers lacks some of these operations.
"""

import numpy as np

from kws_jax.deploy.execute import image_code
from kws_jax.deploy.litert_graph import Graph, Tensor
from kws_jax.deploy.network import FrontEnd, Layer, Network, magnitudes

_NEVER = 2**62  # a threshold that no response, or square of one, reaches


class _Whole:
    """Arithmetic on whole numbers, one constant a channel (the last axis)."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def cast(self, x: Tensor, kind: str) -> Tensor:
        return x if x.kind == kind else self.graph.node('CAST', (x,), x.shape, kind)

    def of(self, kind, a: Tensor, b) -> Tensor:
        """MUL, ADD or SUB of two tensors, or of one and constants of its type."""
        if not isinstance(b, Tensor):
            b = self.graph.constant(np.asarray(b, a.kind.lower()))
        return self.graph.arithmetic(kind, a, b, out=a.kind)

    def shifted(self, x: Tensor, shift) -> Tensor:
        """`floor(x / 2^shift)` of int64, as int32, which must hold it; shifts from 0 on."""
        up = np.maximum(32 - np.asarray(shift), 0)
        if up.any():
            x = self.of('MUL', x, np.int64(1) << up)
        halves = self.graph.node('BITCAST', (x,), (*x.shape, 2), 'INT32')
        upper = self.graph.constant(np.array(1, np.int32))
        options = 'GatherOptions', {'axis': len(x.shape), 'batchDims': 0}
        x = self.graph.node('GATHER', (halves, upper), x.shape, 'INT32', options=options)
        down = np.maximum(np.asarray(shift) - 32, 0)
        if down.any():
            x = self.graph.node(
                'RIGHT_SHIFT', (x, self.graph.constant(down.astype(np.int32))), x.shape, 'INT32'
            )
        return x

    def bounded(self, x: Tensor, low: int, high: int) -> Tensor:
        for kind, end in (('MAXIMUM', low), ('MINIMUM', high)):
            bound = self.graph.constant(np.array([end], np.int32))
            x = self.graph.node(
                kind, (x, bound), x.shape, 'INT32', options=('MaximumMinimumOptions', {})
            )
        return x

    def scaled(self, x: Tensor, multipliers, most, name: str) -> Tensor:
        """`floor(x * multipliers + 1/2)` of sums up to `most`."""
        mantissa, shift = multipliers.mantissa, multipliers.shift
        half = np.int64(1) << (shift - 1)
        _check(name, most * mantissa.astype(object) + half, shift)
        x = self.of('MUL', self.cast(x, 'INT64'), mantissa)
        return self.shifted(self.of('ADD', x, half), shift)

    def summed(self, x: Tensor, axes, shape, *, keep: bool) -> Tensor:
        axes = self.graph.constant(np.array(axes, np.int32))
        options = 'ReducerOptions', {'keepDims': keep}
        return self.graph.node('SUM', (x, axes), shape, x.kind, options=options)

    def weights(self, codes) -> Tensor:
        """Codes, a byte each in the file, as float32."""
        stored = self.graph.constant(np.ascontiguousarray(codes).astype(np.int8), scale=1.0)
        return self.graph.node('DEQUANTIZE', (stored,), stored.shape)


def _check(name, value, shift):
    """Raises ValueError where `value` in 64 bits, or what a shift makes of it in 32, is too big."""
    up = np.maximum(32 - np.asarray(shift), 0).astype(object)
    if np.max(np.abs(value) * 2**up) >= 2**63:
        raise ValueError(f'{name}: its sums are too large to be exact in LiteRT')


def thresholds(front_end: FrontEnd) -> np.ndarray:
    """The least response at which an image code is more than the one before, int64 `[filters,
    codes - 1]`; `2^62` where none is.

    Raises:
      ValueError: codes that fall with the response.
    """
    if front_end.factor.min() < 0:
        raise ValueError('frontend: image codes that fall with the response have no LiteRT form')
    wanted = np.arange(-front_end.high + 1, front_end.high + 1)
    shape = (len(wanted), front_end.filters)
    signed = front_end.magnitude == 'plain' and not front_end.pairs
    low, high = (np.full(shape, end, np.int64) for end in (-(2**31) * signed, 2**31))
    never = image_code(front_end, high) < wanted[:, None]
    while (low < high).any():
        middle = (low + high) >> 1
        reached = image_code(front_end, middle) >= wanted[:, None]
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return np.where(never, _NEVER, low).T


def _image(graph: Graph, whole: _Whole, front_end: FrontEnd, samples: Tensor):
    """Codes of the image, int32 `[1, frames, filters, 1]`."""
    x = whole.scaled(samples, front_end.input, 32768, 'input')
    x = whole.cast(whole.bounded(x, -front_end.top, front_end.top), 'FLOAT32')
    x = graph.reshape(x, (1, samples.shape[1], 1, 1))
    taps, none = front_end.taps, graph.constant(np.zeros(front_end.taps.shape[1]))
    w = whole.weights(taps.T[:, :, None, None])
    x = graph.conv(x, w, none, stride=(front_end.stride, 1), same=False)
    most = magnitudes(taps) * front_end.top
    x = whole.scaled(x, front_end.columns, most, 'frontend')
    shape = (1, x.shape[1], front_end.filters, 1)
    least = thresholds(front_end)
    if front_end.pairs:
        half = (*x.shape[:3], front_end.filters)
        axis, options = graph.constant(np.array(3, np.int32)), ('SplitOptions', {'numSplits': 2})
        parts = graph.node('SPLIT', (axis, x), half, 'INT32', options=options, outputs=2)
        parts = [whole.cast(part, 'INT64') for part in parts]
        x = whole.of('ADD', *(whole.of('MUL', part, part) for part in parts))
        # the root of a whole number reaches a whole number where that reaches its square
        least = np.where(least == _NEVER, _NEVER, least**2 - front_end.floor)
    elif front_end.magnitude == 'abs':
        x = graph.node('ABS', (x,), x.shape, 'INT32')
    elif front_end.magnitude == 'relu':
        x = whole.bounded(x, 0, 2**31 - 1)
    x = graph.reshape(whole.cast(x, 'INT64'), shape)
    reached = graph.node(
        'GREATER_EQUAL',
        (x, graph.constant(least[None, None])),
        (*shape[:3], least.shape[1]),
        'BOOL',
        options=('GreaterEqualOptions', {}),
    )
    count = whole.summed(whole.cast(reached, 'INT32'), [3], shape, keep=True)
    return whole.of('ADD', count, [-front_end.high])


def _layer(graph: Graph, whole: _Whole, layer: Layer, x: Tensor, top: int, block_input=None):
    """Codes of one layer's output, int32; `top` is the largest code of `x`."""
    if layer.kind == 'pointwise':
        codes = layer.weights.T[:, None, None]
    elif layer.kind == 'depthwise':
        codes = layer.weights[None]
    else:
        codes = np.transpose(layer.weights, (2, 0, 1))[..., None]
    channels = layer.weights.shape[-1]
    sums = graph.conv(
        whole.cast(x, 'FLOAT32'),
        whole.weights(codes),
        graph.constant(np.zeros(channels)),
        stride=layer.stride,
        depthwise=layer.kind == 'depthwise',
    )
    most = magnitudes(layer.weights) * top
    shift, mantissa = layer.rescale.shift, layer.rescale.mantissa
    added = (layer.offset.astype(np.int64) << (shift - layer.fraction)) + (
        np.int64(1) << (shift - 1)
    )
    if layer.residual is None:
        _check(layer.name, most * mantissa + np.abs(added), shift)
        x = whole.of('ADD', whole.of('MUL', whole.cast(sums, 'INT64'), mantissa), added)
        return whole.bounded(whole.shifted(x, shift), layer.low, layer.high)
    # the block's input has bits behind those of the sums, which are cut off; both are then shifted
    apart = int(layer.residual.shift[0]) - shift
    behind, before = np.maximum(apart, 0), np.maximum(-apart, 0)
    unit, scale = np.int64(1) << behind, int(layer.residual.mantissa[0])
    largest = (most * mantissa + np.abs(added)) * unit.astype(object)
    largest = largest + (top * 256 * scale) * 2 ** before.astype(object)
    _check(layer.name, largest, shift + behind)
    more = whole.of('MUL', whole.cast(block_input, 'INT64'), np.full(channels, scale))
    if behind.any():
        cut = graph.node('FLOOR_MOD', (more, graph.constant(unit)), more.shape, 'INT64')
        more = whole.of('SUB', more, cut)
    if before.any():
        more = whole.of('MUL', more, np.int64(1) << before)
    x = whole.of('MUL', whole.cast(sums, 'INT64'), mantissa * unit)
    x = whole.of('ADD', whole.of('ADD', x, added * unit), more)
    return whole.bounded(whole.shifted(x, shift + behind), layer.low, layer.high)


def from_network(network: Network) -> bytes:
    """A quantized model's integer network as a LiteRT flatbuffer.

    Args:
      network: from `deploy.from_model`.

    Returns:
      A flatbuffer whose output `integers`, int32 `[batch, classes]`, are the logits of the integer
      network bit for bit; `logits` are these times the step.

    Raises:
      ValueError: a layer's sums do not fit float32, or its numbers 64 bits; names it.
      ImportError: the package ai-edge-litert is missing.
    """
    network.check_float32('LiteRT')
    front_end, graph = network.front_end, Graph(network.causal)
    whole = _Whole(graph)
    samples = graph.tensor((1, network.samples), 'INT16')
    x = _image(graph, whole, front_end, samples)
    x = _layer(graph, whole, network.stem, x, front_end.high)
    top = network.stem.high
    for block in network.blocks:
        y, inside = x, top
        if block.expand is not None:
            y, inside = _layer(graph, whole, block.expand, x, top), block.expand.high
        y = _layer(graph, whole, block.depthwise, y, inside)
        x = _layer(graph, whole, block.project, y, block.depthwise.high, x)
        top = max(block.project.high, -block.project.low)
    x = _layer(graph, whole, network.head, x, top)
    # codes added up over the map are too large for products in float32
    last, channels, classes = network.classifier, x.shape[3], len(network.labels)
    x = whole.cast(whole.summed(x, [1, 2], (1, channels), keep=False), 'INT64')
    w = whole.cast(graph.constant(last.weights.astype(np.int8)), 'INT64')
    options = 'MulOptions', {'fusedActivationFunction': graph.activation('NONE')}
    inputs = graph.reshape(x, (1, channels, 1)), w
    x = graph.node('MUL', inputs, (1, channels, classes), 'INT64', options=options)
    x = whole.cast(whole.summed(x, [1], (1, classes), keep=False), 'INT32')
    integers = whole.of('ADD', x, last.offset)
    logits = whole.of('MUL', whole.cast(integers, 'FLOAT32'), [network.logit_step])
    facts = {
        'labels': ','.join(network.labels),
        'sample_rate': 16000,
        'logit_step': network.logit_step,
    }
    return graph.finish(
        samples, description='kws_jax, exact', facts=facts, logits=logits, integers=integers
    )
