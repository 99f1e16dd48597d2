"""What an architecture costs: parameters, MACs, stored bits, peak activation bytes.

Every cost is exact for an architecture, and exact in expectation (and differentiable) under
independent probabilities per layer. MACs are multiply-accumulates, counted once, the front end
included; parameters are weights, two numbers per batch-norm channel, and the classifier's bias.

>>> from kws_jax.space import table1_space
>>> space = table1_space()
>>> table = macs_table(space, front_end_macs=400 * 60 * 98)
>>> int(table.of(space.largest()))
21712960
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.space import Architecture, Candidate, Layer, SearchSpace

# An exported output channel carries its folded batch norm: a 16-bit multiplier, a 16-bit offset.
CHANNEL_BITS = 32
# A tensor's shift, bit-width and zero point share one 32-bit word.
TENSOR_BITS = 32


@dataclasses.dataclass(frozen=True)
class CostTable:
    """A cost that adds up over layers: what is fixed, and one value per layer and choice.

    Attributes:
      fixed: cost of front end, stem, head and classifier.
      layers: for each searched layer the cost of each of its choices, float64 `[choices]`.
    """

    fixed: float
    layers: tuple[np.ndarray, ...]

    def of(self, architecture: Architecture) -> float:
        """The cost of one architecture of the space that the table was made for."""
        picked = zip(self.layers, architecture.path, strict=True)
        return self.fixed + sum(float(costs[i]) for costs, i in picked)

    def expected(self, probabilities: Sequence[jax.Array]) -> jax.Array:
        """The mean cost when layer l takes choice i with `probabilities[l][i]`; differentiable.

        Args:
          probabilities: one float32 array `[choices]` per layer.

        Returns:
          float32 scalar, in the unit of the table.
        """
        terms = (
            jnp.dot(p, jnp.asarray(costs, jnp.float32))
            for costs, p in zip(self.layers, probabilities, strict=True)
        )
        return self.fixed + sum(terms)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest cost that the space holds."""
        return (
            self.fixed + sum(float(costs.min()) for costs in self.layers),
            self.fixed + sum(float(costs.max()) for costs in self.layers),
        )


def _table(space, fixed, cost):
    rows = (np.array([float(cost(x, c)) for c in x.choices]) for x in space.layers)
    return CostTable(float(fixed), tuple(rows))


def layer_macs(layer: Layer, choice: Candidate) -> int:
    """MACs of one searched layer, zero for an identity.

    >>> from kws_jax.space import Candidate, table1_space
    >>> layer = table1_space().layers[2]  # 20 channels in and out, 25 x 15 pixels
    >>> layer_macs(layer, Candidate(3, 5)) == 25 * 15 * (20 * 60 + 60 * 5 * 5 + 60 * 20)
    True
    """
    if choice.is_identity:
        return 0
    width = layer.in_channels * choice.expansion
    before, after = math.prod(layer.in_shape), math.prod(layer.image_shape)
    expand = before * layer.in_channels * width if choice.expansion > 1 else 0
    return expand + after * width * choice.kernel**2 + after * width * layer.channels


def layer_weights(layer: Layer, choice: Candidate) -> dict[str, int]:
    """Weights of one searched layer by convolution, batch norm not counted."""
    if choice.is_identity:
        return {}
    width = layer.in_channels * choice.expansion
    expand = {'expand': layer.in_channels * width} if choice.expansion > 1 else {}
    return expand | {'depthwise': width * choice.kernel**2, 'project': width * layer.channels}


def layer_channels(layer: Layer, choice: Candidate) -> dict[str, int]:
    """Output channels of one searched layer's convolutions."""
    if choice.is_identity:
        return {}
    width = layer.in_channels * choice.expansion
    expand = {'expand': width} if choice.expansion > 1 else {}
    return expand | {'depthwise': width, 'project': layer.channels}


def _fixed_weights(space):
    stem = math.prod(space.stem.kernel) * space.stem.channels
    last = space.stages[-1].channels
    return {
        'stem': stem,
        'head': last * space.head_channels,
        'classifier': space.head_channels * space.classes,
    }


def _fixed_channels(space):
    return {'stem': space.stem.channels, 'head': space.head_channels, 'classifier': space.classes}


def macs_table(space: SearchSpace, *, front_end_macs: int) -> CostTable:
    """MACs of every choice, for one clip.

    Args:
      space: the search space.
      front_end_macs: MACs of the front end, which are part of the fixed cost.
    """
    weights = _fixed_weights(space)
    fixed = (
        front_end_macs
        + math.prod(space.stem_shape) * weights['stem']
        + math.prod(space.final_shape) * weights['head']
        + weights['classifier']
    )
    return _table(space, fixed, layer_macs)


def parameters_table(space: SearchSpace, *, front_end_parameters: int) -> CostTable:
    """Parameters of every choice: weights, batch-norm scale and offset, classifier bias.

    One of the networks that fit the 75.7k parameters of Peter et al. 2021:

    >>> from kws_jax.space import table1_space
    >>> table = parameters_table(table1_space(), front_end_parameters=120)
    >>> choices = ['e3k3', 'e3k7', 'e4k3', 'e5k7', 'e5k7', 'e5k5']
    >>> int(table.of(table1_space().architecture(choices)))
    75732

    Args:
      space: the search space.
      front_end_parameters: parameters of the front end, which are part of the fixed cost.
    """
    fixed = (
        front_end_parameters
        + sum(_fixed_weights(space).values())
        + 2 * (space.stem.channels + space.head_channels)
        + space.classes
    )

    def cost(layer, choice):
        channels = layer_channels(layer, choice)
        return sum(layer_weights(layer, choice).values()) + 2 * sum(channels.values())

    return _table(space, fixed, cost)


def weight_sites(architecture: Architecture, *, front_end_weights: int) -> dict[str, int]:
    """Stored weights of every quantized tensor, by layer name.

    `front_end_weights` is what a device has to store of the front end's filters (half of a
    symmetric filter); 0 leaves the front end out (MFCC).
    """
    fixed = _fixed_weights(architecture.space)
    sites = {'frontend': front_end_weights} if front_end_weights else {}
    sites['stem'] = fixed['stem']
    for layer, choice in zip(architecture.space.layers, architecture.choices, strict=True):
        for part, count in layer_weights(layer, choice).items():
            sites[f'{layer.name}.{part}'] = count
    return sites | {'head': fixed['head'], 'classifier': fixed['classifier']}


def activation_sites(architecture: Architecture, *, samples: int = 16000) -> dict[str, int]:
    """Values of every quantized activation for one clip, by the layer that makes it.

    `input` is the waveform; `frontend` the image; a block's `project` is its sum with the residual.
    """
    space = architecture.space
    sites = {
        'input': samples,
        'frontend': math.prod(space.image_shape),
        'stem': math.prod(space.stem_shape) * space.stem.channels,
    }
    for layer, choice in zip(space.layers, architecture.choices, strict=True):
        for part, channels in layer_channels(layer, choice).items():
            shape = layer.in_shape if part == 'expand' else layer.image_shape
            sites[f'{layer.name}.{part}'] = math.prod(shape) * channels
    sites['head'] = math.prod(space.final_shape) * space.head_channels
    return sites


def mean_bits(bits: Mapping[str, float], sites: Mapping[str, int]) -> float:
    """Mean of `bits` over `sites`, weighted by their number of values.

    >>> mean_bits({'stem': 8, 'head': 2}, {'stem': 100, 'head': 200})
    4.0
    """
    return sum(bits[name] * count for name, count in sites.items()) / sum(sites.values())


def _overhead_bits(space, channels, front_end_filters):
    fixed = CHANNEL_BITS * sum(_fixed_channels(space).values())
    if front_end_filters:
        fixed += CHANNEL_BITS * (front_end_filters + space.image_shape[1])
    tensors = 3 + bool(front_end_filters)
    return fixed + CHANNEL_BITS * channels + TENSOR_BITS * tensors


def stored_bits(
    architecture: Architecture,
    *,
    weight_bits: Mapping[str, int] | int,
    front_end_weights: int,
    front_end_filters: int,
) -> int:
    """Bits that the exported model stores: weights at their bits, and what goes with them.

    Beside its weights every output channel stores a 16-bit multiplier and a 16-bit offset, which
    hold the folded batch norm; every column of the front end a 32-bit multiplier, and every filter
    of the image a 16-bit factor and offset; every tensor a 32-bit word, and every residual another.

    Args:
      architecture: the network.
      weight_bits: bit-width of each tensor of `weight_sites`, or one for all.
      front_end_weights: as in `weight_sites`.
      front_end_filters: number of front-end columns of taps that are stored (two a filter in
        quadrature), or 0.
    """
    sites = weight_sites(architecture, front_end_weights=front_end_weights)
    each = dict.fromkeys(sites, weight_bits) if isinstance(weight_bits, int) else weight_bits
    weights = sum(count * int(each[name]) for name, count in sites.items())
    channels, tensors = 0, 0
    for layer, choice in zip(architecture.space.layers, architecture.choices, strict=True):
        per_layer = layer_channels(layer, choice)
        channels += sum(per_layer.values())
        tensors += len(per_layer) + (layer.keeps_shape and not choice.is_identity)
    overhead = _overhead_bits(architecture.space, channels, front_end_filters)
    return weights + overhead + TENSOR_BITS * tensors


def stored_bits_table(
    space: SearchSpace, *, weight_bits: int, front_end_weights: int, front_end_filters: int
) -> CostTable:
    """Stored bits of every choice at one bit-width for all weights.

    Args: as `stored_bits`.
    """
    fixed = weight_bits * (front_end_weights + sum(_fixed_weights(space).values()))
    fixed += _overhead_bits(space, 0, front_end_filters)

    def cost(layer, choice):
        channels = layer_channels(layer, choice)
        weights = sum(layer_weights(layer, choice).values())
        return (
            weight_bits * weights
            + CHANNEL_BITS * sum(channels.values())
            + TENSOR_BITS * (len(channels) + (layer.keeps_shape and not choice.is_identity))
        )

    return _table(space, fixed, cost)


def _live_bits(layer, choice, bits, before):
    """Live bits of each convolution of a layer: its input, its output, a waiting residual."""
    if choice.is_identity:
        return []
    width = layer.in_channels * choice.expansion
    wide_in = math.prod(layer.in_shape) * width * bits(f'{layer.name}.expand')
    wide_out = math.prod(layer.image_shape) * width * bits(f'{layer.name}.depthwise')
    out = math.prod(layer.image_shape) * layer.channels * bits(f'{layer.name}.project')
    inputs = math.prod(layer.in_shape) * layer.in_channels * bits(before)
    residual = inputs if layer.keeps_shape else 0
    if choice.expansion == 1:
        # the input itself is what the depthwise convolution reads
        return [inputs + wide_out, wide_out + out + residual]
    return [inputs + wide_in, wide_in + wide_out + residual, wide_out + out + residual]


def peak_activation_bytes(
    architecture: Architecture,
    *,
    activation_bits: Mapping[str, int] | int = 8,
    samples: int = 16000,
) -> float:
    """Largest number of bytes live at once, when convolutions run one after the other.

    Live are a convolution's whole input and output, and the block's input where a residual waits.

    Args:
      architecture: the network.
      activation_bits: bit-width of each tensor of `activation_sites`, or one for all.
      samples: length of the waveform, which is live while the front end runs.
    """
    sites = activation_sites(architecture, samples=samples)

    def bits(name):
        return activation_bits if isinstance(activation_bits, int) else activation_bits[name]

    space = architecture.space
    live = [
        sites['input'] * bits('input') + sites['frontend'] * bits('frontend'),
        sites['frontend'] * bits('frontend') + sites['stem'] * bits('stem'),
    ]
    before = 'stem'

    def bits_or_none(name):
        return bits(name) if name in sites else 0

    for layer, choice in zip(space.layers, architecture.choices, strict=True):
        live += _live_bits(layer, choice, bits_or_none, before)
        before = before if choice.is_identity else f'{layer.name}.project'
    last = math.prod(space.final_shape) * space.stages[-1].channels * bits(before)
    live.append(last + sites['head'] * bits('head'))
    return max(live) / 8


def expected_peak_activation_bytes(
    space: SearchSpace,
    probabilities: Sequence[jax.Array],
    *,
    activation_bits: int = 8,
    samples: int = 16000,
) -> jax.Array:
    """The mean of `peak_activation_bytes` under independent probabilities per layer.

    The peak is a maximum of independent values, so its mean is the sum of each possible value
    times the difference of the product of the layers' distribution functions; differentiable.

    Args:
      space: the search space.
      probabilities: one array `[choices]` per layer.
      activation_bits: bit-width of every activation.
      samples: length of the waveform.
    """
    smallest = space.architecture([0] * len(space.layers))
    sites = activation_sites(smallest, samples=samples)
    fixed = max(
        sites['input'] + sites['frontend'],
        sites['frontend'] + sites['stem'],
        math.prod(space.final_shape) * space.stages[-1].channels + sites['head'],
    )
    peaks = [
        np.array([max(_live_bits(x, c, lambda _: 1, ''), default=0) for c in x.choices])
        for x in space.layers
    ]
    values = np.unique(np.concatenate([[fixed], *peaks]))
    values = values[values >= fixed]
    below = jnp.ones(len(values))
    for peak, p in zip(peaks, probabilities, strict=True):
        below = below * (jnp.asarray(peak[None, :] <= values[:, None], jnp.float32) @ p)
    mass = jnp.diff(below, prepend=0.0)
    return jnp.dot(mass, jnp.asarray(values, jnp.float32)) * activation_bits / 8
