"""What may be chosen: candidates, stages, search spaces and architectures, as plain data.

A space is a stem convolution, stages of searched layers, and a head; it knows the image that the
front end makes, so that every shape in it is known. Ten lines make a new one:

>>> space = SearchSpace(
...     image_shape=(98, 60),
...     classes=12,
...     stem=Stem(channels=10, kernel=(3, 3), stride=(2, 2)),
...     stages=(
...         Stage('iii', channels=20, layers=3, stride=2, candidates=mbconvs((1, 6), (3, 7))),
...         Stage('iv', channels=40, layers=3, stride=2, candidates=mbconvs((1, 6), (3, 7))),
...     ),
...     head_channels=80,
... )
>>> [layer.name for layer in space.layers]
['iii.0', 'iii.1', 'iii.2', 'iv.0', 'iv.1', 'iv.2']
>>> space.layers[1].image_shape, space.layers[1].choices[-1].name
((25, 15), 'identity')
>>> space.architecture(['e6k7', 'e1k3', 'identity'] * 2).live_layers
4
"""

import dataclasses
import difflib
import functools
import itertools
import json
import math
import operator
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One operation a layer may have: MBConv(expansion, kernel), or identity (expansion 0)."""

    expansion: int = 0
    kernel: int = 0

    def __post_init__(self):
        """Raises ValueError unless it is an identity, or has an odd kernel."""
        if self.is_identity:
            if self.kernel:
                raise ValueError(f'an identity has no kernel, got kernel {self.kernel}')
        elif self.expansion < 0 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                'a candidate needs expansion >= 1 and an odd kernel >= 1, '
                f'got expansion {self.expansion}, kernel {self.kernel}'
            )

    @property
    def is_identity(self) -> bool:
        """Whether the layer is left out."""
        return self.expansion == 0

    @property
    def name(self) -> str:
        """`e<expansion>k<kernel>`, or `identity`."""
        return 'identity' if self.is_identity else f'e{self.expansion}k{self.kernel}'

    @classmethod
    def from_name(cls, name: str) -> 'Candidate':
        """The inverse of `name`.

        Raises:
          ValueError: `name` is not written like this, or there is no such candidate.

        >>> Candidate.from_name('e3k5')
        Candidate(expansion=3, kernel=5)
        """
        if name == 'identity':
            return cls()
        numbers = re.fullmatch(r'e(\d+)k(\d+)', name)
        if numbers is None:
            raise ValueError(f"a candidate is written 'identity' or like 'e3k5', got {name!r}")
        return cls(*map(int, numbers.groups()))


IDENTITY = Candidate()


def mbconvs(expansions, kernels, *, identity: bool = True) -> tuple[Candidate, ...]:
    """MBConv candidates of all `expansions` and `kernels`, and identity as the last.

    >>> [candidate.name for candidate in mbconvs((1, 2), (3,))]
    ['e1k3', 'e2k3', 'identity']
    """
    grid = tuple(Candidate(e, k) for e, k in itertools.product(expansions, kernels))
    return grid + (IDENTITY,) * identity


def _check_positive(data, owner, *names):
    for name in names:
        value = getattr(data, name)
        if any(v < 1 for v in (value if isinstance(value, tuple | list) else (value,))):
            raise ValueError(f'{name} of {owner} must be at least 1, got {value}')


@dataclasses.dataclass(frozen=True)
class Stem:
    """The convolution that meets the image: channels, kernel and stride as (frames, filters)."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self):
        """Raises ValueError where such a convolution is not possible."""
        _check_positive(self, 'stem', 'channels', 'kernel', 'stride')
        if any(extent % 2 == 0 for extent in self.kernel):
            raise ValueError(f'the stem needs an odd kernel, got {self.kernel}')


@dataclasses.dataclass(frozen=True)
class Stage:
    """Searched layers of one width; the first one has the stride and cannot be an identity."""

    name: str
    channels: int
    layers: int
    stride: int
    candidates: tuple[Candidate, ...]

    def __post_init__(self):
        """Raises ValueError for a size below 1, or a candidate that is there twice."""
        _check_positive(self, f'stage {self.name}', 'channels', 'layers', 'stride')
        twice = sorted({c.name for c in self.candidates if self.candidates.count(c) > 1})
        if twice:
            raise ValueError(f'stage {self.name} has the candidate {", ".join(twice)} twice')


@dataclasses.dataclass(frozen=True)
class Layer:
    """One searched layer with its shapes; `choices` holds only what its shape allows."""

    name: str
    stage: str
    in_channels: int
    channels: int
    stride: int
    in_shape: tuple[int, int]
    image_shape: tuple[int, int]
    choices: tuple[Candidate, ...]
    causal: bool = False

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape: a residual is added, identity may be."""
        return self.stride == 1 and self.in_channels == self.channels


def _hint(name, choices):
    """What may have been meant by a candidate that a layer does not have."""
    names = [c.name for c in choices]
    numbers = re.fullmatch(r'e(\d+)k(\d+)', name)
    if numbers is None:
        near = difflib.get_close_matches(name, names, 1)
        return f'did you mean {near[0]}?' if near else f'it has {", ".join(names)}'
    expansion, kernel = map(int, numbers.groups())
    blocks = (c for c in choices if not c.is_identity)
    near = min(blocks, key=lambda c: abs(c.expansion - expansion) + abs(c.kernel - kernel))
    return f'the nearest is {near.name}'


def _strided(shape, stride):
    return tuple(math.ceil(size / step) for size, step in zip(shape, stride, strict=True))


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """All networks that a search may choose from.

    Attributes:
      image_shape: (frames, filters) of the front end's image.
      classes: number of labels.
      stem: the first 2-D convolution.
      stages: the searched layers, in order; names must differ.
      head_channels: width of the 1x1 convolution before pooling.
      causal: whether convolutions see no later frames, so that a stream keeps what it computed.
    """

    image_shape: tuple[int, int]
    classes: int
    stem: Stem
    stages: tuple[Stage, ...]
    head_channels: int
    causal: bool = False

    def __post_init__(self):
        """Raises ValueError where a layer would be left without a convolution to start from."""
        _check_positive(self, 'the space', 'image_shape', 'classes', 'head_channels')
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f'stages need names that differ, got {names}')
        for layer in self.layers:
            if not layer.choices or layer.choices[0].is_identity:
                raise ValueError(
                    f'stage {layer.stage} needs an MBConv candidate first, '
                    f'got {[c.name for c in layer.choices]} for layer {layer.name}'
                )
            if IDENTITY in layer.choices[:-1]:
                raise ValueError(f'stage {layer.stage}: identity must be the last candidate')

    @property
    def stem_shape(self) -> tuple[int, int]:
        """(frames, filters) after the stem."""
        return _strided(self.image_shape, self.stem.stride)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The searched layers, in order."""
        layers, shape, width = [], self.stem_shape, self.stem.channels
        for stage in self.stages:
            for i in range(stage.layers):
                stride = stage.stride if i == 0 else 1
                out = _strided(shape, (stride, stride))
                same = stride == 1 and width == stage.channels
                choices = tuple(c for c in stage.candidates if same or not c.is_identity)
                layers.append(
                    Layer(
                        name=f'{stage.name}.{i}',
                        stage=stage.name,
                        in_channels=width,
                        channels=stage.channels,
                        stride=stride,
                        in_shape=shape,
                        image_shape=out,
                        choices=choices,
                        causal=self.causal,
                    )
                )
                shape, width = out, stage.channels
        return tuple(layers)

    @property
    def final_shape(self) -> tuple[int, int]:
        """(frames, filters) that the head sees."""
        return self.layers[-1].image_shape

    @property
    def size(self) -> int:
        """How many architectures the space holds."""
        return math.prod(len(layer.choices) for layer in self.layers)

    def architecture(self, choices) -> 'Architecture':
        """The architecture with these `choices`: candidates, their names, or indices.

        Raises:
          ValueError: a choice is not in its layer; names the layer and the nearest choice.
          TypeError: a choice is none of these.
        """
        choices = list(choices)
        if len(choices) != len(self.layers):
            raise ValueError(f'the space has {len(self.layers)} layers, got {len(choices)} choices')
        chosen = []
        for layer, choice in zip(self.layers, choices, strict=True):
            names = [c.name for c in layer.choices]
            if isinstance(choice, Candidate | str):
                name = choice if isinstance(choice, str) else choice.name
                if name not in names:
                    hint = _hint(name, layer.choices)
                    raise ValueError(f'layer {layer.name} has no candidate {name!r}; {hint}')
                index = names.index(name)
            else:
                index = operator.index(choice)
                if not 0 <= index < len(names):
                    raise ValueError(
                        f'layer {layer.name} has choices 0..{len(names) - 1}, got {index}'
                    )
            chosen.append(layer.choices[index])
        return Architecture(self, tuple(chosen))

    def sample(self, rng: np.random.Generator) -> 'Architecture':
        """An architecture drawn uniformly, layer by layer."""
        return self.architecture([int(rng.integers(len(x.choices))) for x in self.layers])

    def largest(self) -> 'Architecture':
        """The architecture with the largest expansion and kernel in every layer."""
        return self.architecture([
            max(x.choices, key=lambda c: (c.expansion, c.kernel)) for x in self.layers
        ])

    def to_json(self) -> dict:
        """Plain data; `from_json` is the inverse."""
        data = dataclasses.asdict(self)
        for stage in data['stages']:
            stage['candidates'] = [Candidate(**c).name for c in stage['candidates']]
        return json.loads(json.dumps(data))

    @classmethod
    def from_json(cls, data: dict) -> 'SearchSpace':
        """A space from what `to_json` wrote.

        Raises:
          ValueError: something is missing or out of range.
        """
        try:
            stem = Stem(
                data['stem']['channels'],
                tuple(data['stem']['kernel']),
                tuple(data['stem']['stride']),
            )
            stages = tuple(
                Stage(
                    name=s['name'],
                    channels=s['channels'],
                    layers=s['layers'],
                    stride=s['stride'],
                    candidates=tuple(Candidate.from_name(c) for c in s['candidates']),
                )
                for s in data['stages']
            )
            return cls(
                tuple(data['image_shape']),
                data['classes'],
                stem,
                stages,
                data['head_channels'],
                data.get('causal', False),
            )
        except KeyError as error:
            raise ValueError(f'the description of the search space lacks {error}') from error


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The chosen candidate of every layer of a space."""

    space: SearchSpace
    choices: tuple[Candidate, ...]

    @property
    def path(self) -> tuple[int, ...]:
        """Index of each choice among its layer's choices."""
        return tuple(
            layer.choices.index(choice)
            for layer, choice in zip(self.space.layers, self.choices, strict=True)
        )

    @property
    def live_layers(self) -> int:
        """How many layers are not identities."""
        return sum(not choice.is_identity for choice in self.choices)

    def __str__(self) -> str:
        """Names of the choices, stages apart, as in `e3k3 identity | e5k7 e5k5`."""
        groups = itertools.groupby(
            zip(self.space.layers, self.choices, strict=True), key=lambda pair: pair[0].stage
        )
        return ' | '.join(' '.join(choice.name for _, choice in group) for _, group in groups)

    def to_json(self) -> dict:
        """Plain data; `from_json` is the inverse."""
        return {'space': self.space.to_json(), 'choices': [c.name for c in self.choices]}

    @classmethod
    def from_json(cls, data: dict) -> 'Architecture':
        """An architecture from what `to_json` wrote.

        Raises:
          ValueError: as `SearchSpace.from_json` and `SearchSpace.architecture`.
        """
        return SearchSpace.from_json(data['space']).architecture(data['choices'])


def table1_space(
    image_shape=(98, 60), classes: int = 12, width: float = 1.0, *, causal: bool = False
) -> SearchSpace:
    """The raw-audio space of Peter et al. 2021 (arXiv 2104.06666, Table 1).

    Two stages of three layers, 20 and 40 channels; expansions 1 to 6, kernels 3, 5 and 7, identity
    where the shape allows. `width` scales all channels.

    >>> table1_space().size == (18 * 19 * 19) ** 2
    True
    """
    candidates = mbconvs(range(1, 7), (3, 5, 7))
    return SearchSpace(
        image_shape=image_shape,
        classes=classes,
        stem=Stem(channels=round(10 * width), kernel=(3, 3), stride=(2, 2)),
        stages=(
            Stage('iii', round(20 * width), layers=3, stride=2, candidates=candidates),
            Stage('iv', round(40 * width), layers=3, stride=2, candidates=candidates),
        ),
        head_channels=round(80 * width),
        causal=causal,
    )


def mfcc_space(
    image_shape=(51, 10), classes: int = 12, width: float = 1.0, *, causal: bool = False
) -> SearchSpace:
    """The twelve-layer MFCC space of Peter et al. 2020 (arXiv 2012.10138).

    `width` (0.75, 1 or 1.25 in the paper) scales 72 and 144 channels, rounded to multiples of 8.

    >>> [mfcc_space(width=w).head_channels for w in (0.75, 1, 1.25)]
    [112, 144, 184]
    """

    def channels(base):
        scaled = base * width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    return SearchSpace(
        image_shape=image_shape,
        classes=classes,
        stem=Stem(channels=channels(72), kernel=(11, 5), stride=(2, 1)),
        stages=(Stage('ii', channels(72), 12, 2, mbconvs(range(1, 7), (3, 5, 7))),),
        head_channels=channels(144),
        causal=causal,
    )
