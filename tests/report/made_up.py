"""A pipeline's folder, made up without training: models with random weights, invented metrics."""

import json

import jax
import numpy as np

from kws_jax import costs, frontends, network
from kws_jax import model as model_lib
from kws_jax.model import Model, quantized_taps
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs

LABELS = ('yes', 'no', 'silence', 'unknown')


def small_space(image_shape, classes=len(LABELS)):
    return SearchSpace(
        image_shape=tuple(image_shape),
        classes=classes,
        stem=Stem(channels=4, kernel=(3, 3), stride=(2, 2)),
        stages=(
            Stage('iii', channels=6, layers=2, stride=2, candidates=mbconvs((1, 2), (3, 5))),
            Stage('iv', channels=8, layers=2, stride=2, candidates=mbconvs((1, 2), (3, 5))),
        ),
        head_channels=8,
    )


def small_model(
    front_end=None, choices=('e2k3', 'identity', 'e1k5', 'e2k5'), space=None, labels=LABELS, seed=0
):
    options = front_end or {'name': 'sinc', 'filters': 8}
    made = frontends.make(**options)
    architecture = (space or small_space)(made.image_shape, len(labels)).architecture(choices)
    # Right shapes and any numbers: nothing here runs the network.
    trees = jax.eval_shape(lambda key: network.init(key, made, architecture), jax.random.key(0))
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    params, averages = jax.tree.map(draw, trees)
    return Model(options, architecture, tuple(labels), params, averages)


def with_bits(model, weight, activation):
    """The model with made-up bit-widths: functions of the tensor's place."""
    taps = quantized_taps(model.make_front_end())
    bits = {}
    for kind, sites, width in (
        ('weight', costs.weight_sites(model.architecture, front_end_weights=taps), weight),
        ('activation', costs.activation_sites(model.architecture), activation),
    ):
        for i, name in enumerate(sites):
            bits.setdefault(name, {})[kind] = width(i) if callable(width) else width
    quant = {'form': 'step_range', 'bits': bits, 'params': {}}
    return Model(
        model.front_end, model.architecture, model.labels, model.params, model.averages, quant
    )


def write_log(folder, records, *, config=None, steps_per_epoch=10, wall_seconds=60.0, done=True):
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({'wall_seconds': 0.0, 'time': 0.0} | r) for r in records)
    (folder / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))
    loop = {'steps_per_epoch': steps_per_epoch}
    (folder / 'config.json').write_text(json.dumps({'config': config or {}, 'loop': loop}))
    if done:
        facts = {'wall_seconds': wall_seconds, 'step': records[-1]['step']}
        (folder / 'finished.json').write_text(json.dumps(facts))


def search_records(space, *, epochs=4, warmup=2, target=1e6, per_epoch=10):
    rng, records = np.random.default_rng(0), []
    liking = [rng.normal(size=len(layer.choices)) for layer in space.layers]
    for step in range(2, per_epoch * epochs + 1, 2):
        at = step / per_epoch
        heat = max(at - warmup, 0.0) * 8 / (epochs - warmup)
        rows = [np.exp(heat * v) / np.exp(heat * v).sum() for v in liking]
        shares = [-(p * np.log(np.maximum(p, 1e-20))).sum() / np.log(len(p)) for p in rows]
        now = {
            'epoch': -(-step // per_epoch),
            'step': step,
            'wall_seconds': float(step),
            'entropy': float(np.mean(shares)),
            'expected_cost': target * (1 + 0.6 * np.exp(-heat / 3)),
        }
        active = at > warmup
        records.append(
            now
            | {
                'kind': 'train',
                'loss': 0.8 + 1.5 * np.exp(-at) + 0.05 * rng.normal(),
                'accuracy': 0.8 - 0.7 * np.exp(-at) + 0.03 * rng.normal(),
                'validation_loss': 0.9 + np.exp(-at) + 0.1 * rng.normal() if active else 0.0,
                'validation_accuracy': 0.75 - 0.5 * np.exp(-at) if active else 0.0,
            }
        )
        if step % per_epoch == 0:
            names = {
                f'probabilities/{x.name}': p.tolist()
                for x, p in zip(space.layers, rows, strict=True)
            }
            records += [
                now | {'kind': 'epoch', 'epoch_seconds': 10.0},
                now | names | {'kind': 'eval'},
            ]
    return records


def training_records(*, epochs=3, per_epoch=10, final=0.9, bits=None):
    """`bits(kind, name, at)` for every tensor of `bits.names`, where the run learns them."""
    rng, records = np.random.default_rng(1), []
    for step in range(2, per_epoch * epochs + 1, 2):
        at = step / per_epoch
        now = {'epoch': -(-step // per_epoch), 'step': step, 'wall_seconds': float(step)}
        means = {f'{k}_bits': bits(k, None, at) for k in ('weight', 'activation')} if bits else {}
        accuracy = final - 0.6 * np.exp(-1.5 * at)
        records.append(
            now
            | means
            | {
                'kind': 'train',
                'loss': 0.3 + 2 * np.exp(-at) + 0.05 * rng.normal(),
                'accuracy': accuracy - 0.05 + 0.02 * rng.normal(),
            }
        )
        if step % per_epoch == 0:
            each = {}
            if bits:
                each = {
                    f'bits/{k}/{n}': bits(k, n, at)
                    for k, names in bits.names.items()
                    for n in names
                }
            records.append(
                now
                | means
                | each
                | {
                    'kind': 'eval',
                    'accuracy': accuracy,
                    'cross_entropy': 1.2 - accuracy,
                }
            )
    return records


def made_up_scores(labels, *, clips=50, accuracy=0.9, seed=0):
    """A confusion matrix and what follows from it."""
    rng, n = np.random.default_rng(seed), len(labels)
    confusion = np.zeros((n, n), int)
    for i in range(n):
        right = round(accuracy * clips)
        confusion[i, i] += right
        np.add.at(confusion[i], rng.integers(n, size=clips - right), 1)
    hits, total = int(np.trace(confusion)), int(confusion.sum())
    share = hits / total
    return {
        'accuracy': share,
        'accuracy_interval': [share - 0.02, min(share + 0.015, 1.0)],
        'clips': total,
        'recall': {name: confusion[i, i] / clips for i, name in enumerate(labels)},
        'confusion': confusion.tolist(),
        'labels': list(labels),
    }


class Bits:
    """Made-up bit-widths that fall from 5 to `end` within an epoch or two."""

    def __init__(self, model, *, end=3.0, fixed=False):
        self.names = {k: list(model.bits(k)) for k in ('weight', 'activation')}
        self.model, self.end, self.fixed = model, end, fixed

    def __call__(self, kind, name, at):
        if self.fixed:
            own = self.model.bits(kind)
            return float(np.mean(list(own.values()))) if name is None else own[name]
        shift = 0.0 if name is None else np.sin(1.0 + 2.0 * self.names[kind].index(name))
        return float(self.end + (5 - self.end) * np.exp(-2 * at) + shift * (1 - np.exp(-at)))


def write_phase(workdir, name, model, card, *, scores=None):
    model_lib.save(
        Model(
            model.front_end,
            model.architecture,
            model.labels,
            model.params,
            model.averages,
            model.quant,
            card,
        ),
        workdir / name / 'model',
    )
    if scores:
        content = {'model': 'x', 'data': 'y', 'scores': scores}
        (workdir / name / 'test.json').write_text(json.dumps(content))
    return {'name': name, **model.costs(), **card} | ({'test': scores} if scores else {})


def write_workdir(workdir, model=None, *, epochs=3, clips=50, per_epoch=10):
    """A finished pipeline: search, float, fixed-4-4, trained-bits, results.json."""
    model = model or small_model()
    space, labels = model.architecture.space, model.labels
    macs = model.costs()['macs']
    facts = {
        'macs': macs,
        'macs_target': int(1.03 * macs),
        'method': 'proxyless',
        'wall_seconds': 40.0,
    }
    settings = {'warmup_epochs': 2, 'epochs': epochs, 'macs': 1.03 * macs, 'space': space.to_json()}
    write_log(
        workdir / 'search',
        search_records(space, epochs=2 + epochs, target=1.03 * macs, per_epoch=per_epoch),
        config=settings,
        wall_seconds=1900.0,
        steps_per_epoch=per_epoch,
    )
    write_phase(workdir, 'search', model, facts)
    rows = []
    phases = {
        'float': (model, 0.95),
        'fixed-4-4': (with_bits(model, 4, 4), 0.93),
        'trained-bits': (with_bits(model, lambda i: 2 + i % 4, lambda i: 1 + i % 4), 0.91),
    }
    for seed, (name, (one, final)) in enumerate(phases.items()):
        if name == 'trained-bits':
            config = {
                'start_bits': 5,
                'price': 'budget',
                'mean_weight_bits': 3.0,
                'mean_activation_bits': 3.0,
            }
            for part, bits in (('learn', Bits(one)), ('finetune', Bits(one, fixed=True))):
                write_log(
                    workdir / name / part,
                    training_records(epochs=epochs, final=final, bits=bits, per_epoch=per_epoch),
                    config=config,
                    wall_seconds=700.0,
                    steps_per_epoch=per_epoch,
                )
        else:
            write_log(
                workdir / name,
                training_records(epochs=epochs, final=final, per_epoch=per_epoch),
                wall_seconds=2400.0,
                steps_per_epoch=per_epoch,
            )
        card = {'validation_accuracy': final, 'wall_seconds': 60.0}
        scores = made_up_scores(labels, accuracy=final, seed=seed, clips=clips)
        rows.append(write_phase(workdir, name, one, card, scores=scores))
    results = {
        'rows': rows,
        'search': facts,
        'data': {
            'labels': list(labels),
            'examples': {'testing': clips * len(labels)},
            'fingerprint': '0123456789abcdef',
            'source': 'made-up',
            'synthetic': True,
        },
        'hardware': {'cpu': 'x86_64', 'cores': 2, 'devices': ['cpu'], 'jax': '0.0'},
        'config': {},
    }
    (workdir / 'results.json').write_text(json.dumps(results))
    return results
