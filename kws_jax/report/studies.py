"""Pictures of what studies and released models show, from the JSON of their results."""

import json
import pathlib
import re

import numpy as np

from kws_jax import model as model_lib
from kws_jax.report import filters, networks, style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture
from kws_jax.study import summary


def _read(results, name):
    path = pathlib.Path(results) / f'{name}.json'
    if not path.is_file():
        raise Missing(f'{path.name} is not there; configs/{name}.py says how it is made')
    return json.loads(path.read_text())


def _score(entry):
    """Mean accuracy in percent, on test where it was scored."""
    return 100 * float(np.mean(entry.get('test', entry['validation'])))


def _what(entries):
    return 'test' if all('test' in entry for entry in entries) else 'validation'


def _points(ax, x, values, *, color, marker, label=None):
    """One marker per seed, and a bar at their mean."""
    values = 100 * np.asarray(values)
    ax.plot([x] * len(values), values, marker, color=color, label=label, alpha=0.8)
    if len(values) > 1:
        ax.plot([x], [values.mean()], '_', color=color, markersize=22, markeredgewidth=2.5)


def bits(results) -> Picture:
    """Accuracy at every pair of fixed bit-widths, as a heat map (`bits.json`)."""
    entries = summary(_read(results, 'bits'))
    found = {}
    for entry in entries:
        weight, activation = map(int, re.fullmatch(r'w(\d)a(\d)', entry['variant']).groups())
        found[weight, activation] = _score(entry)
    weights = sorted({w for w, _ in found}, reverse=True)
    activations = sorted({a for _, a in found})
    values = np.array([[found.get((w, a), np.nan) for a in activations] for w in weights])
    fig = style.figure(6.4, 4.6)
    ax = fig.subplots()
    ax.grid(False)
    image = ax.imshow(values, cmap='viridis', aspect='auto')
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if np.isfinite(value):
                ink = style.ink_on(image.cmap(image.norm(value)))
                ax.text(j, i, f'{value:.1f}', ha='center', va='center', color=ink)
    ax.set_xticks(range(len(activations)), activations)
    ax.set_yticks(range(len(weights)), weights)
    ax.set_xlabel('bits of activations')
    ax.set_ylabel('bits of weights')
    fig.colorbar(image, label=f'{_what(entries)} accuracy [%]')
    return Picture('bits', 'Fixed bit-widths', 'One seed each.', fig)


_PROFILES = {
    'learned': ('learned, from the greedy ones', style.BLUE, 'o'),
    'learned_even': ('learned, from 5 bits everywhere', style.ORANGE, '^'),
    'sensitivity': ('greedy, by sensitivity', style.GREEN, 'D'),
    'uniform': ('uniform', style.RED, 's'),
    'random': ('random', style.GREY, 'v'),
}


def profiles(results) -> Picture:
    """Learned widths and others of the same mean, and of the same bytes (`profiles.json`)."""
    entries = summary(_read(results, 'profiles'))
    fig, (means, flash) = style.grid(2, columns=2, height=4.2, sharey=True)
    for profile, (label, color, marker) in _PROFILES.items():
        own = [entry for entry in entries if entry['variant'][:-2] == profile]
        own.sort(key=lambda entry: entry['flash_bytes'])
        for ax, x in (
            (means, [int(entry['variant'][-2:]) / 10 for entry in own]),
            (flash, [entry['flash_bytes'] / 1000 for entry in own]),
        ):
            ax.plot(x, [_score(entry) for entry in own], color=color, label=label)
            for at, entry in zip(x, own, strict=True):
                _points(ax, at, entry.get('test', entry['validation']), color=color, marker=marker)
    means.set_xlabel('mean bits asked for, weights and activations')
    means.set_ylabel(f'{_what(entries)} accuracy [%]')
    flash.set_xlabel('flash [kB = 1000 bytes]')
    means.legend()
    return Picture(
        'profiles', 'Learned widths and others', 'A marker per seed, bars at their means.', fig
    )


_FRONT_ENDS = {  # a color for each kind
    'sinc': ('SincConv', style.BLUE, 'o'),
    'sinc_none': ('SincConv, no compression', style.BLUE, 'v'),
    'quadrature': ('SincConv pairs', style.BLUE, 'D'),
    'quadrature_raw': ('SincConv pairs, image not normalized', style.BLUE, 's'),
    'quadrature_small': ('SincConv pairs, smaller network', style.BLUE, 'X'),
    'conv': ('Conv1D', style.ORANGE, 'v'),
    'conv_mel': ('Conv1D from the mel bank', style.ORANGE, 'o'),
    'log_mel': ('log-mel', style.GREEN, 'o'),
    'log_mel_large': ('log-mel, larger network', style.GREEN, 'D'),
    'mfcc': ('MFCC', style.RED, 'o'),
    'mfcc_large': ('MFCC, larger network', style.RED, 'D'),
}


def _front_end_looks(i, variant):
    """Label, color and marker; no two others share both, though there are more than colors."""
    marker = style.MARKERS[(i + i // len(style.CYCLE)) % len(style.MARKERS)]
    return _FRONT_ENDS.get(variant, (variant, style.CYCLE[i % len(style.CYCLE)], marker))


def front_ends(results) -> Picture:
    """Front ends before one network: accuracy against parameters and MACs (`front_ends.json`).

    Whatever is more than ten points below the best is left out of the picture, and named.
    """
    entries = summary(_read(results, 'front_ends'))
    lowest = max(map(_score, entries)) - 10
    far = [
        f'{_front_end_looks(0, e["variant"])[0]} {_score(e):.1f} %'
        for e in entries
        if _score(e) < lowest
    ]
    entries = [entry for entry in entries if _score(entry) >= lowest]
    fig, axes = style.grid(2, columns=2, height=4.8, sharey=True)
    for ax, key, label in zip(
        axes,
        ('parameters', 'macs'),
        ('parameters, each counted once [thousands]', 'MACs of front end and network [millions]'),
        strict=True,
    ):
        unit = 1e3 if key == 'parameters' else 1e6
        for i, entry in enumerate(entries):
            name, color, marker = _front_end_looks(i, entry['variant'])
            values = entry.get('test', entry['validation'])
            _points(ax, entry[key] / unit, values, color=color, marker=marker, label=name)
        ax.set_xlabel(label)
    axes[0].set_ylabel(f'{_what(entries)} accuracy [%]')
    handles = axes[0].get_legend_handles_labels()
    title = f'below the picture: {", ".join(far)}' if far else None
    fig.legend(*handles, loc='outside lower center', ncols=4, title=title)
    return Picture('front_ends', 'Front ends', 'A marker per seed, bars at their means.', fig)


def architectures(results) -> Picture:
    """Searched and random architectures of equal MACs (`architectures.json`)."""
    entries = summary(_read(results, 'architectures'))
    fig = style.figure(6.4, 4.2)
    ax = fig.subplots()
    for i, entry in enumerate(entries):
        _points(
            ax,
            i,
            entry.get('test', entry['validation']),
            color=style.CYCLE[i % len(style.CYCLE)],
            marker=style.MARKERS[i % len(style.MARKERS)],
        )
    ax.set_xticks(range(len(entries)), [entry['variant'] for entry in entries])
    ax.set_xlim(-0.5, len(entries) - 0.5)
    ax.set_ylabel(f'{_what(entries)} accuracy [%]')
    text = 'A marker per seed, bars at their means; every network trained anew alike.'
    return Picture('architectures', 'Searched and random architectures', text, fig)


def cliff(results) -> Picture:
    """Where activations have too few bits, and what cures it (`bits.json`, `cliff.json`)."""
    cures = summary(_read(results, 'cliff'))
    fig, (fall, ax) = style.grid(2, columns=2, height=4.2)
    try:
        grid = [entry for entry in summary(_read(results, 'bits')) if entry['variant'][:2] == 'w8']
        fall.plot([int(entry['variant'][3]) for entry in grid], [_score(e) for e in grid], 'o-')
        fall.set_title('Weights of 8 bits')
        fall.set_xlabel('bits of activations')
        fall.set_ylabel(f'{_what(grid)} accuracy [%]')
    except Missing:
        fall.set_axis_off()
    values = [_score(entry) for entry in cures]
    ax.barh(range(len(cures)), values, color=style.BLUE)
    for i, value in enumerate(values):
        ax.text(value, i, f' {value:.1f}', va='center')
    ax.set_yticks(range(len(cures)), [entry['variant'] for entry in cures])
    ax.invert_yaxis()
    ax.set_xlim(min(values) - 5, max(values) + 3)
    ax.set_title('Activations of 2 bits')
    ax.set_xlabel(f'{_what(cures)} accuracy [%]')
    return Picture('cliff', 'The cliff in activation bits', 'One seed each.', fig)


_SILENCE = {  # what each result's network was trained to call silence
    'sinc60_first_run': 'noise',
    'sinc60_second_run': 'noise',
    'sinc60_third_run': 'noise',
    'sinc60': 'noise and room tone',
    'sinc60_float': 'noise and room tone',
    'sinc48': 'noise and room tone',
    'sinc_small': 'noise and room tone',
}


def silence(results) -> Picture:
    """Accuracy of float models with real noise as silence, with zeros, and without that class."""
    rows = []
    for name, trained in _SILENCE.items():
        path = pathlib.Path(results) / f'{name}.json'
        if not path.is_file():
            continue
        row = json.loads(path.read_text())['rows'][0]
        test = row.get('test', row)
        if 'confusion' in test and 'accuracy_with_zero_silence' in test:
            rows.append((f'{name}\ntrained with {trained}', test))
    if not rows:
        raise Missing('no result has been scored with all-zero silence')
    fig = style.figure(8.0, 0.75 * len(rows) + 1.2)
    ax = fig.subplots()
    looks = (('real noise', style.BLUE), ('all zeros', style.ORANGE), ('left out', style.GREY))
    for i, (_, test) in enumerate(rows):
        confusion = np.array(test['confusion'])
        words = [j for j, name in enumerate(test['labels']) if name != 'silence']
        left_out = np.trace(confusion[words][:, words]) / confusion[words].sum()
        values = (test['accuracy'], test['accuracy_with_zero_silence'], left_out)
        for j, (value, (label, color)) in enumerate(zip(values, looks, strict=True)):
            y = i + (j - 1) * 0.27
            ax.barh(y, 100 * value, 0.25, color=color, label=label if i == 0 else None)
            ax.text(100 * value, y, f' {100 * value:.2f}', va='center', fontsize=8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.invert_yaxis()
    lowest = min(test['accuracy'] for _, test in rows)
    ax.set_xlim(100 * lowest - 2, 100)
    ax.set_xlabel('test accuracy [%]; silence of the test set is ...')
    fig.legend(loc='outside lower center', ncols=3)
    return Picture('silence', 'All-zero silence', 'The same models, scored three ways.', fig)


PUBLISHED = {'float': 95.55, '2.51/2.91 bits': 93.76}  # Peter et al. 2022


def released(zoo) -> Picture:
    """Test accuracy of the released models against flash, from their cards."""
    models = {path.parent.name: model_lib.load(path.parent) for path in _cards(zoo)}
    fig = style.figure(8.0, 4.6)
    ax = fig.subplots()
    for i, (name, model) in enumerate(models.items()):
        test = model.card['test']
        accuracy, low, high = 100 * np.array([test['accuracy'], *test['accuracy_interval']])
        ax.errorbar(
            model.costs()['flash_bytes'] / 1000,
            accuracy,
            [[accuracy - low], [high - accuracy]],
            fmt=style.MARKERS[i % len(style.MARKERS)],
            color=style.CYCLE[i % len(style.CYCLE)],
            markersize=8,
            capsize=4,
            label=f'{name}: {accuracy:.2f} %',
        )
    for (bits, accuracy), line in zip(PUBLISHED.items(), ('--', ':'), strict=True):
        text = f'published, {bits}, full data: {accuracy} %'
        ax.axhline(accuracy, color=style.GREY, linestyle=line, label=text)
    ax.set_xlim(left=0)
    ax.set_xlabel('flash of the exported model [kB = 1000 bytes]')
    ax.set_ylabel('test accuracy [%], 95 % interval')
    fig.legend(loc='outside lower center', ncols=2)
    text = 'Bars are 95 % intervals (Wilson); the published test set is another.'
    return Picture('released', 'Released models', text, fig)


def _cards(zoo):
    paths = sorted(pathlib.Path(zoo).glob('*/model.json'))
    if not paths:
        raise Missing(f'no model is released in {zoo}')
    return paths


def learned(zoo) -> list[Picture]:
    """Filters, operations and bits of the released models."""
    pictures = []
    for path in _cards(zoo):
        name = path.parent.name
        model = model_lib.load(path.parent)
        kind = 'float' if model.quant is None else 'trained-bits'
        records = Records(path.parent, [], {}, {}, {kind: path.parent}, [])
        draw = [networks.bit_profile] if model.quant else [filters.front_end, networks.architecture]
        for function in draw:
            for picture in function(records):
                pictures.append(picture._replace(name=f'{name}-{picture.name}'))
    return pictures


STUDIES = (bits, profiles, front_ends, architectures, cliff, silence)


def write(results, zoo, out) -> tuple[list[pathlib.Path], list[str]]:
    """Draws every study whose results are there, and the released models.

    Args:
      results: folder with the JSON of studies.
      zoo: folder of released models.
      out: where the PNG files go.

    Returns:
      The files, and what could not be drawn, in words.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files, missing = [], []
    with style.house_style():
        try:
            pictures = [released(zoo), *learned(zoo)]
        except Missing as error:  # of both alike
            pictures = []
            missing.append(f'released: {error}')
        for draw in STUDIES:
            try:
                pictures.append(draw(results))
            except Missing as error:
                missing.append(f'{draw.__name__}: {error}')
        for picture in pictures:
            files.append(out / f'{picture.name}.png')
            picture.figure.savefig(files[-1])
    return files, missing
