"""One training step of a network, float or quantized, as a pure function, and chunks of it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax import costs, network, quantizers
from kws_jax.data.augment import augment, mixup, spec_augment
from kws_jax.frontends import FrontEnd
from kws_jax.space import Architecture
from kws_jax.training import losses
from kws_jax.training.chunks import make_chunk
from kws_jax.training.state import TrainState, move_average


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How batches are made and what is minimized.

    Attributes:
      seed: of every random draw of the steps.
      label_smoothing: share of the target spread over all classes.
      augment: keyword arguments of `data.augment.augment`.
      spec_augment: keyword arguments of `data.augment.spec_augment`, or None for none.
      mixup: alpha of `data.augment.mixup`; 0 mixes nothing.
      distill: weight of the teacher against the labels, 0 to 1.
      temperature: of the distillation.
      ema: decay of the moving average of weights; 0 keeps none.
    """

    seed: int = 0
    label_smoothing: float = 0.1
    augment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spec_augment: Mapping[str, Any] | None = None
    mixup: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    ema: float = 0.0


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Makes sure that `Recipe(**recipe)` and what it calls know all its settings.

    Raises:
      TypeError: names the one that they do not know.
    """
    made = Recipe(**recipe)
    for function, options in ((augment, made.augment), (spec_augment, made.spec_augment or {})):
        known = inspect.signature(function).parameters
        for option in options:
            if option not in known:
                raise TypeError(f'recipe: {function.__name__} has no setting {option!r}')


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What a quantized step needs beside the network.

    Attributes:
      form: how tensors are rounded.
      bits: `{layer: {'weight': int | None, 'activation': int | None}}`; None is learned.
      optimizer: of the quant params.
      weight_sites, activation_sites: sizes, for mean bit-widths.
      weight_price, activation_price: `price(mean_bits) -> loss`.
      frozen_averages_from: step from which batch norm uses (and keeps) its averages, so that the
        last part trains exactly what is exported.
    """

    form: quantizers.Form
    bits: Mapping[str, Mapping[str, int | None]]
    optimizer: optax.GradientTransformation
    weight_sites: Mapping[str, int]
    activation_sites: Mapping[str, int]
    weight_price: Callable = lambda bits: 0.0 * bits
    activation_price: Callable = lambda bits: 0.0 * bits
    frozen_averages_from: int | None = None

    def mean_bits(self, quant_params, kind: str) -> jax.Array:
        """Mean bit-width of one kind, weighted by size, fixed and learned ones together."""
        sites = self.weight_sites if kind == 'weight' else self.activation_sites
        each = quantizers.learned_bits(self.form, quant_params, kind)
        return jnp.asarray(costs.mean_bits(each, sites), jnp.float32)


def training_input(key, batch, noise, recipe: Recipe, classes: int):
    """Augmented waveforms `[batch, samples]` and target probabilities `[batch, classes]`."""
    augment_key, mix_key = jax.random.split(key)
    audio = augment(
        augment_key,
        batch['audio'],
        batch['is_silence'],
        noise,
        is_unknown=batch.get('is_unknown'),
        **recipe.augment,
    )
    targets = losses.soft_labels(batch['label'], classes, recipe.label_smoothing)
    if recipe.mixup:
        audio, targets = mixup(mix_key, audio, targets, alpha=recipe.mixup)
    return audio, targets


def step_key(recipe: Recipe, step: jax.Array, purpose: int) -> jax.Array:
    """The key of one purpose at one step: a restart at a step continues the same stream."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), purpose), step)


def make_train_step(
    *,
    front_end: FrontEnd,
    architecture: Architecture,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    quantization: Quantization | None = None,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable:
    """Builds the pure `step(state, batch, noise) -> (state, metrics)`, for `jax.jit` or `lax.scan`.

    `batch` holds int16 `audio` `[batch, samples]`, int32 `label` `[batch]` and bool `is_silence`
    `[batch]`; `noise` is int16 `[length]`. `metrics` are float32 scalars: `loss`, `cross_entropy`,
    `accuracy`, `grad_norm`, and `distillation`, `weight_bits`, `activation_bits` where they apply.

    Args:
      front_end, architecture: the network.
      optimizer: of the weights.
      recipe: how batches are made and what is minimized.
      quantization: trains through rounding; None trains the float network.
      teacher: `teacher(audio) -> logits`, for `recipe.distill` > 0.

    Raises:
      ValueError: `recipe.distill` is above 0 and there is no teacher.
    """
    classes = architecture.space.classes
    if recipe.distill and teacher is None:
        raise ValueError(
            f'recipe.distill is {recipe.distill}, but no teacher was given; pass one or set it to 0'
        )

    def loss_fn(trained, state, audio, targets, soft, image_key):
        params, quant_params = trained
        quant = network.no_quant
        if quantization is not None:
            quant = quantizers.make_quant(quantization.form, quant_params, quantization.bits)
        transform = None
        if recipe.spec_augment is not None:
            transform = lambda image: spec_augment(image_key, image, **recipe.spec_augment)  # noqa: E731
        train = True
        if quantization is not None and quantization.frozen_averages_from is not None:
            train = state.step < quantization.frozen_averages_from
        logits, averages = network.apply(
            params,
            state.averages,
            audio,
            front_end=front_end,
            architecture=architecture,
            train=train,
            quant=quant,
            transform_image=transform,
        )
        loss = losses.cross_entropy(logits, targets)
        metrics = {'cross_entropy': loss}
        if soft is not None:
            distance = losses.distillation(logits, soft, temperature=recipe.temperature)
            loss = (1.0 - recipe.distill) * loss + recipe.distill * distance
            metrics['distillation'] = distance
        if quantization is not None:
            weight_bits = quantization.mean_bits(quant_params, 'weight')
            activation_bits = quantization.mean_bits(quant_params, 'activation')
            loss = loss + quantization.weight_price(weight_bits)
            loss = loss + quantization.activation_price(activation_bits)
            metrics |= {'weight_bits': weight_bits, 'activation_bits': activation_bits}
        return loss, (logits, averages, metrics)

    def step(state: TrainState, batch, noise):
        audio, targets = training_input(
            step_key(recipe, state.step, 0), batch, noise, recipe, classes
        )
        soft = jax.lax.stop_gradient(teacher(audio)) if recipe.distill else None
        (loss, (logits, averages, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            (state.params, state.quant),
            state,
            audio,
            targets,
            soft,
            step_key(recipe, state.step, 1),
        )
        updates, opt = optimizer.update(grads[0], state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        quant, quant_opt = state.quant, state.quant_opt
        if quantization is not None:
            moves, quant_opt = quantization.optimizer.update(grads[1], quant_opt, quant)
            quant = quantizers.project(quantization.form, optax.apply_updates(quant, moves))
        ema = state.ema
        if recipe.ema:
            ema = move_average(ema, (params, averages), state.step, recipe.ema)
        metrics |= {
            'loss': loss,
            'accuracy': losses.accuracy(logits, jnp.argmax(targets, axis=-1)),
            'grad_norm': optax.tree.norm(grads[0]),
        }
        state = state.replace(
            step=state.step + 1,
            params=params,
            averages=averages,
            opt=opt,
            quant=quant,
            quant_opt=quant_opt,
            ema=ema,
        )
        return state, metrics

    return step


def make_train_chunk(*, noise: jax.Array, **options) -> Callable:
    """Builds `chunk(state, batches) -> (state, metrics)` of the steps that `options` describe.

    Args:
      noise: int16 `[length]`, background noise.
      **options: of `make_train_step`.

    `batches` and `metrics` are as there, with a leading axis of steps.
    """
    return make_chunk(make_train_step(**options), noise)


def init_train_state(
    params, averages, optimizer, *, recipe: Recipe, quant=None, quant_optimizer=None
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        averages=averages,
        opt=optimizer.init(params),
        quant=quant,
        quant_opt=None if quant is None else quant_optimizer.init(quant),
        ema=jax.tree.map(jnp.array, (params, averages)) if recipe.ema else None,
    )


def watched(state: TrainState) -> dict:
    """What must stay finite, by layer: weights, and quant params where there are any."""
    return state.params | ({} if state.quant is None else {'quant params': state.quant})


def final_weights(state: TrainState):
    """What a run ends with: the moving average where one was kept, else the last weights."""
    return (state.params, state.averages) if state.ema is None else state.ema
