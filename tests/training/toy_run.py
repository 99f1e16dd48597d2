"""A small regression through the real loop, as a program, so that tests can kill it. Usage:
toy_run.py WORKDIR [JSON]."""

import functools
import hashlib
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kws_jax.training import loop

OPTIMIZER = optax.adam(1e-2)


def initial_state():
    """Weights, an average, an optimizer state with NamedTuples, a raw key and a step."""
    rng = np.random.default_rng(0)
    w_in, w_out = rng.normal(size=(8, 16)) / 3, rng.normal(size=(16, 4)) / 4
    params = {
        'in': {'w': w_in.astype(np.float32), 'b': np.zeros(16, np.float32)},
        'out': {'w': w_out.astype(np.float32)},
    }
    return {
        'params': params,
        'average': params,
        'opt': OPTIMIZER.init(params),
        'key': np.array([0, 3], np.uint32),
        'step': 0,
    }


def _loss(params, x, y, key):
    x = x + 0.1 * jax.random.uniform(key, x.shape)
    logits = jnp.tanh(x @ params['in']['w'] + params['in']['b'][None]) @ params['out']['w']
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits


@functools.partial(jax.jit, donate_argnums=0)
def chunk(state, batches):
    """Steps over the leading axis of x [n, batch, 8] and y [n, batch]."""

    def step(state, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state['key']), state['step'])
        (loss, logits), grads = jax.value_and_grad(_loss, has_aux=True)(
            state['params'], *batch, key
        )
        updates, opt = OPTIMIZER.update(grads, state['opt'])
        params = optax.apply_updates(state['params'], updates)
        average = optax.incremental_update(params, state['average'], 0.05)
        accuracy = (logits.argmax(-1) == batch[1]).mean()
        return (
            {
                'params': params,
                'average': average,
                'opt': opt,
                'key': state['key'],
                'step': state['step'] + 1,
            },
            {'loss': loss, 'accuracy': accuracy},
        )

    return jax.lax.scan(step, state, batches)


def source(step, n, *, pause=0.0, bad_step=None):
    """Batches of steps step..step+n-1, each from a generator seeded with its step."""
    time.sleep(pause)
    xs, ys = [], []
    for s in range(step, step + n):
        rng = np.random.default_rng(s)
        x = rng.normal(size=(8, 8)).astype(np.float32)
        xs.append(x * np.nan if s == bad_step else x)
        ys.append(np.abs(x[:, :4]).argmax(-1).astype(np.int32))
    return np.stack(xs), np.stack(ys)


@jax.jit
def evaluate(state):
    """Loss of the average on a fixed batch."""
    rng = np.random.default_rng(10**6)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    loss, _ = _loss(
        state['average'], x, np.abs(x[:, :4]).argmax(-1), jax.random.wrap_key_data(state['key'])
    )
    return {'loss': loss}


def run(workdir, *, pause=0.0, bad_step=None, seed=0, **changes):
    """`fit` of the toy: 60 steps, epochs of 13, chunks of 4."""
    options = {
        'total_steps': 60,
        'steps_per_epoch': 13,
        'chunk_size': 4,
        'checkpoint_every': 8,
        'evaluate': evaluate,
        'progress': False,
        'source': functools.partial(source, pause=pause, bad_step=bad_step),
        'chunk': chunk,
        'state': initial_state(),
        'config': {'seed': seed, 'optimizer': {'lr': 1e-2}},
    }
    return loop.fit(
        workdir=workdir, name='toy', params_of=lambda s: s['params'], **{**options, **changes}
    )


def digest(state):
    """SHA-256 over all leaves."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(state)]
    return hashlib.sha256(b''.join(str(x.dtype).encode() + x.tobytes() for x in leaves)).hexdigest()


if __name__ == '__main__':
    final, _ = run(sys.argv[1], **json.loads(sys.argv[2] if len(sys.argv) > 2 else '{}'))
    print('digest', digest(final))
