"""The integer network: whole numbers, small constants per channel, nothing else.

Values of an activation are *codes*: `code * step` is what the trained network has there. A layer
adds up products of codes and weights in 32 bits; its `rescale` turns the sum into a code of its
output.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

MANTISSA_BITS = 11  # stored; the leading one is not
WIDE_BITS = 24  # the same of a multiplier that has 32 bits to itself
LARGEST_EXPONENT = 24  # five bits would hold 31; what is smaller is as good as nothing
LOG_FRACTION = 16  # bits behind the point of a logarithm
LOG_TABLE_BITS = 8
FRAMES_AT_ONCE = 8  # that a stream computes


def log_table() -> np.ndarray:
    """`2^16 log2(1 + i / 256)` rounded, int32 `[257]`: what every runtime interpolates."""
    size = 1 << LOG_TABLE_BITS
    return np.round(2.0**LOG_FRACTION * np.log2(1.0 + np.arange(size + 1) / size)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """Positive real numbers as `mantissa / 2^(base + exponent)`.

    Attributes:
      mantissa: int64 `[channels]` in `2^11 .. 2^12 - 1`, or `2^24 .. 2^25 - 1` of wide ones.
      exponent: int64 `[channels]`, from 0 on.
      base: added to every exponent; may be negative.
    """

    mantissa: np.ndarray
    exponent: np.ndarray
    base: int

    @property
    def shift(self) -> np.ndarray:
        """`base + exponent`."""
        return self.base + self.exponent

    def values(self) -> np.ndarray:
        """The numbers, float64."""
        return self.mantissa / 2.0**self.shift

    def encode(self) -> np.ndarray:
        """uint16: exponent in the upper five bits, mantissa without its leading one below."""
        low = self.mantissa - (1 << MANTISSA_BITS)
        return (self.exponent << MANTISSA_BITS | low).astype(np.uint16)

    @classmethod
    def decode(cls, words: np.ndarray, base: int) -> 'Multipliers':
        """The inverse of `encode`."""
        words = words.astype(np.int64)
        low = words & ((1 << MANTISSA_BITS) - 1)
        return cls(low + (1 << MANTISSA_BITS), words >> MANTISSA_BITS, base)

    def encode_wide(self) -> np.ndarray:
        """uint32: shift plus 64 in the upper eight bits; mantissa, of `WIDE_BITS`, below."""
        low = self.mantissa - (1 << WIDE_BITS)
        return ((self.shift + 64) << WIDE_BITS | low).astype(np.uint32)

    @classmethod
    def decode_wide(cls, words: np.ndarray) -> 'Multipliers':
        """The inverse of `encode_wide`."""
        words = words.astype(np.int64)
        low = words & ((1 << WIDE_BITS) - 1)
        return cls(low + (1 << WIDE_BITS), words >> WIDE_BITS, -64)

    @classmethod
    def nearest(cls, values: np.ndarray, bits: int = MANTISSA_BITS) -> 'Multipliers':
        """The multipliers nearest to positive `values`; too small ones become the least there is.

        `bits` are those of the mantissa behind its leading one.

        >>> float(Multipliers.nearest(np.array([0.75])).values()[0])
        0.75
        """
        values = np.maximum(np.asarray(values, np.float64), 1e-30)
        shift = bits - np.floor(np.log2(values)).astype(np.int64)
        mantissa = np.round(values * 2.0**shift).astype(np.int64)
        over = mantissa == 1 << (bits + 1)
        mantissa, shift = np.where(over, mantissa >> 1, mantissa), np.where(over, shift - 1, shift)
        base = int(shift.min())
        exponent = shift - base
        tiny = exponent > LARGEST_EXPONENT
        mantissa = np.where(tiny, 1 << bits, mantissa)
        return cls(mantissa, np.where(tiny, LARGEST_EXPONENT, exponent), base)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or the classifier.

    Attributes:
      name: site of the weights and of the output (`costs.weight_sites`).
      kind: `stem`, `pointwise`, `depthwise` or `classifier`.
      bits: of a weight.
      weights: int8 codes; stem `[kh, kw, out]`, pointwise and classifier `[in, out]`, depthwise
        `[k, k, channels]`.
      stride: along frames and filters.
      rescale: sum to output code; None for the classifier.
      offset: int16 `[out]` in units of `2^-fraction` output codes; int32 bias of a classifier.
      fraction: of the offsets.
      residual: wide multiplier (one) of the block's input, added before rounding; None without.
      low, high: bounds of the output code.
      out_bits: bits of an output code.
      odd: whether the weights, of two bits, are -3, -1, 1 and 3.
    """

    name: str
    kind: str
    bits: int
    weights: np.ndarray
    stride: tuple[int, int]
    rescale: Multipliers | None
    offset: np.ndarray
    fraction: int
    residual: Multipliers | None
    low: int
    high: int
    out_bits: int
    odd: bool = False


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Samples to image codes.

    A sample n becomes the code `n * input`, clipped to `±top`. Filters give sums a (and b, in
    quadrature), which times their multipliers have `fraction` bits behind the point. The response r
    is the magnitude, or `sqrt(a^2 + b^2 + floor)`. Compressed it is `log2(1 + r)` with 16 bits; the
    image code is that times `factor` plus `offset`, rounded.

    Attributes:
      kernel, stride: of a frame, in samples.
      bits: of a tap.
      taps: int8 `[kernel, columns]`; half of a symmetric kernel is stored.
      symmetric: whether it is: the first half of a quadrature pair even, the second odd.
      pairs: whether columns are quadrature pairs.
      magnitude: `abs`, `relu` or `plain` of a column that has no partner.
      log: whether the response is compressed.
      input: wide multiplier (one) of a sample.
      top: largest sample code.
      input_bits: bits of a sample code.
      columns: wide multiplier of every column.
      fraction: bits behind the point of a response.
      floor: added to the square of a pair.
      factor: int16 `[filters]`, in units of `2^-factor_fraction` image codes per compressed unit.
      factor_fraction: see `factor`.
      offset: int16 `[filters]` in units of `2^-offset_fraction` image codes.
      offset_fraction: see `offset`.
      high: image codes are clipped to `±high`.
      out_bits: bits of an image code.
    """

    kernel: int
    stride: int
    bits: int
    taps: np.ndarray
    symmetric: bool
    pairs: bool
    magnitude: str
    log: bool
    input: Multipliers
    top: int
    input_bits: int
    columns: Multipliers
    fraction: int
    floor: int
    factor: np.ndarray
    factor_fraction: int
    offset: np.ndarray
    offset_fraction: int
    high: int
    out_bits: int

    @property
    def filters(self) -> int:
        """Columns of the image."""
        return self.taps.shape[1] // (2 if self.pairs else 1)


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual block: `expand` (or None), `depthwise`, `project`."""

    expand: Layer | None
    depthwise: Layer
    project: Layer


def magnitudes(weights: np.ndarray) -> np.ndarray:
    """Sums of the magnitudes of each output channel's weights: Python integers `[channels]`."""
    return np.abs(weights.astype(object)).sum(axis=tuple(range(weights.ndim - 1)))


@dataclasses.dataclass(frozen=True)
class Network:
    """A keyword spotter in integers.

    Attributes:
      front_end: samples to image.
      stem: image to feature map.
      blocks: in order; identities are gone.
      head: pointwise convolution; its codes are added up over the map.
      classifier: those sums to logits.
      samples: of one window.
      labels: what the logits stand for.
      logit_step: a logit times this is what the trained network says.
      decide_every: frames of a stream from one decision to the next, a multiple of
        `FRAMES_AT_ONCE`.
      causal: whether kernels are padded with rows above alone; a stream then keeps its rows, and
        the network is not run anew for every decision.
    """

    front_end: FrontEnd
    stem: Layer
    blocks: tuple[Block, ...]
    head: Layer
    classifier: Layer
    samples: int
    labels: tuple[str, ...]
    logit_step: float
    decide_every: int = FRAMES_AT_ONCE
    causal: bool = False

    def __post_init__(self):
        """Raises ValueError for decisions that no whole number of batches of frames ends with, and
        for a causal network whose batches of frames bring no whole number of rows."""
        if self.decide_every < 1 or self.decide_every % FRAMES_AT_ONCE:
            unit = FRAMES_AT_ONCE * self.front_end.stride / 16
            raise ValueError(
                f'decisions must be a multiple of {unit:g} ms apart, '
                f'got {self.decide_every * self.front_end.stride / 16:g} ms'
            )

        strides = self.stem.stride[0] * math.prod(b.depthwise.stride[0] for b in self.blocks)
        if self.causal and FRAMES_AT_ONCE % strides:
            raise ValueError(
                f'a causal network takes {FRAMES_AT_ONCE} frames at a time; its strides, '
                f'{strides} in all, do not divide that'
            )

    def padding(self, layer: Layer) -> tuple[int, int]:
        """Rows of zeros above and below the input of a stem or a depthwise layer."""
        height = layer.weights.shape[0]
        return (height - 1, 0) if self.causal else (height // 2, height // 2)

    def layers(self) -> Mapping[str, Layer]:
        """Every layer by name, in the order of execution and of storage."""
        parts = [self.stem]
        for block in self.blocks:
            parts += [block.expand] if block.expand else []
            parts += [block.depthwise, block.project]
        return {part.name: part for part in [*parts, self.head, self.classifier]}

    def largest_sums(self) -> dict[str, np.ndarray]:
        """By layer before the classifier, what none of its sums of products can exceed: Python
        integers `[channels]`."""
        layers, top = self.layers(), self.front_end.high
        most = {'frontend': magnitudes(self.front_end.taps) * self.front_end.top}
        for name, layer in layers.items():
            if layer.kind != 'classifier':
                most[name] = magnitudes(layer.weights) * top
                top = max(-layer.low, layer.high)
        return most

    def check_float32(self, runtime: str) -> None:
        """Makes sure that sums added up in float32 are exact.

        Raises:
          ValueError: names the layer whose sums may exceed 2^24, and the runtime.
        """
        for name, most in self.largest_sums().items():
            if max(most) > 2**24:
                raise ValueError(f'{name}: its sums may exceed 2^24 and are not exact in {runtime}')

    @property
    def frames(self) -> int:
        """Rows of the image."""
        return (self.samples - self.front_end.kernel) // self.front_end.stride + 1
