"""Whole runs of training in float; what evaluates any run. `quantized_runs` has those through
rounding."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kws_jax import network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.batches import steps_per_epoch, training_source
from kws_jax.model import Model
from kws_jax.training.evaluation import predict_all, score
from kws_jax.training.loop import fit
from kws_jax.training.state import TrainState, sgd
from kws_jax.training.steps import (
    Quantization,
    Recipe,
    final_weights,
    init_train_state,
    make_train_chunk,
)

CHUNK = 10


def evaluate_model(model: Model, data, split: str, *, silence: str = 'noise') -> dict:
    """What `evaluation.score` says of a model on one split of the data."""
    audio, labels = data.evaluation(split, silence=silence)
    return score(predict_all(model.predictor(), audio), labels, model.labels)


def validator(data, front_end, architecture, quantization: Quantization | None) -> Callable:
    """`evaluate(state)` on the validation split, with what the run would end with now."""
    audio, labels = data.evaluation('validation')

    @jax.jit
    def predict(weights, quant_params, clips):
        quant = network.no_quant
        if quantization is not None:
            quant = quantizers.make_quant(quantization.form, quant_params, quantization.bits)
        logits, _ = network.apply(
            *weights,
            int16_to_float(clips),
            front_end=front_end,
            architecture=architecture,
            quant=quant,
        )
        return logits

    def evaluate(state: TrainState) -> dict:
        weights = final_weights(state)
        result = score(
            predict_all(lambda clips: predict(weights, state.quant, clips), audio),
            labels,
            data.labels.names,
        )
        values = {'accuracy': result['accuracy'], 'cross_entropy': result['cross_entropy']}
        if quantization is not None:
            values['weight_bits'] = quantization.mean_bits(state.quant, 'weight')
            values['activation_bits'] = quantization.mean_bits(state.quant, 'activation')
            values['bits'] = {
                kind: quantizers.learned_bits(quantization.form, state.quant, kind)
                for kind in ('weight', 'activation')
            }
        return values

    return evaluate


def train(
    model: Model, *, data, config: dict, workdir, name: str, teacher: Model | None = None
) -> Model:
    """Trains a float network from the weights of `model`.

    Args:
      model: where to start.
      data: `Dataset`.
      config: `seed`, `batch`, `epochs`, `lr`, `warmup_epochs`, `weight_decay`, `recipe`.
      workdir: run directory; an interrupted run continues there.
      name: of the run, for display.
      teacher: float model for `recipe['distill']` > 0.

    Returns:
      The model after the last epoch (its moving average where the recipe keeps one).
    """
    per_epoch = steps_per_epoch(data, config['batch'])
    recipe = Recipe(seed=config['seed'], **config['recipe'])
    optimizer = sgd(
        lr=config['lr'],
        steps=per_epoch * config['epochs'],
        warmup_steps=int(per_epoch * config['warmup_epochs']),
        weight_decay=config['weight_decay'],
    )
    front_end = model.make_front_end()
    chunk = make_train_chunk(
        front_end=front_end,
        architecture=model.architecture,
        optimizer=optimizer,
        recipe=recipe,
        noise=jnp.asarray(data.noise),
        teacher=None if teacher is None else float_logits(teacher),
    )
    state, summary = fit(
        workdir=workdir,
        state=init_train_state(model.params, model.averages, optimizer, recipe=recipe),
        chunk=chunk,
        source=training_source(data, batch=config['batch'], seed=config['seed']),
        total_steps=per_epoch * config['epochs'],
        steps_per_epoch=per_epoch,
        chunk_size=CHUNK,
        evaluate=validator(data, front_end, model.architecture, None),
        config=config | {'architecture': model.architecture.to_json(), 'data': data.fingerprint},
        name=name,
    )
    params, averages = final_weights(state)
    card = {
        'validation_accuracy': summary['eval']['accuracy'],
        'wall_seconds': summary['wall_seconds'],
    }
    return dataclasses.replace(model, params=params, averages=averages, quant=None, card=card)


def float_logits(*models: Model) -> Callable:
    """`teacher(float32 [batch, samples]) -> logits` of a float model, the mean of those of several
    (softened, their geometric mean: Hinton et al. 2015, sect. 1)."""
    front_ends = [model.make_front_end() for model in models]

    def teacher(audio):
        logits = [
            network.apply(m.params, m.averages, audio, front_end=f, architecture=m.architecture)[0]
            for m, f in zip(models, front_ends, strict=True)
        ]
        return sum(logits) / len(logits)

    return teacher
