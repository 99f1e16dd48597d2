"""Whole runs through rounding, at fixed widths and at learned ones; each takes a float `Model` and
returns a quantized one."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from kws_jax import costs, deploy, network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.batches import steps_per_epoch, training_source
from kws_jax.model import Model, quantized_taps, tap_columns
from kws_jax.quantizers.forms import MAX_BITS, is_signed
from kws_jax.training.evaluation import predict_all
from kws_jax.training.loop import fit
from kws_jax.training.runs import CHUNK, evaluate_model, float_logits, validator
from kws_jax.training.state import adam_cosine, sgd
from kws_jax.training.steps import (
    Quantization,
    Recipe,
    final_weights,
    init_train_state,
    make_train_chunk,
    watched,
)


def start_quantizers(model: Model, *, data, form: quantizers.Form, bits: dict) -> dict:
    """Quantizer parameters that fit the float model on some training clips."""
    return quantizers.init_quant_params(form, typical_values(model, data=data), bits)


def typical_values(model: Model, *, data, clips: int = 64) -> dict:
    """What `quantizers.collect` sees in the float model on some training clips."""
    rows, _ = data.epoch(seed=0, epoch=0)
    audio = int16_to_float(jnp.asarray(data.batch(rows[rows >= 0][:clips])))
    front_end = model.make_front_end()

    def run(quant, params, averages, audio):
        return network.apply(
            params,
            averages,
            audio,
            front_end=front_end,
            architecture=model.architecture,
            quant=quant,
        )

    return quantizers.collect(run, model.params, model.averages, audio)


def _quantized_run(
    model, quant_params, quantization, *, teachers, data, config, epochs, lr, workdir, name
):
    """One `fit` of `model` through rounding, taught by the float models `teachers` where the recipe
    says so; returns the final state and its summary."""
    per_epoch = steps_per_epoch(data, config['batch'])
    steps = per_epoch * epochs
    recipe = Recipe(seed=config['seed'], **config['recipe'])
    optimizer = sgd(
        lr=lr,
        steps=steps,
        warmup_steps=min(per_epoch // 2, steps // 10),
        weight_decay=config['weight_decay'],
    )
    quantization = dataclasses.replace(
        quantization,
        optimizer=adam_cosine(lr=config['quant_lr'], steps=steps),
        frozen_averages_from=int(steps * config['batch_statistics']),
    )
    front_end = model.make_front_end()
    chunk = make_train_chunk(
        front_end=front_end,
        architecture=model.architecture,
        optimizer=optimizer,
        recipe=recipe,
        noise=jnp.asarray(data.noise),
        quantization=quantization,
        teacher=float_logits(*teachers) if recipe.distill else None,
    )
    state = init_train_state(
        model.params,
        model.averages,
        optimizer,
        recipe=recipe,
        quant=quant_params,
        quant_optimizer=quantization.optimizer,
    )
    return fit(
        workdir=workdir,
        state=state,
        chunk=chunk,
        source=training_source(data, batch=config['batch'], seed=config['seed'] + 1),
        total_steps=steps,
        steps_per_epoch=per_epoch,
        chunk_size=CHUNK,
        evaluate=validator(data, front_end, model.architecture, quantization),
        config=config | {'architecture': model.architecture.to_json(), 'data': data.fingerprint},
        name=name,
        params_of=watched,
    )


def _sites(model):
    taps = quantized_taps(model.make_front_end())
    return {
        'weight_sites': costs.weight_sites(model.architecture, front_end_weights=taps),
        'activation_sites': costs.activation_sites(model.architecture),
    }


def quantize_fixed(
    model: Model,
    *,
    weight: int,
    activation: int,
    data,
    config: dict,
    workdir,
    name: str,
    teachers: Sequence[Model] = (),
    start: Model | None = None,
) -> Model:
    """Trains a float model through rounding at fixed bit-widths, everywhere.

    Args:
      model: a trained float model; it also teaches where `recipe['distill']` > 0.
      weight, activation: bit-widths, 1 to 8 (16 is accepted, to check the arithmetic).
      data: `Dataset`.
      config: `form`, `seed`, `batch`, `epochs`, `lr`, `quant_lr`, `weight_decay`, `recipe`,
        `batch_statistics`: share of the steps after which batch norm keeps its averages,
        `input_bits`: of the samples, `signed_bits`: of the image and of block outputs, the other
        activations that take both signs; 0 or absent: as every activation.
      workdir: run directory.
      name: of the run.
      teachers: float models that teach together with `model`.
      start: a model of the same network whose weights training begins with, most likely one that
        was trained at more bits: few bits are reached in steps (Zhuang et al. 2018, arXiv
        1711.00205, "progressive quantization"). `model`'s own weights if there is none.

    Raises:
      ValueError: a bit-width out of range.
    """
    samples, signed = check_widths(weight, activation, config)
    start = start or model
    form, sites = quantizers.get_form(config['form']), _sites(model)
    bits = fixed_widths(sites, weight=weight, activation=activation, samples=samples, signed=signed)
    state, summary = _quantized_run(
        start,
        quantizers.fix_bits(form, start_quantizers(start, data=data, form=form, bits=bits), bits),
        Quantization(form=form, bits=bits, optimizer=None, **sites),
        teachers=(model, *teachers),
        data=data,
        config=config,
        epochs=config['epochs'],
        lr=config['lr'],
        workdir=workdir,
        name=name,
    )
    return _finished(model, state, form, bits, summary, {}, data)


def check_widths(weight: int, activation: int, config: dict) -> tuple[int, int]:
    """The widths of the input samples and of other signed activations, as `quantize_fixed` takes
    them.

    Raises:
      ValueError: a width out of range.
    """
    samples, signed = (config.get(k) or activation for k in ('input_bits', 'signed_bits'))
    widths = {'weight': weight, 'activation': activation}
    for argument, bits in (widths | {'input_bits': samples, 'signed_bits': signed}).items():
        if bits not in (*range(1, 9), 16):
            raise ValueError(f'{argument} must be in 1..8 bits (or 16), got {bits}')
    return samples, signed


def fixed_widths(sites: dict, *, weight: int, activation: int, samples: int, signed: int) -> dict:
    """`{layer: {kind: int}}`: `samples` for the input, `signed` for other signed activations."""
    bits = quantizers.uniform_bits(*sites.values(), weight=weight, activation=activation)
    for site in sites['activation_sites']:
        if is_signed(site, 'activation'):
            bits[site]['activation'] = samples if site == 'input' else signed
    return bits


def check_trained_bits(config: dict) -> None:
    """What `quantize_trained` can refuse without a model.

    Raises:
      ValueError: an unknown form or price, or a mean that no widths have.
    """
    quantizers.get_form(config['form'])
    profiles = ('learned', 'sensitivity', 'random', 'uniform')
    if config['profile'] not in profiles:
        raise ValueError(f'profile must be one of {", ".join(profiles)}, got {config["profile"]!r}')
    if config['profile'] != 'learned' and config['price'] != 'budget':
        raise ValueError(f'the profile {config["profile"]} needs a budget: price=budget')
    if config['price'] not in ('budget', 'linear'):
        raise ValueError(f"price must be 'budget' or 'linear', got {config['price']!r}")
    if not config['start_bits'] and config['price'] != 'budget':
        raise ValueError('start_bits=0 starts from widths within a budget: price=budget')
    if config['price'] == 'budget':
        for key, least in (('mean_weight_bits', 2), ('mean_activation_bits', 1)):
            if not config[key] >= least:
                raise ValueError(
                    f'trained_bits.{key} must be at least {least}, got {config[key]:g}'
                )


def _finished(model, state, form, bits, summary, facts, data):
    """The model of a run, with the constants of its integer form: what is scored is what runs."""
    params, averages = final_weights(state)
    quant = {'form': form.name, 'bits': bits, 'params': state.quant}
    model = deploy.snap(
        dataclasses.replace(model, params=params, averages=averages, quant=quant, card={})
    )
    card = facts | {
        'validation_accuracy': evaluate_model(model, data, 'validation')['accuracy'],
        'wall_seconds': facts.get('wall_seconds', 0.0) + summary['wall_seconds'],
    }
    return dataclasses.replace(model, card=card)


def budget_price(*, mean: float, strength: float) -> Callable:
    """`strength * max(bits - mean, 0)^2`: nothing below the budget (Uhlich et al. 2020, eq. 12)."""
    return lambda bits: strength * jnp.square(jnp.maximum(bits - mean, 0.0))


def flash_to_mean_bits(model: Model, flash_bytes: float) -> float:
    """The mean weight bit-width at which the exported model takes `flash_bytes`.

    Raises:
      ValueError: the budget does not even hold what is stored beside the weights.
    """
    front_end = model.make_front_end()
    taps, columns = quantized_taps(front_end), tap_columns(front_end)
    sites = costs.weight_sites(model.architecture, front_end_weights=taps)
    beside = costs.stored_bits(
        model.architecture, weight_bits=0, front_end_weights=taps, front_end_filters=columns
    )
    mean = (flash_bytes * 8 - beside) / sum(sites.values())
    if mean < 2:
        least = math.ceil((beside + 2 * sum(sites.values())) / 8)
        raise ValueError(
            f'flash_bytes must be at least {least} for this architecture at 2 bits per weight, '
            f'got {flash_bytes:g}; ask for more flash or search a smaller network'
        )
    return mean


def quantize_trained(
    model: Model, *, data, config: dict, workdir, name: str, teachers: Sequence[Model] = ()
) -> Model:
    """Learns the bit-width of every weight and activation tensor, then trains at whole widths.

    First the widths move under their price together with weights, steps and ranges. Then whole
    widths are allocated along the learned profile, so that the budget is met, and training goes on
    at these.

    For comparison the profile can come from elsewhere (`profile`): then nothing is learned, and all
    epochs, `learn_epochs` and `epochs` together, are trained at the whole widths.

    Args:
      model: a trained float model; it also teaches where `recipe['distill']` > 0.
      data: `Dataset`.
      config: as for `quantize_fixed`, and `start_bits` (of every tensor; 0: the widths of the
        profile 'sensitivity', within the budget), `learn_epochs`, `learn_lr`, `price`:
        'budget' (`mean_weight_bits`, `mean_activation_bits`, `strength`; or `flash_bytes` for the
        weights) or 'linear' (`weight_lambda`, `activation_lambda`; the paper's form, which has no
        budget); `profile`: 'learned', 'sensitivity' (greedy, by the harm that each tensor's
        rounding does alone), 'random' or 'uniform', the last three within a budget.
      workdir: holds the two runs, `learn` and `finetune`.
      name: of the run.
      teachers: float models that teach together with `model`.

    Raises:
      ValueError: as `check_trained_bits`, or a budget that the model cannot meet.
    """
    check_trained_bits(config)
    form, sites = quantizers.get_form(config['form']), _sites(model)
    learned = quantizers.uniform_bits(*sites.values(), weight=None, activation=None)
    width = config['start_bits'] or MAX_BITS  # replaced below where the start is not even
    even = quantizers.uniform_bits(*sites.values(), weight=width, activation=width)
    start_params = start_quantizers(model, data=data, form=form, bits=even)
    budget = None
    if config['price'] == 'budget':
        flash = config.get('flash_bytes')
        budget = {
            'weight': flash_to_mean_bits(model, flash) if flash else config['mean_weight_bits'],
            'activation': config['mean_activation_bits'],
        }
        prices = {
            f'{kind}_price': budget_price(mean=mean, strength=config['strength'])
            for kind, mean in budget.items()
        }
        # a budget that no widths meet is an error now, not after the widths have been learned
        whole_bits(form, start_params, sites, budget)
    else:
        prices = {
            f'{kind}_price': lambda bits, rate=config[f'{kind}_lambda']: rate * bits
            for kind in ('weight', 'activation')
        }
    workdir = pathlib.Path(workdir)
    run = {'teachers': (model, *teachers), 'data': data, 'config': config}
    if config['profile'] != 'learned':
        bits = _given_bits(model, start_params, form, sites, budget, data=data, config=config)
        return _quantize_at(model, bits, form, sites, budget, workdir, name, **run)
    if not config['start_bits']:
        bits = _sensitive_bits(model, start_params, form, sites, budget, data=data)
        start_params = start_quantizers(model, data=data, form=form, bits=bits)
    state, summary = _quantized_run(
        model,
        start_params,
        Quantization(form=form, bits=learned, optimizer=None, **sites, **prices),
        epochs=config['learn_epochs'],
        lr=config['learn_lr'],
        workdir=workdir / 'learn',
        name=f'{name}: learn',
        **run,
    )
    bits = whole_bits(form, state.quant, sites, budget)
    fixed = Quantization(form=form, bits=bits, optimizer=None, **sites)
    tuned = dataclasses.replace(model, params=state.params, averages=state.averages)
    final, more = _quantized_run(
        tuned,
        quantizers.fix_bits(form, state.quant, bits),
        fixed,
        epochs=config['epochs'],
        lr=config['lr'],
        workdir=workdir / 'finetune',
        name=f'{name}: finetune',
        **run,
    )
    facts = {'wall_seconds': summary['wall_seconds'], 'budget': budget}
    return _finished(model, final, form, bits, more, facts, data)


def _given_bits(model, start_params, form, sites, budget, *, data, config) -> dict:
    """Whole widths within the budget along a profile that is not learned."""
    if config['profile'] == 'sensitivity':
        return _sensitive_bits(model, start_params, form, sites, budget, data=data)
    bits = {}
    for kind, mean in budget.items():
        sizes = sites[f'{kind}_sites']
        floor = {site: 2 if is_signed(site, kind) else 1 for site in sizes}
        wanted = dict.fromkeys(sizes, mean)
        if config['profile'] == 'random':
            draw = np.random.default_rng((config['seed'], kind == 'weight'))
            wanted = {site: draw.uniform(floor[site], 8) for site in sizes}
        whole = quantizers.allocate_bits(wanted, sizes, mean=mean, minimum=floor)
        for site, width in whole.items():
            bits.setdefault(site, {})[kind] = width
    return bits


def _sensitive_bits(model, start_params, form, sites, budget, *, data) -> dict:
    """Whole widths within the budget, greedily where one more bit helps most (see
    `quantizers.greedy_bits`)."""
    losses, bits = _rounding_losses(model, start_params, form, data=data), {}
    for kind, mean in budget.items():
        sizes = sites[f'{kind}_sites']
        harm = {site: losses[site, kind] for site in sizes}
        for site, width in quantizers.greedy_bits(harm, sizes, mean=mean).items():
            bits.setdefault(site, {})[kind] = width
    return bits


def _quantize_at(model, bits, form, sites, budget, workdir, name, **run):
    """Trains at whole widths that were not learned, for the epochs of both phases."""
    data, config = run['data'], run['config']
    params = start_quantizers(model, data=data, form=form, bits=bits)
    final, summary = _quantized_run(
        model,
        quantizers.fix_bits(form, params, bits),
        Quantization(form=form, bits=bits, optimizer=None, **sites),
        epochs=config['learn_epochs'] + config['epochs'],
        lr=config['lr'],
        workdir=workdir / 'finetune',
        name=f'{name}: finetune',
        **run,
    )
    return _finished(model, final, form, bits, summary, {'budget': budget}, data)


def _rounding_losses(model, quant_params, form, *, data, clips: int = 500) -> dict:
    """`{(site, kind): {bits: harm}}`: the mean KL divergence from the float model's predictions on
    some training clips when this tensor alone is rounded, all others at 16 bits."""
    rows, _ = data.epoch(seed=0, epoch=1)
    audio = data.batch(rows[rows >= 0][:clips])
    front_end = model.make_front_end()
    fine = {site: dict.fromkeys(own, 16) for site, own in quant_params.items()}

    @jax.jit
    def rounded(params, clips):
        logits, _ = network.apply(
            model.params,
            model.averages,
            int16_to_float(clips),
            front_end=front_end,
            architecture=model.architecture,
            quant=quantizers.make_quant(form, params, fine),
        )
        return logits

    target = scipy.special.log_softmax(predict_all(model.predictor(), audio), axis=1)

    def harm(params):
        got = predict_all(functools.partial(rounded, params), audio)
        gap = target - scipy.special.log_softmax(got, axis=1)
        return (np.exp(target) * gap).sum(axis=1).mean()

    samples, losses = typical_values(model, data=data), {}
    all_fine = quantizers.fix_bits(form, quantizers.init_quant_params(form, samples, fine), fine)
    for width in range(1, MAX_BITS + 1):
        even = {site: dict.fromkeys(own, width) for site, own in quant_params.items()}
        fitted = quantizers.init_quant_params(form, samples, even)
        for site, own in quant_params.items():
            for kind in own:
                if width < 2 and is_signed(site, kind):
                    continue
                one = form.fix(fitted[site][kind], bits=width, signed=is_signed(site, kind))
                params = all_fine | {site: all_fine[site] | {kind: one}}
                losses.setdefault((site, kind), {})[width] = float(harm(params))
    return losses


def whole_bits(form, quant_params, sites: dict, budget: dict | None) -> dict:
    """Whole widths along the learned profile `{layer: {kind: int}}`, within the budget if there is
    one (mean bits by kind), else each rounded."""
    bits = {}
    for kind in ('weight', 'activation'):
        sizes = sites[f'{kind}_sites']
        learned = {
            name: float(own)
            for name, own in quantizers.learned_bits(form, quant_params, kind).items()
        }
        floor = {name: 2 if is_signed(name, kind) else 1 for name in sizes}
        if budget is None:
            whole = {name: int(np.clip(round(learned[name]), floor[name], 8)) for name in sizes}
        else:
            whole = quantizers.allocate_bits(learned, sizes, mean=budget[kind], minimum=floor)
        for name, width in whole.items():
            bits.setdefault(name, {})[kind] = width
    return bits
