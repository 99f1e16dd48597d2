"""The packed file of an integer network: a fixed header, JSON for people, one stream of bits.

All numbers are little-endian. `H` is 16 bits, `I` 32 bits, unsigned.

    0   4s  b'KWSI'
    4   H   version, 2
    6   H   flags: 1 pairs, 2 log, 4 symmetric; bits 3-4 magnitude: 0 abs, 1 relu, 2 plain;
            32 causal: kernels are padded with rows above alone
    8   I   bytes of the file
    12  I   CRC-32 of everything behind it
    16  I   bytes of the JSON text
    20  I   bytes of the bit stream
    24  6H  samples, kernel, stride, filters, classes, blocks
    36  4B  bits of a tap, of a sample code, of an image code; bits behind the point of a response
    40  2B  bits behind the point of factors, of offsets of the image
    42  H   frames of a stream from one decision to the next, a multiple of 8
    44  I   floor under the root of a pair
    48  layers, 16 bytes each: stem; of each block expand (bits 0 if absent), depthwise, project;
        head; classifier

A layer:

    0   H   output channels
    2   2B  kernel along frames and filters
    4   2B  stride along frames and filters
    6   B   bits of a weight
    7   B   bits of an output code (0 for the classifier)
    8   h   lowest output code
    10  h   highest output code
    12  B   1 if the block's input is added
    13  B   1 if two bits are an odd code, see weights
    14  2B  0

Then the JSON text, spaces up to a multiple of 4, and the stream. In the stream a number of n bits
has its lowest bit first, bytes are filled from their lowest bit. It holds, without gaps, the front
end and every layer in order, each as a word of 32 bits, constants, weights:

    word        front end: wide multiplier of a sample
                layer: bits 0-6 base of the multipliers, plus 64; 7-11 fraction of the offsets
    front end   32 bits a column: wide multiplier; 16 bits a filter: factor; then 16 bits: offset
    residual    32 bits where the block's input is added: its wide multiplier
    layer       16 bits a channel: multiplier; then 16 bits a channel: offset
    classifier  32 bits a class: bias
    weights     two's complement of their bits; odd codes, as those of 1 bit are: u for
                2 u - 2^bits + 1, so that 1 bit is -1 or 1, 2 are -3, -1, 1 or 3. Taps column by
                column, half of them where symmetric; a stem and a depthwise layer tap by tap,
                channels inside; pointwise layers and the classifier output by output, inputs
                inside

A multiplier of 16 bits: exponent in the upper five, below it eleven bits behind a leading one; it
stands for the mantissa over `2^(base + exponent)`. A wide one: shift plus 64 in the upper eight
bits, below it 24 bits behind a leading one.

What `costs.stored_bits` counts is the stream.

For storage and transfer the file goes into an xz container (`compress`), which `unpack` reads too:
its range coder finds what weights of few bits leave, and repetition among filters.
"""

import json
import lzma
import struct
import zlib

import numpy as np

from kws_jax.deploy.network import Block, FrontEnd, Layer, Multipliers, Network

MAGIC, VERSION = b'KWSI', 2
_HEAD, _LAYER = struct.Struct('<4sHHIIII6H4B2BHI'), struct.Struct('<H2B2BBBhhBB2x')
_MAGNITUDES = ('abs', 'relu', 'plain')


def _bits_of(values: np.ndarray, width: int) -> np.ndarray:
    """uint8 0 or 1 `[values * width]`, the lowest bit of each first."""
    values = np.asarray(values, np.int64).ravel() & ((1 << width) - 1)
    return ((values[:, None] >> np.arange(width)) & 1).astype(np.uint8).ravel()


def _weight_bits(codes: np.ndarray, width: int, odd: bool = False) -> np.ndarray:
    if odd or width == 1:
        codes = (codes.astype(np.int64) + (1 << width) - 1) // 2
    return _bits_of(codes, width)


def _word(base: int, fraction: int) -> np.ndarray:
    return _bits_of([base + 64 | fraction << 7], 32)


def _wide(multipliers: Multipliers) -> np.ndarray:
    return _bits_of(multipliers.encode_wide(), 32)


def stored_taps(front_end: FrontEnd) -> np.ndarray:
    """Taps as they are stored, column by column."""
    columns = front_end.taps.T
    if not front_end.symmetric:
        return columns.ravel()
    half = (front_end.kernel + 1) // 2
    even = front_end.kernel // 2  # the middle of an odd column is known: 0, or +1 of one bit
    if not front_end.pairs:
        return columns[:, :half].ravel()
    first, second = np.split(columns, 2)
    return np.concatenate([first[:, :half].ravel(), second[:, :even].ravel()])


def taps_of(stored, kernel: int, filters: int, *, pairs, symmetric, bits) -> np.ndarray:
    """int8 `[kernel, columns]` from what `stored_taps` gives."""
    if not symmetric:
        return stored.reshape(-1, kernel).T.astype(np.int8)
    half, even = (kernel + 1) // 2, kernel // 2
    first = stored[: filters * half].reshape(filters, half).T
    taps = np.concatenate([first, first[:even][::-1]])
    if pairs:
        second = stored[filters * half :].reshape(filters, even).T
        middle = np.full((kernel % 2, filters), int(bits == 1))  # one bit has no zero
        taps = np.concatenate([taps, np.concatenate([second, middle, -second[::-1]])], axis=1)
    return taps.astype(np.int8)


def _order(layer: Layer) -> np.ndarray:
    """Weights as they are stored: outputs first where every output sums over all inputs."""
    return layer.weights.T if layer.kind in ('pointwise', 'classifier') else layer.weights


def stream(network: Network) -> bytes:
    """The stream of bits: all that `costs.stored_bits` counts."""
    front_end = network.front_end
    parts = [
        _wide(front_end.input),
        _wide(front_end.columns),
        _bits_of(front_end.factor, 16),
        _bits_of(front_end.offset, 16),
        _weight_bits(stored_taps(front_end), front_end.bits),
    ]
    for layer in network.layers().values():
        if layer.rescale is None:
            parts += [_word(0, 0), _bits_of(layer.offset, 32)]
        else:
            parts += [
                _word(layer.rescale.base, layer.fraction),
                *([] if layer.residual is None else [_wide(layer.residual)]),
                _bits_of(layer.rescale.encode(), 16),
                _bits_of(layer.offset, 16),
            ]
        parts.append(_weight_bits(_order(layer), layer.bits, layer.odd))
    return np.packbits(np.concatenate(parts), bitorder='little').tobytes()


def _layer_header(layer: Layer | None) -> bytes:
    if layer is None:
        return bytes(_LAYER.size)
    kernel = layer.weights.shape[:2] if layer.weights.ndim == 3 else (1, 1)
    out_bits = 0 if layer.kind == 'classifier' else layer.out_bits
    return _LAYER.pack(
        layer.weights.shape[-1],
        *kernel,
        *layer.stride,
        layer.bits,
        out_bits,
        layer.low,
        layer.high,
        layer.residual is not None,
        layer.odd,
    )


def pack(network: Network, facts: dict | None = None, *, text: bool = True) -> bytes:
    """The file of a network.

    Args:
      network: what to store.
      facts: anything JSON can hold, kept beside labels, logit step and names of layers.
      text: whether there is a JSON text; runtimes do without, `unpack` does not.
    """
    front_end = network.front_end
    layers = [network.stem]
    for block in network.blocks:
        layers += [block.expand, block.depthwise, block.project]
    layers += [network.head, network.classifier]
    about = {
        'labels': list(network.labels),
        'logit_step': network.logit_step,
        'layers': [layer and layer.name for layer in layers],
    }
    about = json.dumps(about | (facts or {})).encode() if text else b''
    about += b' ' * (-len(about) % 4)
    bits = stream(network)
    flags = front_end.pairs | front_end.log << 1 | front_end.symmetric << 2
    flags |= _MAGNITUDES.index(front_end.magnitude) << 3 | network.causal << 5
    body = b''.join(map(_layer_header, layers)) + about + bits
    size = _HEAD.size + len(body)

    def head(checksum):
        return _HEAD.pack(
            MAGIC,
            VERSION,
            flags,
            size,
            checksum,
            len(about),
            len(bits),
            network.samples,
            front_end.kernel,
            front_end.stride,
            front_end.filters,
            len(network.labels),
            len(network.blocks),
            front_end.bits,
            front_end.input_bits,
            front_end.out_bits,
            front_end.fraction,
            front_end.factor_fraction,
            front_end.offset_fraction,
            network.decide_every,
            front_end.floor,
        )

    return head(zlib.crc32((head(0) + body)[16:])) + body


def compress(content: bytes) -> bytes:
    """A packed file as xz has it, for storage: programs on a device do not read it."""
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


class _Reader:
    """Numbers out of a stream of bits."""

    def __init__(self, content: bytes):
        self.bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder='little')
        self.at = 0

    def take(self, count: int, width: int) -> np.ndarray:
        """`count` unsigned numbers of `width` bits, int64."""
        end = self.at + count * width
        if end > len(self.bits):
            raise ValueError('the stream ends too soon')
        bits = self.bits[self.at : end].reshape(count, width).astype(np.int64)
        self.at = end
        return (bits << np.arange(width)).sum(axis=1)

    def signed(self, count: int, width: int) -> np.ndarray:
        """The same in two's complement."""
        values = self.take(count, width)
        return values - (values >> (width - 1) << width)

    def weights(self, count: int, width: int, odd: bool = False) -> np.ndarray:
        """Codes of weights."""
        if odd or width == 1:
            return 2 * self.take(count, width) - (1 << width) + 1
        return self.signed(count, width)

    def word(self) -> tuple[int, int]:
        """Base and fraction of a layer."""
        (word,) = self.take(1, 32)
        return int(word & 0x7F) - 64, int(word >> 7 & 0x1F)

    def wide(self, count: int = 1) -> Multipliers:
        """Wide multipliers."""
        return Multipliers.decode_wide(self.take(count, 32))


def unpack(content: bytes) -> tuple[Network, dict]:
    """The network of a file, compressed or not, and its facts.

    Raises:
      ValueError: not a packed network, damaged, cut short, or of another version; says which.
    """
    if content[:6] == b'\xfd7zXZ\x00':
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise ValueError(f'a damaged packed network: {error}') from None
    if len(content) < _HEAD.size or content[:4] != MAGIC:
        raise ValueError('not a packed network (it does not begin with KWSI)')
    (_, version, flags, size, checksum, text_size, bit_size, samples, kernel, stride, filters, _,
     blocks, tap_bits, input_bits, image_bits, fraction, factor_fraction, offset_fraction, every,
     floor) = _HEAD.unpack_from(content)  # fmt: skip
    if version != VERSION:
        raise ValueError(f'a packed network of version {version}; this code reads {VERSION}')
    if size != len(content) or zlib.crc32(content[16:]) != checksum:
        raise ValueError(f'a damaged packed network: {len(content)} bytes of {size}, or altered')
    count = 3 + 3 * blocks
    start = _HEAD.size + count * _LAYER.size
    if start + text_size + bit_size != size:
        raise ValueError('a damaged packed network: its parts do not add up')
    if not text_size:
        raise ValueError('a packed network without its text, as it is inside of a program')
    about = json.loads(content[start : start + text_size])
    reader = _Reader(content[start + text_size :])

    pairs, symmetric = bool(flags & 1), bool(flags & 4)
    columns = filters * (1 + pairs)
    sample, multipliers = reader.wide(), reader.wide(columns)
    factor, offset = reader.signed(filters, 16), reader.signed(filters, 16)
    halves = (kernel + 1) // 2 * filters + pairs * (kernel // 2) * filters
    stored = reader.weights(halves if symmetric else columns * kernel, tap_bits)
    taps = taps_of(stored, kernel, filters, pairs=pairs, symmetric=symmetric, bits=tap_bits)
    front_end = FrontEnd(
        kernel=kernel,
        stride=stride,
        bits=tap_bits,
        taps=taps,
        symmetric=symmetric,
        pairs=pairs,
        magnitude=_MAGNITUDES[flags >> 3 & 3],
        log=bool(flags & 2),
        input=sample,
        top=2 ** (input_bits - 1) - 1,
        input_bits=input_bits,
        columns=multipliers,
        fraction=fraction,
        floor=floor,
        factor=factor.astype(np.int16),
        factor_fraction=factor_fraction,
        offset=offset.astype(np.int16),
        offset_fraction=offset_fraction,
        high=2 ** (image_bits - 1) - 1,
        out_bits=image_bits,
    )

    def layer(index: int, kind: str, channels: int) -> Layer | None:
        name = about['layers'][index]
        values = _LAYER.unpack_from(content, _HEAD.size + index * _LAYER.size)
        out, kh, kw, sh, sw, bits, out_bits, low, high, residual, odd = values
        if bits == 0:
            return None
        base, fraction = reader.word()
        further = reader.wide() if residual else None
        if kind == 'classifier':
            rescale, offset = None, reader.signed(out, 32).astype(np.int32)
        else:
            rescale = Multipliers.decode(reader.take(out, 16), base)
            offset = reader.signed(out, 16).astype(np.int16)
        if kind in ('stem', 'depthwise'):
            weights = reader.weights(kh * kw * out, bits, odd).reshape(kh, kw, out)
        else:
            weights = reader.weights(channels * out, bits, odd).reshape(out, channels).T
        return Layer(
            name=name,
            kind=kind,
            bits=bits,
            weights=weights.astype(np.int8),
            stride=(sh, sw),
            rescale=rescale,
            offset=offset,
            fraction=fraction,
            residual=further,
            low=low,
            high=high,
            out_bits=32 if kind == 'classifier' else out_bits,
            odd=bool(odd),
        )

    stem = layer(0, 'stem', 1)
    channels, made = stem.weights.shape[-1], []
    for i in range(blocks):
        expand = layer(1 + 3 * i, 'pointwise', channels)
        inside = channels if expand is None else expand.weights.shape[-1]
        depthwise = layer(2 + 3 * i, 'depthwise', inside)
        project = layer(3 + 3 * i, 'pointwise', inside)
        channels = project.weights.shape[-1]
        made.append(Block(expand, depthwise, project))
    head = layer(1 + 3 * blocks, 'pointwise', channels)
    classifier = layer(2 + 3 * blocks, 'classifier', head.weights.shape[-1])
    network = Network(
        front_end=front_end,
        stem=stem,
        blocks=tuple(made),
        head=head,
        classifier=classifier,
        samples=samples,
        labels=tuple(about['labels']),
        logit_step=about['logit_step'],
        decide_every=every,
        causal=bool(flags & 32),
    )
    return network, about
