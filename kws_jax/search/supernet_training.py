"""The run that ProxylessNAS and uniform single-path search share: training a supernet."""

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.data.batches import search_source, steps_per_epoch
from kws_jax.search import arch as arch_lib
from kws_jax.search import prices
from kws_jax.search.problem import Problem
from kws_jax.search.step import arch_adam, init_search_state, make_search_chunk, supernet_sgd
from kws_jax.training.loop import fit
from kws_jax.training.steps import Recipe

CHUNK = 10


def train_supernet(problem: Problem, *, data, config: dict, workdir, arch_every: int, name: str):
    """Trains a supernet, and its arch params every `arch_every`-th step (0: never).

    Args:
      problem: what is wanted.
      data: `Dataset`.
      config: `seed`, `batch`, `warmup_epochs`, `epochs`, `lr`, `warmup_lr`, `weight_decay`,
        `arch_lr`, `price` (`name`, `beta`, `weight`, `reference`, the target if left out), and
        `recipe`.
      workdir: run directory; an interrupted run continues there.
      arch_every: weight steps per arch step.
      name: of the run, for display.

    Returns:
      The final train state and the run's summary.
    """
    space, table = problem.space, problem.macs_table
    per_epoch = steps_per_epoch(data, config['batch'])
    warmup, steps = (per_epoch * config[k] for k in ('warmup_epochs', 'epochs'))
    total = warmup + steps
    optimizer = supernet_sgd(
        lr=config['lr'],
        warmup_lr=config['warmup_lr'],
        warmup_steps=warmup,
        steps=total,
        weight_decay=config['weight_decay'],
    )
    arch_optimizer = arch_adam(
        lr=config['arch_lr'], warmup_steps=warmup, steps=total, every=max(arch_every, 1)
    )
    price = prices.make(**{'reference': problem.macs} | config['price'])
    shared = {'front_end': problem.front_end, 'space': space, 'price': price}
    state = init_search_state(
        jax.random.key(config['seed']), optimizer=optimizer, arch_optimizer=arch_optimizer, **shared
    )
    chunk = make_search_chunk(
        table=table,
        optimizer=optimizer,
        arch_optimizer=arch_optimizer,
        recipe=Recipe(seed=config['seed'], **config['recipe']),
        noise=jnp.asarray(data.noise),
        warmup_steps=warmup,
        arch_every=arch_every,
        **shared,
    )

    def evaluate(state):
        rows = arch_lib.probabilities(space, state.arch)
        return {
            'expected_cost': table.expected(rows),
            'entropy': arch_lib.entropy(space, state.arch),
            'probabilities': {layer.name: p for layer, p in zip(space.layers, rows, strict=True)},
        }

    return fit(
        workdir=workdir,
        state=state,
        chunk=chunk,
        source=search_source(
            data, data.evaluation('validation'), batch=config['batch'], seed=config['seed']
        ),
        total_steps=total,
        steps_per_epoch=per_epoch,
        chunk_size=CHUNK,
        evaluate=evaluate,
        config=config | {'space': space.to_json(), 'macs': problem.macs, 'data': data.fingerprint},
        name=name,
        params_of=lambda state: state.params | {'arch params': state.arch},
    )


def describe(problem: Problem, architecture, summary: dict | None) -> dict:
    """The facts that every search reports."""
    macs = problem.macs_table.of(architecture)
    return {
        'choices': [choice.name for choice in architecture.choices],
        'macs': int(macs),
        'macs_target': int(problem.macs),
        'macs_over_target': macs / problem.macs,
        'parameters': int(problem.parameters_table.of(architecture)),
        'wall_seconds': 0.0 if summary is None else summary['wall_seconds'],
    }


def log_probabilities(problem: Problem, arch: dict) -> list[np.ndarray]:
    """Scores for `arch.choose_within`."""
    rows = arch_lib.logits(problem.space, arch)
    return [np.asarray(jax.nn.log_softmax(row)) for row in rows]
