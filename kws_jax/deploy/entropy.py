"""Packed files with their weights entropy-coded, for storage; `decode` gives them back.

    0   4s  b'KWSE'
    4   H   version, 1
    6   H   tensors
    8   I   bytes of the packed file
    12  I   CRC-32 of the packed file
    16  I   bytes of what is stored with DEFLATE: the packed file whose weights are all the same
    20      that; then every tensor, the filter taps first: I, bytes of its code; H each, how often
            every code occurs in 4096; the code

A code is that of a range asymmetric numeral system (rANS, Duda 2013; bytes, as Giesen lays it out
in ryg_rans): 32 bits of state, low byte first, then the bytes that refill it.
"""

import dataclasses
import struct
import zlib

import numpy as np

from kws_jax.deploy import packed
from kws_jax.deploy.network import Block, Network

MAGIC, VERSION = b'KWSE', 1
_HEAD = struct.Struct('<4sHHIII')
_SCALE = 12  # bits of a frequency
_LOWEST = 1 << 23  # of the state between symbols


def _frequencies(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """How often each symbol occurs, in 4096; what occurs at all is at least 1."""
    counts = np.bincount(symbols, minlength=alphabet)
    shares = np.where(counts > 0, np.maximum(counts * (1 << _SCALE) // max(counts.sum(), 1), 1), 0)
    shares[counts.argmax()] += (1 << _SCALE) - shares.sum()
    return shares


def _code(symbols: np.ndarray, shares: np.ndarray) -> bytes:
    starts, state, out = np.concatenate([[0], np.cumsum(shares)]), _LOWEST, bytearray()
    for symbol in symbols[::-1].tolist():
        share = int(shares[symbol])
        while state >= share << (23 - _SCALE + 8):
            out.append(state & 0xFF)
            state >>= 8
        state = (state // share << _SCALE) + state % share + int(starts[symbol])
    return struct.pack('<I', state) + bytes(out[::-1])


def _symbols(content: bytes, shares: np.ndarray, count: int) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(shares)])
    owner = np.repeat(np.arange(len(shares)), shares)
    (state,), at = struct.unpack_from('<I', content), 4
    found, mask = np.empty(count, np.int64), (1 << _SCALE) - 1
    for i in range(count):
        symbol = owner[state & mask]
        found[i] = symbol
        state = int(shares[symbol]) * (state >> _SCALE) + (state & mask) - int(starts[symbol])
        while state < _LOWEST:
            state = state << 8 | content[at]
            at += 1
    return found


def _tensors(network: Network) -> list[tuple[np.ndarray, int, bool]]:
    """Weights in the order of the file: codes, bits, whether they are odd."""
    front_end = network.front_end
    taps = (packed.stored_taps(front_end), front_end.bits, front_end.bits == 1)
    return [taps] + [
        (layer.weights.ravel(), layer.bits, layer.odd or layer.bits == 1)
        for layer in network.layers().values()
    ]


def _to_symbols(codes, bits, odd):
    codes = codes.astype(np.int64)
    return (codes + (1 << bits) - 1) // 2 if odd else codes + (1 << (bits - 1))


def _to_codes(symbols, bits, odd):
    return 2 * symbols - (1 << bits) + 1 if odd else symbols - (1 << (bits - 1))


def _with_tensors(network: Network, codes: list[np.ndarray]) -> Network:
    """The network with other weights, given in the order of `_tensors`."""
    front_end, own = network.front_end, {}
    for name in ('pairs', 'symmetric', 'bits'):
        own[name] = getattr(front_end, name)
    taps = packed.taps_of(codes[0], front_end.kernel, front_end.filters, **own)
    front_end = dataclasses.replace(front_end, taps=taps)
    changed = {
        name: dataclasses.replace(layer, weights=own.astype(np.int8).reshape(layer.weights.shape))
        for (name, layer), own in zip(network.layers().items(), codes[1:], strict=True)
    }
    blocks = tuple(
        Block(*(part and changed[part.name] for part in (b.expand, b.depthwise, b.project)))
        for b in network.blocks
    )
    ends = {name: changed[name] for name in ('stem', 'head', 'classifier')}
    return dataclasses.replace(network, front_end=front_end, blocks=blocks, **ends)


def encode(content: bytes) -> bytes:
    """A packed file with its weights entropy-coded.

    Raises:
      ValueError: as `packed.unpack`.
    """
    network, about = packed.unpack(content)
    tensors, coded = _tensors(network), []
    for codes, bits, odd in tensors:
        symbols = _to_symbols(codes, bits, odd)
        shares = _frequencies(symbols, 1 << bits)
        code = _code(symbols, shares)
        # all of one kind have 4096 of 4096, which 16 bits hold
        coded.append(struct.pack('<I', len(code)) + shares.astype('<u2').tobytes() + code)
    plain = [_to_codes(np.zeros(len(c), np.int64), bits, odd) for c, bits, odd in tensors]
    rest = zlib.compress(packed.pack(_with_tensors(network, plain), about), 9)
    head = _HEAD.pack(MAGIC, VERSION, len(tensors), len(content), zlib.crc32(content), len(rest))
    return head + rest + b''.join(coded)


def decode(content: bytes) -> bytes:
    """The packed file that was encoded, byte for byte.

    Raises:
      ValueError: not such a file, damaged, or of another version; says which.
    """
    if len(content) < _HEAD.size or content[:4] != MAGIC:
        raise ValueError('not an entropy-coded network (it does not begin with KWSE)')
    _, version, count, size, checksum, rest = _HEAD.unpack_from(content)
    if version != VERSION:
        raise ValueError(
            f'an entropy-coded network of version {version}; this code reads {VERSION}'
        )
    try:
        at = _HEAD.size + rest
        network, about = packed.unpack(zlib.decompress(content[_HEAD.size : at]))
        tensors, found = _tensors(network), []
        if count != len(tensors):
            raise ValueError('its tensors are not those of its layers')
        for codes, bits, odd in tensors:
            (length,) = struct.unpack_from('<I', content, at)
            shares = np.frombuffer(content, '<u2', 1 << bits, at + 4).astype(np.int64)
            at += 4 + 2 * (1 << bits)
            if shares.sum() != 1 << _SCALE or at + length > len(content):
                raise ValueError('its frequencies do not add up')
            symbols = _symbols(content[at : at + length], shares, len(codes))
            found.append(_to_codes(symbols, bits, odd))
            at += length
        made = packed.pack(_with_tensors(network, found), about)
        if at != len(content) or len(made) != size or zlib.crc32(made) != checksum:
            raise ValueError('its parts do not add up')
    except (zlib.error, struct.error, IndexError, ValueError) as error:
        raise ValueError(f'a damaged entropy-coded network: {error}') from None
    return made
