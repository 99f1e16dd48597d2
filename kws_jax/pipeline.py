"""The main job: search, retrain, fixed and trained bit-widths, evaluation; every phase resumes."""

import hashlib
import json
import os
import pathlib
import platform
import time

import jax
from absl import logging

from kws_jax import frontends, network, quantizers, zoo
from kws_jax import model as model_lib
from kws_jax.data.batches import steps_per_epoch
from kws_jax.model import Model
from kws_jax.search import SEARCHERS, Problem, SearchResult, describe, prices, proxyless
from kws_jax.space import SearchSpace, mfcc_space, table1_space
from kws_jax.training.quantized_runs import (
    check_trained_bits,
    check_widths,
    quantize_fixed,
    quantize_trained,
)
from kws_jax.training.runs import evaluate_model, train
from kws_jax.training.steps import check_recipe

SPACES = {'table1': table1_space, 'mfcc': mfcc_space}


def make_space(config: dict, image_shape, classes: int) -> SearchSpace:
    """The search space that a config describes.

    Args:
      config: `{'name': 'table1'}`, `{'name': 'mfcc', 'width': 1.0}`, or a space written out as
        `SearchSpace.to_json` gives it, without image_shape and classes.
      image_shape: of the front end.
      classes: number of labels.
    """
    options = dict(config)
    name = options.pop('name', None)
    if name is None:
        return SearchSpace.from_json(options | {'image_shape': image_shape, 'classes': classes})
    if name not in SPACES:
        raise ValueError(f'space.name must be one of {", ".join(SPACES)}, got {name!r}')
    return SPACES[name](image_shape=tuple(image_shape), classes=classes, **options)


def make_problem(config: dict, labels) -> Problem:
    """The search problem that a config describes."""
    front_end = frontends.make(**config['front_end'])
    return Problem(
        front_end=front_end,
        space=make_space(config['space'], front_end.image_shape, len(labels)),
        **config['target'],
    )


def check(config: dict, data) -> None:
    """Makes sure that every phase can run, before hours go into the first one.

    Args:
      config: plain dict, as in `configs/sinc60.py`.
      data: `Dataset`.

    Raises:
      ValueError: names the setting that cannot be used, or the split that has no recordings.
    """
    for split in ('validation', 'testing')[: 1 + config['test']]:
        data.evaluation_rows(split)
    teacher = config['teacher']['model'] if config['teacher']['enabled'] else ''
    named = [('float_model', config['float_model']), ('teacher.model', teacher)]
    for group in ('fixed_bits', 'trained_bits'):
        named += [(f'{group}.teachers', name) for name in config[group]['teachers']]
    for key, name in named:
        if not name:
            continue
        model = zoo.load(name)
        if tuple(model.labels) != tuple(data.labels.names):
            raise ValueError(
                f'{key}: {name} knows the classes {" ".join(model.labels)}, the data have '
                f'{" ".join(data.labels.names)}; set data.labels, or train a model of your own'
            )
        if model.quant is not None:
            raise ValueError(f'{key}: {name} is quantized; name a model in float')
    _check_start(config)
    make_problem(config, data.labels.names)
    search, trained, fixed = (config[k] for k in ('search', 'trained_bits', 'fixed_bits'))
    if search['method'] not in (*SEARCHERS, 'given'):
        known = ', '.join([*SEARCHERS, 'given'])
        raise ValueError(f'search.method must be one of {known}, got {search["method"]!r}')
    if config['train']['recipe'].get('distill') and not config['teacher']['enabled']:
        raise ValueError('train.recipe.distill needs a teacher: set teacher.enabled=True')
    for group in ('search', 'teacher', 'train', 'fixed_bits', 'trained_bits'):
        settings = config[group]
        if settings.get('teachers') and not settings['recipe'].get('distill'):
            raise ValueError(f'{group}.teachers are not heard: set {group}.recipe.distill above 0')
        for key in ('epochs', 'learn_epochs'):
            if settings.get(key, 1) < 1:
                raise ValueError(f'{group}.{key} must be at least 1, got {settings[key]}')
        try:
            check_recipe(settings['recipe'])
        except TypeError as error:
            raise ValueError(f'{group}.{error}') from None
    for name, batch in (('search.batch', search['batch']), ('batch', config['batch'])):
        try:
            steps_per_epoch(data, batch)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
    prices.make(**{'reference': config['target']['macs']} | search['price'])
    proxyless.check_choose(search['choose'])
    for weight, activation in fixed['pairs']:
        check_widths(weight, activation, fixed)
    if fixed['pairs']:
        quantizers.get_form(fixed['form'])
    if trained['enabled']:
        check_trained_bits(trained)


def _check_start(config):
    """`fixed_bits.start_model` and `float_model` must be of one network."""
    name, of = config['fixed_bits']['start_model'], config['float_model']
    if not name:
        return
    if not of:
        raise ValueError('fixed_bits.start_model needs float_model: the same network in float')
    start, model = zoo.load(name), zoo.load(of)
    for part in ('labels', 'front_end', 'architecture'):
        if getattr(start, part) != getattr(model, part):
            raise ValueError(
                f'fixed_bits.start_model: {name} has another {part} than float_model, {of}; '
                'name one that was quantized from it'
            )


def _digest(model: Model) -> str:
    leaves = jax.tree.leaves((model.params, model.averages))
    hashed = hashlib.blake2b(digest_size=8)
    for leaf in leaves:
        hashed.update(jax.device_get(leaf).tobytes())
    return hashed.hexdigest()


def _flat(config: dict, prefix: str = '') -> dict:
    """`{'search.batch': 32}` of `{'search': {'batch': 32}}`."""
    flat = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
    return flat


def _phase(workdir: pathlib.Path, name: str, config: dict, build) -> Model:
    """What `build(folder)` makes, or what it made before from the same config."""
    folder = workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'phase.json'
    config = json.loads(json.dumps(config, sort_keys=True))
    begun = any(child != path for child in folder.iterdir())
    old = json.loads(path.read_text()) if path.exists() and begun else config
    if old != config:
        before, after = _flat(old), _flat(config)
        changed = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
        raise ValueError(
            f'{folder} was made with another configuration (different: {", ".join(changed)}); '
            'use another --workdir, or delete that folder to make it again'
        )
    _write_json(path, config)
    if (folder / 'model' / 'model.json').exists():
        logging.info('%s: finished before, kept', name)
        return model_lib.load(folder / 'model')
    logging.info('%s: starts', name)
    began = time.monotonic()
    model = build(folder)
    model_lib.save(model, folder / 'model')
    logging.info('%s: done in %.0f s', name, time.monotonic() - began)
    return model_lib.load(folder / 'model')


def search_phase(config: dict, data, workdir) -> Model:
    """Searches; returns the chosen network with its supernet weights (or fresh ones).

    The method 'given' searches nothing: it takes `config['search']['choices']`.
    """
    problem = make_problem(config, data.labels.names)
    chosen = config['search'] | {'seed': config['seed']}
    method = chosen.pop('method')

    def build(folder):
        if method == 'given':
            architecture = problem.space.architecture(chosen['choices'])
            facts = describe(problem, architecture, None)
            result = SearchResult(architecture, None, None, facts)
        else:
            result = SEARCHERS[method](problem, data=data, config=chosen, workdir=folder)
        params, averages = result.params, result.averages
        if params is None or not config['train']['from_supernet']:
            key = jax.random.key(config['seed'])
            params, averages = network.init(key, problem.front_end, result.architecture)
        return Model(
            front_end=config['front_end'],
            architecture=result.architecture,
            labels=data.labels.names,
            params=params,
            averages=averages,
            card=result.facts | {'method': method},
        )

    about = {k: config[k] for k in ('seed', 'front_end', 'space', 'target', 'search')}
    about |= {'from_supernet': config['train']['from_supernet'], 'data': data.fingerprint}
    return _phase(workdir, 'search', about, build)


def teacher_phase(config: dict, data, workdir) -> Model | None:
    """Trains a larger float network to teach the chosen one, or takes the released one (or a run's)
    that the config names; None if it wants no teacher."""
    settings = config['teacher'] | {k: config[k] for k in ('seed', 'batch')}
    if not settings.pop('enabled'):
        return None
    if given := settings.pop('model'):
        return zoo.load(given)

    def build(folder):
        front_end = frontends.make(**config['front_end'])
        space = make_space(settings['space'], front_end.image_shape, len(data.labels.names))
        architecture = space.architecture(settings['choices'])
        params, averages = network.init(jax.random.key(config['seed']), front_end, architecture)
        start = Model(config['front_end'], architecture, data.labels.names, params, averages)
        return train(start, data=data, config=settings, workdir=folder, name='teacher')

    about = settings | {'front_end': config['front_end'], 'data': data.fingerprint}
    return _phase(workdir, 'teacher', about, build)


def train_phase(config: dict, data, workdir, start: Model, teacher: Model | None = None) -> Model:
    """Trains the chosen network in float; `teacher` teaches where `recipe.distill` > 0."""
    settings = {k: v for k, v in config['train'].items() if k != 'from_supernet'}
    settings |= {'seed': config['seed'], 'batch': config['batch']}
    about = settings | {'start': _digest(start), 'data': data.fingerprint}
    if teacher is not None:
        about['teacher'] = _digest(teacher)

    def build(folder):
        return train(
            start, data=data, config=settings, workdir=folder, name='train', teacher=teacher
        )

    return _phase(workdir, 'float', about, build)


def quantize_phases(config: dict, data, workdir, float_model: Model) -> dict[str, Model]:
    """The fixed and the trained bit-widths that the config asks for, by name.

    Each ends with the constants that its integer form has (`deploy.snap`): what is scored and
    saved is what runs on a device.
    """
    shared = {'seed': config['seed'], 'batch': config['batch']}
    about = {'start': _digest(float_model), 'data': data.fingerprint}
    models = {}

    def make(name, settings, quantize, **options):
        settings = settings | shared
        teachers = [zoo.load(teacher) for teacher in settings.pop('teachers')]
        others = {'teachers': [_digest(teacher) for teacher in teachers]} if teachers else {}
        if start := settings.pop('start_model', ''):
            options['start'] = zoo.load(start)
            others['start_model'] = _digest(options['start'])

        def build(folder):
            run = {'data': data, 'config': settings, 'workdir': folder, 'name': name}
            return quantize(float_model, teachers=teachers, **run, **options)

        models[name] = _phase(workdir, name, settings | about | others, build)

    fixed = dict(config['fixed_bits'])
    for weight, activation in fixed.pop('pairs'):
        name = f'fixed-{weight}-{activation}'
        make(name, fixed, quantize_fixed, weight=weight, activation=activation)
    if config['trained_bits']['enabled']:
        trained = {k: v for k, v in config['trained_bits'].items() if k != 'enabled'}
        make('trained-bits', trained, quantize_trained)
    return models


def hardware() -> dict:
    """What the numbers were measured on."""
    return {
        'cpu': _processor(),
        'cores': os.cpu_count(),
        'devices': [device.device_kind for device in jax.local_devices()],
        'jax': jax.__version__,
    }


def _processor():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            found = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
    except OSError:
        found = []
    return found[0] if found else platform.processor() or platform.machine()


def run(config: dict, data, workdir) -> dict:
    """Runs every phase that is not finished, and evaluates each model on the test split once
    (not at all where `config['test']` is False: trials are judged on validation).

    Args:
      config: plain dict, as in `configs/sinc60.py`.
      data: `Dataset`.
      workdir: where everything goes; the same command continues there.

    Returns:
      What `results.json` holds: `rows` (name, costs, `bits` of each tensor where it is quantized,
      `validation_accuracy`, test scores, wall seconds), `search` facts, `config`, `data`,
      `hardware`.

    Raises:
      ValueError: as `check`.
    """
    check(config, data)
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    teacher = None
    if config['float_model']:
        searched = float_model = zoo.load(config['float_model'])
        models = {}
    else:
        searched = search_phase(config, data, workdir)
        teacher = teacher_phase(config, data, workdir)
        float_model = train_phase(config, data, workdir, searched, teacher)
        models = {'float': float_model}
    models |= quantize_phases(config, data, workdir, float_model)
    rows = []
    for name, model in models.items():
        rows.append({'name': name, **model.costs(), **model.card})
        if model.quant is not None:
            rows[-1]['bits'] = {kind: model.bits(kind) for kind in ('weight', 'activation')}
        if config['test']:
            rows[-1]['test'] = _tested(workdir / name, model, data)
    results = {
        'rows': rows,
        'search': searched.card | {'architecture': str(searched.architecture)},
        'teacher': None if teacher is None else teacher.costs() | teacher.card,
        'wall_seconds': (0.0 if config['float_model'] else searched.card['wall_seconds'])
        + (0.0 if teacher is None else teacher.card['wall_seconds'])
        + sum(r['wall_seconds'] for r in rows),
        'config': config,
        'data': data.describe(),
        'hardware': hardware(),
    }
    _write_json(workdir / 'results.json', results)
    return results


def _tested(folder, model, data):
    path, digest = folder / 'test.json', _digest(model)
    if path.exists():
        kept = json.loads(path.read_text())
        if kept['model'] == digest and kept['data'] == data.fingerprint:
            return kept['scores']
    scores = evaluate_model(model, data, 'testing')
    zeros = evaluate_model(model, data, 'testing', silence='zeros')
    scores['accuracy_with_zero_silence'] = zeros['accuracy']
    _write_json(path, {'model': digest, 'data': data.fingerprint, 'scores': scores})
    return scores


def _write_json(path: pathlib.Path, content: dict) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=1) + '\n')
    os.replace(temporary, path)
