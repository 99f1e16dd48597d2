"""One search step as a pure function: sample a path, update its weights, update the arch params."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kws_jax import supernet
from kws_jax.costs import CostTable
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.frontends import FrontEnd
from kws_jax.search import arch as arch_lib
from kws_jax.search.prices import Price
from kws_jax.space import SearchSpace
from kws_jax.training import losses
from kws_jax.training.chunks import compile_together, make_chunk
from kws_jax.training.state import TrainState, decayed
from kws_jax.training.steps import Recipe, step_key, training_input


def arch_adam(*, lr: float, warmup_steps: int, steps: int, every: int):
    """Adam without momentum whose rate rises from 0 to `lr`, as the sibling's code has it.

    Update k of n has the rate `lr * (1 - cos(pi / 2 * k / n))` (Peter et al. 2020).

    Args:
      lr: rate of the last update.
      warmup_steps: weight steps before the first update.
      steps: weight steps in all.
      every: weight steps per update.
    """
    updates = max((steps - warmup_steps) // every, 1)
    schedule = lambda count: lr * (1.0 - jnp.cos(0.5 * jnp.pi * (count + 1) / updates))  # noqa: E731
    return optax.adam(schedule, b1=0.0, b2=0.999, eps=1e-8)


def supernet_sgd(
    *, lr: float, warmup_lr: float, warmup_steps: int, steps: int, weight_decay: float
):
    """SGD with Nesterov momentum 0.9: one cosine down over warm-up, another over the search.

    Args:
      lr, warmup_lr: rates at the start of the search and of the warm-up; both end at zero.
      warmup_steps, steps: weight steps of the warm-up, and in all.
      weight_decay: of convolutions and classifier.
    """
    schedule = optax.join_schedules(
        [
            optax.cosine_decay_schedule(warmup_lr, max(warmup_steps, 1)),
            optax.cosine_decay_schedule(lr, max(steps - warmup_steps, 1)),
        ],
        [warmup_steps],
    )
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )


def _map_like_params(fn: Callable, params: dict, opt, *others):
    """Applies `fn` to every part of an optimizer state that is shaped like the weights."""
    keys = set(params)
    like_params = lambda tree: isinstance(tree, dict) and set(tree) == keys  # noqa: E731

    def visit(tree, *rest):
        return fn(tree, *rest) if like_params(tree) else rest[0] if rest else tree

    return jax.tree.map(visit, opt, *others, is_leaf=like_params)


def weight_update(
    state: TrainState,
    batch: dict,
    noise: jax.Array,
    *,
    front_end: FrontEnd,
    space: SearchSpace,
    optimizer,
    recipe: Recipe,
) -> tuple[TrainState, dict]:
    """Samples a path and updates its weights, momenta and averages; nothing else is touched.

    Args:
      state: before the step.
      batch: int16 `audio` `[batch, samples]`, int32 `label` `[batch]`, bool `is_silence` `[batch]`.
      noise: int16 `[length]`.
      front_end, space: static.
      optimizer: of the weights, as in `state.opt`.
      recipe: how batches are made and what is minimized.

    Returns:
      The state (its `step` not yet counted up), and float32 scalars `loss` and `accuracy`.
    """
    path = arch_lib.sample_path(step_key(recipe, state.step, 2), space, state.arch)
    audio, targets = training_input(
        step_key(recipe, state.step, 0), batch, noise, recipe, space.classes
    )
    slices = supernet.select(space, state.params, path)
    averages = supernet.select(space, state.averages, path)

    def loss_fn(slices):
        logits, new, _ = supernet.apply_slices(
            slices, averages, audio, path, front_end=front_end, space=space, train=True
        )
        return losses.cross_entropy(logits, targets), (logits, new)

    (loss, (logits, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(slices)
    opt = _map_like_params(lambda t: supernet.select(space, t, path), state.params, state.opt)
    updates, new_opt = optimizer.update(grads, opt, slices)
    slices = optax.apply_updates(slices, updates)
    put = lambda whole, part: supernet.scatter(space, whole, part, path)  # noqa: E731
    metrics = {'loss': loss, 'accuracy': losses.accuracy(logits, jnp.argmax(targets, axis=-1))}
    return (
        state.replace(
            params=put(state.params, slices),
            averages=put(state.averages, new),
            opt=_map_like_params(put, state.params, state.opt, new_opt),
        ),
        metrics,
    )


def arch_gradients(
    state: TrainState, path, audio, labels, *, front_end, space
) -> tuple[jax.Array, jax.Array, dict]:
    """The loss on one validation batch and its gradient to the arch params, through the gates.

    Gradient mode of ProxylessNAS (Cai et al. 2019, eq. 4): the gradient to every candidate's gate,
    times the Jacobian of the softmax. A sampled identity is treated like any other candidate.

    Args:
      state: weights, averages and arch params.
      path: int32 `[layers]`, the sampled path.
      audio: float32 `[batch, samples]`.
      labels: int32 `[batch]`.
      front_end, space: static.

    Returns:
      Loss (no label smoothing), accuracy, and the gradient with the structure of `state.arch`.
    """
    slices = supernet.select(space, state.params, path)
    averages = supernet.select(space, state.averages, path)
    nudges = [
        jnp.zeros(supernet.layer_output_shape(layer, audio.shape[0])) for layer in space.layers
    ]

    def loss_fn(nudges):
        logits, _, inputs = supernet.apply_slices(
            slices,
            averages,
            audio,
            path,
            front_end=front_end,
            space=space,
            train=True,
            nudges=nudges,
        )
        targets = losses.soft_labels(labels, space.classes, 0.0)
        return losses.cross_entropy(logits, targets), (losses.accuracy(logits, labels), inputs)

    (loss, (accuracy, inputs)), at_outputs = jax.value_and_grad(loss_fn, has_aux=True)(nudges)
    gates = supernet.gate_gradients(state.params, state.averages, inputs, at_outputs, space=space)
    _, to_arch = jax.vjp(lambda a: arch_lib.probabilities(space, a), state.arch)
    return loss, accuracy, to_arch(gates)[0]


def arch_update(
    state: TrainState,
    batch: dict,
    *,
    front_end: FrontEnd,
    space: SearchSpace,
    table: CostTable,
    price: Price,
    optimizer,
    recipe: Recipe,
) -> TrainState:
    """One update of the arch params on a validation batch; weights and averages stay.

    Args:
      state: before the update.
      batch: int16 `validation_audio` `[batch, samples]`, int32 `validation_label` `[batch]`.
      front_end, space: static.
      table: the cost that the price is on.
      price: how loss and cost go together.
      optimizer: of the arch params.
      recipe: gives the seed of the sampled path.
    """
    path = arch_lib.sample_path(step_key(recipe, state.step, 3), space, state.arch)
    audio = int16_to_float(batch['validation_audio'])
    loss, accuracy, loss_gradient = arch_gradients(
        state, path, audio, batch['validation_label'], front_end=front_end, space=space
    )
    expected = lambda a: table.expected(arch_lib.probabilities(space, a))  # noqa: E731
    cost, cost_gradient = jax.value_and_grad(expected)(state.arch)
    loss_factor, cost_factor, price_state = price.factors(
        state.price['state'],
        loss=loss,
        cost=cost,
        loss_norm=optax.tree.norm(loss_gradient),
        cost_norm=optax.tree.norm(cost_gradient),
    )
    gradient = jax.tree.map(
        lambda a, b: loss_factor * a + cost_factor * b, loss_gradient, cost_gradient
    )
    updates, arch_opt = optimizer.update(gradient, state.arch_opt, state.arch)
    arch = optax.apply_updates(state.arch, updates)
    # the last validation loss rides along, so that every step can report it
    seen = {'state': price_state, 'loss': loss, 'accuracy': accuracy}
    return state.replace(arch=arch, arch_opt=arch_opt, price=seen)


def make_search_step(
    *,
    front_end: FrontEnd,
    space: SearchSpace,
    table: CostTable,
    price: Price,
    optimizer: optax.GradientTransformation,
    arch_optimizer: optax.GradientTransformation,
    recipe: Recipe,
    warmup_steps: int,
    arch_every: int,
) -> Callable:
    """Builds the pure `step(state, batch, noise) -> (state, metrics)`, for `jax.jit` or `lax.scan`.

    Each step updates the weights of a sampled path; from `warmup_steps` on every `arch_every`-th
    also updates the arch params, under `lax.cond`. `arch_every=0` never does (uniform sampling).

    `batch` holds int16 `audio` `[batch, samples]`, int32 `label` `[batch]`, bool `is_silence`
    `[batch]`, int16 `validation_audio` `[m, samples]` and int32 `validation_label` `[m]`; `noise`
    is int16 `[length]`. `metrics` are float32 scalars: `loss`, `accuracy`, `expected_cost`,
    `entropy`, and, where arch params move, `validation_loss` and `validation_accuracy` of the last
    arch update (zero before the first).

    Args:
      front_end, space: the supernet.
      table: the cost that the price is on.
      price: how loss and cost go together in an arch update.
      optimizer, arch_optimizer: of the weights and of the arch params.
      recipe: how batches are made and what is minimized.
      warmup_steps: steps before the first arch update.
      arch_every: weight steps per arch update.
    """
    update, move, look = make_search_parts(
        front_end=front_end,
        space=space,
        table=table,
        price=price,
        optimizer=optimizer,
        arch_optimizer=arch_optimizer,
        recipe=recipe,
    )

    def step(state, batch, noise):
        state, metrics = update(state, batch, noise)
        if arch_every:
            due = (state.step >= warmup_steps) & (state.step % arch_every == 0)
            state = jax.lax.cond(due, lambda s: move(s, batch), lambda s: s, state)
        return look(state, metrics, bool(arch_every))

    return step


def make_search_parts(*, table, price, optimizer, arch_optimizer, recipe, **network):
    """What a search step is made of, as three pure functions; arguments as `make_search_step`.

    Returns:
      `update(state, batch, noise) -> (state, metrics)` of the weights, `move(state, batch) ->
      state` of the arch params, and `look(state, metrics, moves) -> (state, metrics)`, which
      counts the step and adds what it reports.
    """

    def update(state, batch, noise):
        return weight_update(state, batch, noise, optimizer=optimizer, recipe=recipe, **network)

    def move(state, batch):
        options = {'table': table, 'price': price, 'recipe': recipe}
        return arch_update(state, batch, optimizer=arch_optimizer, **options, **network)

    def look(state, metrics, moves):
        space = network['space']
        if moves:
            metrics |= {
                'validation_loss': state.price['loss'],
                'validation_accuracy': state.price['accuracy'],
            }
        metrics |= {
            'expected_cost': table.expected(arch_lib.probabilities(space, state.arch)),
            'entropy': arch_lib.entropy(space, state.arch),
        }
        return state.replace(step=state.step + 1), metrics

    return update, move, look


def make_search_chunk(
    *, noise: jax.Array, warmup_steps: int, arch_every: int, **options
) -> Callable:
    """Builds `chunk(state, batches) -> (state, metrics)` of the steps that `options` describe.

    On the CPU the arch update is a jitted function of its own, called when it is due: the branches
    of a `lax.cond` run on one thread there.

    Args:
      noise: int16 `[length]`, background noise.
      warmup_steps, arch_every, **options: of `make_search_step`.

    `batches` and `metrics` are as there, with a leading axis of steps.
    """
    update, move, look = make_search_parts(**options)
    update, move = jax.jit(update, donate_argnums=0), jax.jit(move, donate_argnums=0)
    look = jax.jit(look, static_argnums=2, donate_argnums=0)
    # on several devices the compiler may place a state anew after each step: left to jit
    compiled = [] if jax.local_device_count() == 1 else [update, move]

    def host_step(state, batch, noise):
        if not compiled:
            calls = [(update, state, batch, noise), (move, state, batch)]
            compiled.extend(compile_together(*calls[: 1 + bool(arch_every)]))
        number = int(state.step)
        state, metrics = compiled[0](state, batch, noise)
        if arch_every and number >= warmup_steps and number % arch_every == 0:
            state = compiled[1](state, batch)
        return look(state, metrics, bool(arch_every))

    step = make_search_step(warmup_steps=warmup_steps, arch_every=arch_every, **options)
    return make_chunk(step, noise, host_step=host_step)


def init_search_state(
    key, *, front_end, space, optimizer, arch_optimizer, price: Price
) -> TrainState:
    """The state before the first search step.

    Args:
      key: of weights and arch params.
      front_end, space: the supernet.
      optimizer, arch_optimizer: of the weights and of the arch params.
      price: whose state is carried along.
    """
    params, averages = supernet.init(jax.random.fold_in(key, 0), front_end, space)
    arch = arch_lib.init(jax.random.fold_in(key, 1), space)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        averages=averages,
        opt=optimizer.init(params),
        arch=arch,
        arch_opt=arch_optimizer.init(arch),
        price={'state': price.init(), 'loss': jnp.zeros(()), 'accuracy': jnp.zeros(())},
    )
