"""Many runs that differ in one thing: the variants of a config, with several seeds."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from absl import logging

from kws_jax import config as config_lib
from kws_jax import pipeline

_COSTS = (
    'parameters',
    'macs',
    'mean_weight_bits',
    'mean_activation_bits',
    'flash_bytes',
    'peak_activation_bytes',
)
_SCORES = ('accuracy', 'accuracy_interval', 'clips', 'recall', 'accuracy_with_zero_silence')


def plan(
    source: str,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
) -> dict[tuple[str, int], ml_collections.ConfigDict]:
    """The configurations of a study, by variant and seed, all seeds of a variant together.

    Args:
      source: the config file; its `VARIANTS` are run where `variants` names none.
      variants: names that its `get_config` knows.
      seeds: one run for each.
      overrides: `--config.KEY=VALUE` each, for all.

    Raises:
      ConfigError: no such file, a variant it refuses, no `VARIANTS`, a wrong override.
    """
    if ':' in source:
        raise config_lib.ConfigError(
            f'--config={source}: a study runs many variants; name them with --variants'
        )
    if variants is None:
        variants = getattr(config_lib.import_config(source), 'VARIANTS', ())
        if not variants:
            raise config_lib.ConfigError(
                f'{source} lists no VARIANTS; add them, or name some with --variants'
            )
    runs = {}
    for variant in variants:
        for seed in seeds:
            config = config_lib.load_config(f'{source}:{variant}', overrides)
            config.seed = seed
            runs[variant, seed] = config
    return runs


def run(
    runs: dict[tuple[str, int], ml_collections.ConfigDict],
    *,
    data: Callable,
    workdir,
    path: pathlib.Path,
    command: str,
) -> dict:
    """Runs what is not finished; after each run writes the results of all that are.

    What the JSON holds of earlier commands stays there: a run of the same settings is not repeated,
    even where its folder is gone, and one of other settings takes its place.

    Args:
      runs: from `plan`.
      data: `data(settings) -> Dataset` for the `data` group of a configuration.
      workdir: each run has its folder `VARIANT-SEED` in it.
      path: of the JSON.
      command: that started the study, for the record.

    Returns:
      What the JSON holds: `command`, `data`, `wall_seconds` and `runs`, each with its `variant`,
      `seed`, `settings` (their hash), `architecture`, `hardware` and `rows`, those of its
      `results.json` less confusions.

    Raises:
      ValueError: a configuration that cannot run, or a JSON with results of other recordings,
        before any run starts.
    """
    settings = {}
    old = json.loads(path.read_text()) if path.exists() else {'data': None, 'runs': []}
    for name, config in runs.items():
        opened = data(config.data.to_dict())
        pipeline.check(config.to_dict(), opened)
        settings[name] = _hash(config.to_dict(), opened.fingerprint)
        if old['data'] and old['data']['fingerprint'] != opened.fingerprint:
            raise ValueError(
                f'{path} has results of other recordings or labels; name another --json'
            )
    done = {(entry['variant'], entry['seed']): entry for entry in old['runs']}
    results = old
    for number, (name, config) in enumerate(runs.items()):
        logging.info('run %d of %d: %s, seed %d', number + 1, len(runs), *name)
        if name in done and done[name].get('settings') == settings[name]:
            logging.info('finished before, kept')
            continue
        folder = pathlib.Path(workdir) / '{}-{}'.format(*name)
        found = pipeline.run(config.to_dict(), data(config.data.to_dict()), folder)
        done[name] = {
            'variant': name[0],
            'seed': name[1],
            'settings': settings[name],
            'architecture': found['search']['architecture'],
            'wall_seconds': found['wall_seconds'],
            'hardware': found['hardware'],
            'rows': [_row(row) for row in found['rows']],
        }
        entries = [done[name] for name in dict.fromkeys((*runs, *done)) if name in done]
        results = {
            'command': command,
            'data': found['data'],
            'wall_seconds': sum(entry['wall_seconds'] for entry in entries),
            'runs': entries,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix('.tmp')
        temporary.write_text(json.dumps(results, indent=1) + '\n')
        os.replace(temporary, path)
    return results


def _hash(config: dict, fingerprint: str) -> str:
    """Of the recordings and of all settings that the run depends on."""
    unused = {'teacher'} if not config['teacher']['enabled'] else set()
    if config['float_model']:
        unused |= {'front_end', 'space', 'target', 'search', 'teacher', 'train'}
    if not config['fixed_bits']['pairs']:
        unused.add('fixed_bits')
    if not config['trained_bits']['enabled']:
        unused.add('trained_bits')
    used = {key: value for key, value in config.items() if key not in unused}
    text = json.dumps([used, fingerprint], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _row(row: dict) -> dict:
    kept = {key: row[key] for key in ('name', *_COSTS, 'validation_accuracy', 'wall_seconds')}
    if 'bits' in row:
        kept['bits'] = row['bits']
    if 'test' in row:
        kept['test'] = {key: row['test'][key] for key in _SCORES}
    return kept


def summary(results: dict) -> list[dict]:
    """One dict per variant and model: `variant`, `name`, `seeds` (how many), the costs of its first
    run, `validation` and `test` (`test` may be absent): the accuracies of all seeds, in order."""
    found = {}
    for run_ in results['runs']:
        for row in run_['rows']:
            costs = {key: row[key] for key in _COSTS}
            new = {'variant': run_['variant'], 'name': row['name'], 'seeds': 0, **costs}
            entry = found.setdefault((run_['variant'], row['name']), new | {'validation': []})
            entry['seeds'] += 1
            entry['validation'].append(row['validation_accuracy'])
            if 'test' in row:
                entry.setdefault('test', []).append(row['test']['accuracy'])
    return list(found.values())


def spread(values: Sequence[float]) -> str:
    """Mean in percent, and the standard deviation where there are several.

    >>> spread([0.9]), spread([0.9, 0.92])
    ('90.00', '91.00 ± 1.41')
    """
    text = f'{100 * np.mean(values):.2f}'
    return text if len(values) < 2 else f'{text} ± {100 * np.std(values, ddof=1):.2f}'


def table(results: dict) -> str:
    """A Markdown table: a row per variant and model, accuracies as mean and spread over seeds."""
    columns = ('variant', 'model', 'seeds', 'parameters', 'MACs', 'bits W/A', 'flash bytes')
    lines = ['| ' + ' | '.join((*columns, 'validation %', 'test %')) + ' |']
    lines.append('|---|---|' + '---:|' * 7)
    for entry in summary(results):
        cells = (
            entry['variant'],
            entry['name'],
            str(entry['seeds']),
            f'{entry["parameters"]:,}',
            f'{entry["macs"]:,}',
            f'{entry["mean_weight_bits"]:.2f}/{entry["mean_activation_bits"]:.2f}',
            f'{entry["flash_bytes"]:,}',
            spread(entry['validation']),
            spread(entry['test']) if 'test' in entry else '-',
        )
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
