"""What every way to search must hold, and what is particular to each."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import network
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.dataset import Dataset
from kws_jax.data.labels import label_set
from kws_jax.data.pools import Pools
from kws_jax.search import SEARCHERS, Problem, SearchResult
from kws_jax.space import Architecture

pytest_plugins = ('tiny_search',)
pytestmark = pytest.mark.usefixtures('quick_compilation')
every_searcher = pytest.mark.parametrize('name', SEARCHERS)
CONFIG = {
    'seed': 3,
    'batch': 4,
    'warmup_epochs': 1,
    'epochs': 1,
    'lr': 0.1,
    'warmup_lr': 0.1,
    'weight_decay': 1e-4,
    'arch_every': 2,
    'arch_lr': 0.2,
    'price': {'name': 'target', 'beta': 1.0, 'weight': 1.0},
    'choose': 'within',
    'candidates': 5,
    'candidate_clips': 8,
    'recipe': {'augment': {'max_shift': 800}},
}


@pytest.fixture(scope='module')
def data():
    """24 examples of four classes to train on: 6 steps an epoch; 12 for validation."""
    rng = np.random.default_rng(0)
    rows = np.arange(32, dtype=np.int32)
    return Dataset(
        labels=label_set('yes,no'),
        audio=rng.integers(-9000, 9000, (40, 16000)).astype(np.int16),
        pools=Pools(
            fixed={
                'training': (rows[:18], rows[:18] % 2),
                'validation': (rows[18:28], rows[18:28] % 2),
                'testing': (rows[:0], rows[:0]),
            },
            unknown={'training': rows[28:], 'validation': rows[:1] + 32, 'testing': rows[:0]},
            extra_unknown=rows[:0],
        ),
        noise={'training': [rng.integers(-900, 900, 16000).astype(np.int16)]},
        unknown_percent=15,
        silence_percent=15,
        fingerprint='made up',
    )


@pytest.fixture(scope='module')
def problem(front_end, space, architectures):
    """A third of the 20 architectures cost what is wanted; some of them have too many weights."""
    problem = Problem(front_end=front_end, space=space, macs=1e5, tolerance=0.99)
    macs = sorted(problem.macs_table.of(a) for a in architectures)
    problem = dataclasses.replace(problem, macs=macs[14], tolerance=1 - macs[6] / macs[14])
    parameters = sorted(problem.parameters_table.of(a) for a in architectures if meets(problem, a))
    problem = dataclasses.replace(problem, parameters=parameters[-2])
    assert 4 < sum(meets(problem, a) for a in architectures) < len(parameters)
    return problem


def meets(problem, architecture):
    """Whether an architecture is within all bounds of a problem."""
    macs = problem.macs_table.of(architecture)
    within = (1 - problem.tolerance) * problem.macs - 1e-6 <= macs <= problem.macs
    most = problem.parameters
    return within and (most is None or problem.parameters_table.of(architecture) <= most)


@pytest.fixture(scope='module')
def searched(problem, data, tmp_path_factory):
    """What each searcher found, twice, each time from the start; and where."""
    found = {}

    def search(name):
        if name not in found:
            folders = [tmp_path_factory.mktemp(name) for _ in range(2)]
            found[name] = [
                (SEARCHERS[name](problem, data=data, config=CONFIG, workdir=folder), folder)
                for folder in folders
            ]
        return found[name]

    return search


@every_searcher
def test_it_returns_an_architecture_within_all_bounds(searched, problem, name):
    result, _ = searched(name)[0]
    assert isinstance(result, SearchResult)
    assert isinstance(result.architecture, Architecture)
    assert result.architecture.space == problem.space
    assert meets(problem, result.architecture)


@every_searcher
def test_its_facts_are_plain_data_and_say_what_was_found(searched, problem, name):
    result, _ = searched(name)[0]
    facts = json.loads(json.dumps(result.facts))
    architecture = result.architecture
    assert facts['choices'] == [choice.name for choice in architecture.choices]
    assert facts['macs'] == problem.macs_table.of(architecture)
    assert facts['macs_target'] == problem.macs
    assert facts['macs_over_target'] == pytest.approx(facts['macs'] / problem.macs)
    assert facts['parameters'] == problem.parameters_table.of(architecture)
    assert (facts['wall_seconds'] > 0) == (name != 'random')


@every_searcher
def test_the_same_seed_gives_the_same_result_to_the_bit(searched, name):
    (first, _), (second, _) = searched(name)
    assert first.architecture == second.architecture
    leaves, same = (jax.tree.leaves((r.params, r.averages)) for r in (first, second))
    for a, b in zip(leaves, same, strict=True):
        np.testing.assert_array_equal(a, b)


@every_searcher
def test_its_weights_are_those_of_the_network_or_there_are_none(searched, problem, data, name):
    result, _ = searched(name)[0]
    if name == 'random':
        assert result.params is None and result.averages is None
        return
    fresh = jax.eval_shape(
        lambda key: network.init(key, problem.front_end, result.architecture), jax.random.key(0)
    )
    got = (result.params, result.averages)
    assert jax.tree.structure(got) == jax.tree.structure(fresh)
    assert [x.shape for x in jax.tree.leaves(got)] == [x.shape for x in jax.tree.leaves(fresh)]
    logits, _ = network.apply(
        *got,
        int16_to_float(jnp.asarray(data.audio[:2])),
        front_end=problem.front_end,
        architecture=result.architecture,
    )
    assert logits.shape == (2, 4) and jnp.isfinite(logits).all()


@every_searcher
def test_a_finished_search_is_not_done_again(searched, problem, data, name):
    result, folder = searched(name)[0]
    again = SEARCHERS[name](problem, data=data, config=CONFIG, workdir=folder)
    assert again.architecture == result.architecture
    assert again.facts == result.facts


@every_searcher
@pytest.mark.parametrize('change', ['macs', 'parameters'])
def test_bounds_that_nothing_meets_are_refused_before_anything_is_trained(
    problem, data, tmp_path, name, change
):
    if change == 'macs':  # no architecture has just this many MACs
        bad = dataclasses.replace(problem, macs=problem.macs - 1, tolerance=0.0)
    else:  # some have as few weights, but none of those has as many MACs
        bad = dataclasses.replace(problem, parameters=problem.parameters_table.bounds[0])
    with pytest.raises(ValueError, match='no architecture costs|have at least'):
        SEARCHERS[name](bad, data=data, config=CONFIG, workdir=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# ------------------------------------------------------------------------------- particularities


def test_proxyless_reports_how_the_search_ended(searched, problem):
    result, folder = searched('proxyless')[0]
    facts = result.facts
    least, most = problem.macs_table.bounds
    assert least < facts['expected_macs'] < most
    assert facts['expected_over_target'] == pytest.approx(facts['expected_macs'] / problem.macs)
    assert 0 < facts['entropy'] < 1
    assert facts['argmax_macs'] == problem.macs_table.of(
        problem.space.architecture(facts['argmax_choices'])
    )
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    last = [record for record in records if record['kind'] == 'eval'][-1]
    assert last['expected_cost'] == pytest.approx(facts['expected_macs'])
    rows = {k.partition('/')[2]: v for k, v in last.items() if k.startswith('probabilities/')}
    assert [len(rows[layer.name]) for layer in problem.space.layers] == [4, 5]
    assert all(sum(row) == pytest.approx(1) for row in rows.values())


def test_proxyless_may_end_at_the_most_probable_whatever_it_costs(
    searched, problem, data, tmp_path
):
    within, _ = searched('proxyless')[0]
    config = CONFIG | {'choose': 'argmax'}
    result = SEARCHERS['proxyless'](problem, data=data, config=config, workdir=tmp_path)
    # the same search, ended otherwise
    assert result.facts['choices'] == within.facts['argmax_choices']
    assert result.facts['macs'] == within.facts['argmax_macs']
    assert not meets(problem, result.architecture)


def test_an_unknown_way_to_end_is_refused(problem, data, tmp_path):
    with pytest.raises(ValueError, match="choose must be 'within' or 'argmax', got 'best'"):
        SEARCHERS['proxyless'](
            problem, data=data, config=CONFIG | {'choose': 'best'}, workdir=tmp_path
        )


def test_uniform_takes_the_best_of_its_candidates(searched):
    facts = searched('uniform')[0][0].facts
    assert 1 <= facts['candidates'] <= CONFIG['candidates']
    low, high = facts['supernet_accuracy_range']
    assert 0 <= low <= facts['supernet_accuracy'] == high <= 1
    # 8 clips were scored
    assert high * 8 == int(high * 8)


def test_another_seed_draws_other_random_architectures(problem, data, tmp_path):
    found = {
        SEARCHERS['random'](
            problem, data=data, config=CONFIG | {'seed': seed}, workdir=tmp_path
        ).architecture
        for seed in range(20)
    }
    assert len(found) > 3 and all(meets(problem, a) for a in found)


# -------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'macs': 1e3}, 'below the smallest network of the space, .*ask for more'),
        ({'macs': 1e9}, 'above the largest network of the space, .*ask for less'),
        ({'parameters': 10}, 'parameters is 10, below the smallest network'),
        ({'tolerance': 1.0}, r'tolerance must be in 0\.\.1 \(a share of macs\), got 1.0'),
        ({'tolerance': -0.1}, 'got -0.1'),
    ],
)
def test_a_problem_without_a_solution_is_refused(problem, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(problem, **change)


def test_a_problem_counts_the_front_end(problem, front_end):
    without = dataclasses.replace(
        problem, front_end=front_end._replace(macs=0, parameters=0), tolerance=0.99
    )
    assert problem.macs_table.fixed - without.macs_table.fixed == front_end.macs == 400 * 8 * 20
    more = problem.parameters_table.fixed - without.parameters_table.fixed
    assert more == front_end.parameters == 3200
