"""Arch params: probabilities, sampled paths, and choices within bounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import costs
from kws_jax.search import arch as arch_lib
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs, table1_space

pytest_plugins = ('tiny_search',)
pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def arch(space):
    """Arch params away from their start."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: arch_lib.init(key, space), jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


def test_arch_params_are_small_logits_by_stage():
    space = table1_space()
    arch = arch_lib.init(jax.random.key(0), space)
    assert {name: rows.shape for name, rows in arch.items()} == {'iii': (3, 19), 'iv': (3, 19)}
    values = np.concatenate([np.ravel(rows) for rows in arch.values()])
    assert values.std() == pytest.approx(1e-3, rel=5 / np.sqrt(2 * values.size))
    assert abs(values.mean()) < 5e-3 / np.sqrt(values.size)


def test_probabilities_are_the_softmax_over_what_a_layer_may_take(space, arch):
    rows = arch_lib.probabilities(space, arch)
    for i, n in enumerate((4, 5)):  # the first layer has no identity
        exp = np.exp(np.asarray(arch['a'][i, :n], np.float64))
        np.testing.assert_allclose(rows[i], exp / exp.sum(), rtol=1e-5)


def test_an_identity_that_a_layer_may_not_take_never_gets_a_gradient(space, arch):
    grad = jax.grad(lambda a: sum(p[0] ** 2 for p in arch_lib.probabilities(space, a)))(arch)
    assert grad['a'][0, 4] == 0
    assert jnp.all(grad['a'][0, :4] != 0) and jnp.all(grad['a'][1] != 0)


def test_paths_are_drawn_by_their_probabilities(space, arch):
    draw = jax.jit(jax.vmap(lambda key: arch_lib.sample_path(key, space, arch)))
    paths = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    assert paths.dtype == np.int32 and paths.shape == (4000, 2)
    rows = arch_lib.probabilities(space, arch)
    for column, p in zip(paths.T, rows, strict=True):
        share = np.bincount(column, minlength=len(p)) / 4000
        np.testing.assert_array_less(abs(share - p), 4.5 * np.sqrt(p * (1 - p) / 4000))
    # layers are independent
    joint = np.histogram2d(*paths.T, bins=(np.arange(5), np.arange(6)))[0] / 4000
    np.testing.assert_allclose(joint, np.outer(*rows), atol=0.03)
    np.testing.assert_array_equal(draw(jax.random.split(jax.random.key(1), 4000)), paths)


def test_entropy_goes_from_one_to_zero(space):
    uniform = {'a': jnp.zeros((2, 5))}
    assert arch_lib.entropy(space, uniform) == pytest.approx(1.0, rel=1e-6)
    certain = {'a': jnp.zeros((2, 5)).at[:, 2].set(100.0)}
    assert arch_lib.entropy(space, certain) == pytest.approx(0.0, abs=1e-6)
    # one layer certain; the other even between two of five
    half = {'a': jnp.full((2, 5), -100.0).at[0, 1].set(0.0).at[1, 1:3].set(0.0)}
    expected = 0.5 * np.log(2) / np.log(5)
    assert arch_lib.entropy(space, half) == pytest.approx(expected, rel=1e-5)


def test_the_most_probable_architecture_has_the_largest_logits(space):
    # the largest of the first row belongs to the identity, which that layer cannot take
    arch = {'a': jnp.array([[0.0, 1.0, 3.0, 2.0, 9.0], [0.0, 1.0, 3.0, 2.0, 9.0]])}
    assert arch_lib.most_probable(space, arch).path == (2, 4)


# --------------------------------------------------------------------------- choosing within

MEDIUM = SearchSpace(
    image_shape=(20, 8),
    classes=3,
    stem=Stem(channels=4, kernel=(3, 3), stride=(2, 2)),
    stages=(
        Stage('a', channels=6, layers=2, stride=2, candidates=mbconvs((1, 2, 5), (3, 5))),
        Stage('b', channels=7, layers=2, stride=1, candidates=mbconvs((1, 3), (3,))),
    ),
    head_channels=5,
)
MACS = costs.macs_table(MEDIUM, front_end_macs=20_000)
PARAMETERS = costs.parameters_table(MEDIUM, front_end_parameters=0)
ALL = [
    MEDIUM.architecture(path)
    for path in itertools.product(*(range(len(layer.choices)) for layer in MEDIUM.layers))
]


def random_scores(seed):
    rng = np.random.default_rng(seed)
    return [np.log(rng.dirichlet(np.ones(len(layer.choices)))) for layer in MEDIUM.layers]


def score_of(architecture, scores):
    return sum(row[i] for row, i in zip(scores, architecture.path, strict=True))


@pytest.mark.parametrize('capped', [False, True])
@pytest.mark.parametrize('low', [0.0, 0.9])
def test_the_choice_is_the_best_of_all_architectures_within_the_bounds(capped, low):
    high = float(np.quantile([MACS.of(a) for a in ALL], 0.6))
    most = float(np.quantile([PARAMETERS.of(a) for a in ALL], 0.4))
    caps = ((PARAMETERS, most),) if capped else ()
    fitting = [a for a in ALL if low * high <= MACS.of(a) <= high]
    fitting = [a for a in fitting if not capped or PARAMETERS.of(a) <= most]
    assert 3 < len(fitting) < len(ALL)
    for seed in range(10):
        scores = random_scores(seed)
        best = max(score_of(a, scores) for a in fitting)
        # with bins finer than one MAC the dynamic programme is exact
        got = arch_lib.choose_within(
            MEDIUM, scores, MACS, low=low * high, high=high, caps=caps, bins=10**6
        )
        assert got in fitting
        assert score_of(got, scores) == pytest.approx(best, rel=1e-9)
        coarse = arch_lib.choose_within(
            MEDIUM, scores, MACS, low=low * high, high=high, caps=caps, bins=50
        )
        assert coarse in fitting


def test_a_choice_on_the_bound_itself_is_allowed():
    for architecture in ALL[::13]:
        cost = MACS.of(architecture)
        got = arch_lib.choose_within(
            MEDIUM, random_scores(0), MACS, low=cost, high=cost, bins=10**6
        )
        assert MACS.of(got) == cost


def test_choices_in_the_published_space_end_within_bounds():
    space = table1_space()
    macs = costs.macs_table(space, front_end_macs=400 * 60 * 98)
    parameters = costs.parameters_table(space, front_end_parameters=120)
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=len(layer.choices)) for layer in space.layers]
    # the search spends what it may where bigger is better
    scores = [s + row / row.max() for s, row in zip(scores, macs.layers, strict=True)]
    got = arch_lib.choose_within(
        space, scores, macs, low=0.95 * 13.6e6, high=13.6e6, caps=((parameters, 75.7e3),), bins=100
    )
    assert 0.95 * 13.6e6 <= macs.of(got) <= 13.6e6
    assert parameters.of(got) <= 75.7e3


def test_bounds_that_nothing_meets_are_named():
    scores = random_scores(0)
    least, most = MACS.bounds
    with pytest.raises(ValueError, match=f'between 1 and 2 .*holds {least:g} to {most:g}'):
        arch_lib.choose_within(MEDIUM, scores, MACS, low=1, high=2)
    with pytest.raises(ValueError, match=r'caps \[10\]'):
        arch_lib.choose_within(MEDIUM, scores, MACS, low=0, high=most, caps=((PARAMETERS, 10),))
    with pytest.raises(ValueError, match='at most one cap is supported, got 2'):
        arch_lib.choose_within(MEDIUM, scores, MACS, low=0, high=most, caps=((MACS, most),) * 2)


def test_samples_within_are_uniform_over_what_fits():
    high = float(np.quantile([MACS.of(a) for a in ALL], 0.1))
    most = float(np.quantile([PARAMETERS.of(a) for a in ALL], 0.1))
    fitting = [a for a in ALL if MACS.of(a) <= high and PARAMETERS.of(a) <= most]
    assert len(fitting) > 5
    rng = np.random.default_rng(0)
    draws = [
        arch_lib.sample_within(rng, MEDIUM, MACS, low=0, high=high, caps=((PARAMETERS, most),))
        for _ in range(60 * len(fitting))
    ]
    counts = np.array([draws.count(a) for a in fitting])
    assert counts.sum() == len(draws)
    # chi squared: mean n - 1, standard deviation sqrt(2 (n - 1))
    n = len(fitting)
    assert np.sum((counts - 60.0) ** 2 / 60) < n - 1 + 5 * np.sqrt(2 * (n - 1))


def test_sampling_gives_up_where_nothing_fits():
    with pytest.raises(ValueError, match='50 random architectures, none between 1 and 2'):
        arch_lib.sample_within(np.random.default_rng(0), MEDIUM, MACS, low=1, high=2, tries=50)
