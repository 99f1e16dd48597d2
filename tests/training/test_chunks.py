"""Chunks of steps: the same numbers as a scan, one compilation, nothing of the caller's taken."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.training.chunks import make_chunk


def step(state, batch, offset):
    total = state['total'] + batch['x'].sum() + offset
    return {'total': total, 'count': state['count'] + 1}, {'seen': total, 'first': batch['x'][:1]}


STATE = {'total': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}
BATCHES = {'x': np.arange(12, dtype=np.float32).reshape(3, 4)}


def test_metrics_are_stacked_and_states_follow_each_other():
    state, metrics = make_chunk(step, jnp.float32(100))(STATE, BATCHES)
    # rows sum to 6, 22 and 38
    np.testing.assert_array_equal(metrics['seen'], [106, 228, 366])
    np.testing.assert_array_equal(metrics['first'], [[0], [4], [8]])
    assert float(state['total']) == 366 and int(state['count']) == 3


def test_a_chunk_is_a_scan_of_its_step():
    expected = jax.lax.scan(lambda s, b: step(s, b, jnp.float32(1)), STATE, BATCHES)
    got = make_chunk(step, jnp.float32(1))(STATE, BATCHES)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_state_passed_in_may_be_used_again():
    state = jax.tree.map(jnp.copy, STATE)
    chunk = make_chunk(step, jnp.float32(1))
    first, second = chunk(state, BATCHES)[0], chunk(state, BATCHES)[0]
    assert float(first['total']) == float(second['total'])
    assert int(state['count']) == 0


def test_chunks_of_any_length_compile_the_step_once():
    chunk = make_chunk(chex.assert_max_traces(step, n=1), jnp.float32(1))
    state = STATE
    for rows in (3, 1, 2):
        state, _ = chunk(state, {'x': BATCHES['x'][:rows]})
    assert int(state['count']) == 6
