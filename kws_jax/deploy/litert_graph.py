"""LiteRT flatbuffers in the making: tensors and operations, written with the package's schema."""

import dataclasses

import numpy as np

# of operations whose first version has not all that is used here
_VERSIONS = {
    'CONV_2D': 4, 'DEPTHWISE_CONV_2D': 3, 'ADD': 2, 'PAD': 2, 'QUANTIZE': 2, 'DEQUANTIZE': 2,
    'MAXIMUM': 2, 'MINIMUM': 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: where it is listed, and what a code of it is worth."""

    index: int
    shape: tuple[int, ...]
    kind: str
    scale: float = 0.0


class Graph:
    """Operations and tensors in the making; every operation returns its output."""

    def __init__(self, causal: bool):
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.codes, self.causal = schema, [], causal
        self.graph, self.model = schema.SubGraphT(), schema.ModelT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.buffers = [schema.BufferT()]  # the first one is empty

    def tensor(self, shape, kind, *, scale=None, zero=0, axis=0, data=None) -> Tensor:
        """A tensor, stored if there is `data`; `scale` a number or one per slice along `axis`."""
        made = self.schema.TensorT()
        made.name = f't{len(self.graph.tensors)}'
        made.shape, made.type = list(shape), getattr(self.schema.TensorType, kind)
        made.shapeSignature = None
        made.buffer = 0
        if data is not None:
            stored = self.schema.BufferT()
            stored.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(stored)
        if scale is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(scale).astype(np.float32)
            made.quantization.zeroPoint = np.full(np.size(scale), zero, np.int64)
            made.quantization.quantizedDimension = axis
        self.graph.tensors.append(made)
        index = len(self.graph.tensors) - 1
        return Tensor(
            index, tuple(shape), kind, float(np.ravel(scale)[0]) if scale is not None else 0.0
        )

    def constant(self, value, **about) -> Tensor:
        """A stored tensor; float64 becomes float32."""
        value = np.asarray(value)
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        return self.tensor(value.shape, value.dtype.name.upper(), data=value, **about)

    def node(self, kind, inputs, shape, out='FLOAT32', *, options=None, outputs=1, **about):
        """One operation; `about` the output as for `tensor`, `options` by their schema name."""
        schema, op = self.schema, self.schema.OperatorT()
        if kind not in self.codes:
            self.codes.append(kind)
        op.opcodeIndex = self.codes.index(kind)
        op.inputs = [tensor.index for tensor in inputs]
        made = [self.tensor(shape, out, **about) for _ in range(outputs)]
        op.outputs = [tensor.index for tensor in made]
        if options is not None:
            name, values = options
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            op.builtinOptions = getattr(schema, f'{name}T')()
            for key, value in values.items():
                setattr(op.builtinOptions, key, value)
        self.graph.operators.append(op)
        return made[0] if outputs == 1 else made

    def activation(self, name) -> int:
        """The schema's number of a fused activation."""
        return getattr(self.schema.ActivationFunctionType, name)

    def arithmetic(self, kind, a, b, *, activation='NONE', **about) -> Tensor:
        """ADD, SUB or MUL."""
        options = f'{kind.title()}Options', {'fusedActivationFunction': self.activation(activation)}
        return self.node(kind, (a, b), a.shape, options=options, **about)

    def reshape(self, x, shape) -> Tensor:
        """The same values in another shape of the same batch."""
        of_any_batch = [-1, *shape[1:]]
        about = {'scale': x.scale} if x.scale else {}
        return self.node(
            'RESHAPE',
            (x, self.constant(np.array(of_any_batch, np.int32))),
            shape,
            x.kind,
            options=('ReshapeOptions', {'newShape': of_any_batch}),
            **about,
        )

    def conv(self, x, w, bias, *, stride, depthwise=False, same=True, activation='NONE', **about):
        """`w` `[out, kh, kw, in]`, or `[1, k, k, channels]` if `depthwise`; out = ceil(in / stride)
        with half a kernel of padding before (in causal networks a whole one above), if `same`;
        none otherwise."""
        kernel, channels = w.shape[1:3], w.shape[3 if depthwise else 0]
        padding = 'VALID'
        if same:
            size = [-(-n // s) for n, s in zip(x.shape[1:3], stride, strict=True)]
            needed = [
                max((out - 1) * s + k - n, 0)
                for out, s, k, n in zip(size, stride, kernel, x.shape[1:3], strict=True)
            ]
            before = [k // 2 for k in kernel]
            if self.causal:
                before[0] = kernel[0] - 1
            if all(n // 2 == k for n, k in zip(needed, before, strict=True)):
                padding = 'SAME'
            else:  # an even extent is padded on its far side first
                x = self._padded(x, [(k, max(n - k, 0)) for n, k in zip(needed, before)])
        else:
            size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel, stride, strict=True)]
        options = {
            'padding': getattr(self.schema.Padding, padding),
            'strideH': stride[0],
            'strideW': stride[1],
            'fusedActivationFunction': self.activation(activation),
        }
        kind = 'CONV_2D'
        if depthwise:
            kind, options['depthMultiplier'] = 'DEPTHWISE_CONV_2D', 1
        name = 'DepthwiseConv2DOptions' if depthwise else 'Conv2DOptions'
        shape = (x.shape[0], *size, channels)
        return self.node(kind, (x, w, bias), shape, options=(name, options), **about)

    def _padded(self, x, rows_and_columns):
        before_after = [(0, 0), *rows_and_columns, (0, 0)]
        shape = [n + sum(more) for n, more in zip(x.shape, before_after, strict=True)]
        old = self.graph.tensors[x.index].quantization
        about = {} if old is None else {'scale': x.scale, 'zero': int(old.zeroPoint[0])}
        inputs = x, self.constant(np.array(before_after, np.int32))
        return self.node('PAD', inputs, shape, x.kind, options=('PadOptions', {}), **about)

    def finish(self, samples: Tensor, *, description: str, facts: dict, **outputs: Tensor) -> bytes:
        """The flatbuffer, with its outputs by name."""
        import flatbuffers

        schema = self.schema
        self.graph.inputs = [samples.index]
        self.graph.outputs = [tensor.index for tensor in outputs.values()]
        for name, tensor in {'samples': samples, **outputs}.items():
            self.graph.tensors[tensor.index].name = name
        self.graph.name = 'main'
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.description = description
        self.model.operatorCodes, self.model.metadata = [], []
        for kind in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = _VERSIONS.get(kind, 1)
            self.model.operatorCodes.append(code)
        for name, value in facts.items():
            entry, stored = schema.MetadataT(), schema.BufferT()
            stored.data = np.frombuffer(str(value).encode(), np.uint8)
            entry.name, entry.buffer = name, len(self.model.buffers)
            self.model.buffers.append(stored)
            self.model.metadata.append(entry)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), file_identifier=b'TFL3')
        return bytes(builder.Output())
