"""Search spaces and architectures as plain data."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.space import (
    IDENTITY,
    Architecture,
    Candidate,
    SearchSpace,
    Stage,
    Stem,
    mbconvs,
    mfcc_space,
    table1_space,
)

NAMES_18 = [f'e{e}k{k}' for e in range(1, 7) for k in (3, 5, 7)]


def small_space(**changes):
    options = {
        'image_shape': (20, 8),
        'classes': 3,
        'stem': Stem(channels=4, kernel=(3, 3), stride=(2, 2)),
        'stages': (
            Stage('a', channels=6, layers=2, stride=2, candidates=mbconvs((1, 2), (3, 5))),
            Stage('b', channels=6, layers=1, stride=1, candidates=mbconvs((2,), (3,))),
        ),
        'head_channels': 5,
    }
    return SearchSpace(**(options | changes))


# ------------------------------------------------------------------------------------ candidates


def test_candidates_are_the_grid_and_identity_comes_last():
    assert [c.name for c in mbconvs((1, 3), (3, 5))] == ['e1k3', 'e1k5', 'e3k3', 'e3k5', 'identity']
    assert [c.name for c in mbconvs((2,), (7,), identity=False)] == ['e2k7']


@pytest.mark.parametrize('candidate', [IDENTITY, Candidate(1, 3), Candidate(12, 11)])
def test_a_candidate_comes_back_from_its_name(candidate):
    assert Candidate.from_name(candidate.name) == candidate


@pytest.mark.parametrize('name', ['', 'e3', 'k3', '3k5', 'e3k', 'e3k5x', 'e-1k3', 'Identity'])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(ValueError, match="'identity' or like 'e3k5', got"):
        Candidate.from_name(name)


@pytest.mark.parametrize(
    ('expansion', 'kernel', 'message'),
    [(3, 4, 'odd kernel'), (3, 0, 'odd kernel'), (-1, 3, 'expansion >= 1'), (0, 3, 'no kernel')],
)
def test_an_impossible_candidate_is_refused(expansion, kernel, message):
    with pytest.raises(ValueError, match=message):
        Candidate(expansion, kernel)


# ---------------------------------------------------------------------------------------- spaces


def test_width_scales_every_channel_of_table_1_and_nothing_else():
    wide, plain = table1_space(width=1.5), table1_space()
    assert [layer.channels for layer in wide.layers] == [30] * 3 + [60] * 3
    assert (wide.stem.channels, wide.head_channels) == (15, 120)
    assert [layer.choices for layer in wide.layers] == [layer.choices for layer in plain.layers]


def test_table_1_has_the_published_shapes_and_choices():
    # Peter et al. 2021, table 1: 60 x 98 -> 30 x 49 -> 15 x 25 -> 8 x 13
    space = table1_space((98, 60))
    assert space.stem_shape == (49, 30)
    assert [layer.image_shape for layer in space.layers] == [(25, 15)] * 3 + [(13, 8)] * 3
    assert [layer.in_shape for layer in space.layers] == (
        [(49, 30)] + [(25, 15)] * 3 + [(13, 8)] * 2
    )
    assert [layer.in_channels for layer in space.layers] == [10, 20, 20, 20, 40, 40]
    assert [layer.channels for layer in space.layers] == [20, 20, 20, 40, 40, 40]
    assert [layer.stride for layer in space.layers] == [2, 1, 1, 2, 1, 1]
    assert (space.stem.channels, space.head_channels, space.classes) == (10, 80, 12)
    for i, layer in enumerate(space.layers):
        identity = ['identity'] if i % 3 else []
        assert [c.name for c in layer.choices] == NAMES_18 + identity
        assert layer.keeps_shape == bool(i % 3)
    assert space.size == 42_224_004  # (18 * 19 * 19) ** 2


@pytest.mark.parametrize(
    ('width', 'channels', 'head'), [(0.75, 56, 112), (1, 72, 144), (1.25, 88, 184)]
)
def test_the_mfcc_space_has_twelve_layers_and_the_published_widths(width, channels, head):
    # Peter et al. 2020: 5 x 11 stem with stride (1, 2), twelve layers, the first with stride 2
    space = mfcc_space((51, 10), width=width)
    assert len(space.layers) == 12
    assert space.stem.channels == channels
    assert {layer.channels for layer in space.layers} == {channels}
    assert space.head_channels == head
    assert space.stem_shape == (26, 10)
    assert [layer.image_shape for layer in space.layers] == [(13, 5)] * 12
    assert space.size == 18 * 19**11


def test_identity_is_a_choice_where_stride_and_width_allow_it_only():
    space = small_space()
    assert [IDENTITY in layer.choices for layer in space.layers] == [False, True, True]
    wider = Stage('b', channels=7, layers=2, stride=1, candidates=mbconvs((2,), (3,)))
    space = small_space(stages=(space.stages[0], wider))
    assert [IDENTITY in layer.choices for layer in space.layers] == [False, True, False, True]


def test_size_counts_every_architecture():
    space = small_space()
    paths = list(itertools.product(*(range(len(layer.choices)) for layer in space.layers)))
    assert space.size == len(paths) == 4 * 5 * 2
    assert len({space.architecture(path) for path in paths}) == len(paths)


def test_strided_shapes_round_up():
    space = small_space(image_shape=(7, 5))
    assert space.stem_shape == (4, 3)
    assert space.layers[0].image_shape == (2, 2)
    assert space.final_shape == (2, 2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'classes': 0}, 'classes of the space must be at least 1, got 0'),
        ({'image_shape': (0, 8)}, r'image_shape of the space must be at least 1, got \(0, 8\)'),
        ({'stages': ()}, 'stages need names'),
        ({'stages': (Stage('a', 4, 1, 1, mbconvs((1,), (3,))),) * 2}, 'names that differ'),
        ({'stages': (Stage('a', 4, 2, 2, (IDENTITY,)),)}, 'stage a needs an MBConv candidate'),
        (
            {'stages': (Stage('a', 4, 2, 2, (Candidate(1, 3), IDENTITY, Candidate(2, 3))),)},
            'stage a: identity must be the last',
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_space(**changes)


def test_a_stage_or_stem_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match='stage a has the candidate e1k3 twice'):
        Stage('a', 4, 2, 2, mbconvs((1, 1), (3,)))
    with pytest.raises(ValueError, match='layers of stage a must be at least 1, got 0'):
        Stage('a', 4, 0, 2, mbconvs((1,), (3,)))
    with pytest.raises(ValueError, match=r'odd kernel, got \(4, 3\)'):
        Stem(4, (4, 3), (1, 1))
    with pytest.raises(ValueError, match=r'stride of stem must be at least 1, got \(0, 1\)'):
        Stem(4, (3, 3), (0, 1))


# --------------------------------------------------------------------------------- architectures


def test_choices_may_be_names_candidates_or_indices_of_any_integer_type():
    space = small_space()
    names = ['e2k3', 'identity', 'e2k3']
    expected = space.architecture(names)
    assert expected.path == (2, 4, 0)
    assert expected.choices == (Candidate(2, 3), IDENTITY, Candidate(2, 3))
    assert space.architecture(expected.choices) == expected
    assert space.architecture((2, 4, 0)) == expected
    assert space.architecture(np.array([2, 4, 0], np.int32)) == expected
    assert space.architecture(jnp.array([2, 4, 0])) == expected


def test_an_architecture_reads_by_stage():
    architecture = small_space().architecture(['e1k5', 'identity', 'e2k3'])
    assert str(architecture) == 'e1k5 identity | e2k3'
    assert architecture.live_layers == 2


@pytest.mark.parametrize(
    ('choices', 'message'),
    [
        (
            ['identity', 0, 0],
            "layer a.0 has no candidate 'identity'; it has e1k3, e1k5, e2k3, e2k5",
        ),
        ([0, 'e9k3', 0], "layer a.1 has no candidate 'e9k3'; the nearest is e2k3"),
        ([0, 'e1k11', 0], "layer a.1 has no candidate 'e1k11'; the nearest is e1k5"),
        ([0, 'identty', 0], "layer a.1 has no candidate 'identty'; did you mean identity?"),
        ([0, 0, Candidate(1, 3)], "layer b.0 has no candidate 'e1k3'; the nearest is e2k3"),
        ([0, 5, 0], r'layer a.1 has choices 0\.\.4, got 5'),
        ([0, -1, 0], r'layer a.1 has choices 0\.\.4, got -1'),
        ([0, 0], 'the space has 3 layers, got 2 choices'),
    ],
)
def test_a_wrong_choice_names_its_layer_and_the_nearest_valid_one(choices, message):
    with pytest.raises(ValueError, match=message.replace('?', r'\?')):
        small_space().architecture(choices)


def test_a_choice_of_another_type_is_refused():
    with pytest.raises(TypeError):
        small_space().architecture([0.5, 0, 0])


def test_the_largest_architecture_has_the_largest_operation_everywhere():
    assert str(table1_space().largest()) == 'e6k7 e6k7 e6k7 | e6k7 e6k7 e6k7'


def test_samples_are_uniform_over_each_layer():
    space = small_space()
    rng = np.random.default_rng(0)
    paths = np.array([space.sample(rng).path for _ in range(2000)])
    for column, layer in zip(paths.T, space.layers, strict=True):
        n = len(layer.choices)
        share = np.bincount(column, minlength=n) / len(paths)
        assert np.abs(share - 1 / n).max() < 4 * np.sqrt(1 / n * (1 - 1 / n) / len(paths))
    again = np.random.default_rng(0)
    assert [space.sample(again).path for _ in range(5)] == [tuple(p) for p in paths[:5]]


# ------------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    'space', [small_space(), table1_space((98, 40), causal=True), mfcc_space(width=1.25)]
)
def test_spaces_and_architectures_come_back_from_json_text(space):
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space
    architecture = space.sample(np.random.default_rng(3))
    text = json.dumps(architecture.to_json())
    assert Architecture.from_json(json.loads(text)) == architecture


def test_a_space_written_before_there_were_causal_ones_is_not():
    data = table1_space(causal=True).to_json()
    del data['causal']
    space = SearchSpace.from_json(data)
    assert space == table1_space()
    assert not any(layer.causal for layer in space.layers)


def test_json_is_readable_by_people():
    data = small_space().to_json()
    assert data['stem'] == {'channels': 4, 'kernel': [3, 3], 'stride': [2, 2]}
    assert data['stages'][1] == {
        'name': 'b',
        'channels': 6,
        'layers': 1,
        'stride': 1,
        'candidates': ['e2k3', 'identity'],
    }
    assert small_space().architecture([0, 4, 1]).to_json()['choices'] == [
        'e1k3',
        'identity',
        'identity',
    ]


def test_json_that_lacks_something_says_what():
    data = small_space().to_json()
    del data['head_channels']
    with pytest.raises(ValueError, match="lacks 'head_channels'"):
        SearchSpace.from_json(data)
    data = small_space().to_json()
    del data['stages'][0]['stride']
    with pytest.raises(ValueError, match="lacks 'stride'"):
        SearchSpace.from_json(data)
