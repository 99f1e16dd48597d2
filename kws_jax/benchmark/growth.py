"""How time and memory of a step grow with the batch, the MACs, the candidates and the layers.

A sweep is a row like those of `rows`, without a peer, whose `points` hold one measurement each.
"""

import jax
import numpy as np

from kws_jax.benchmark import rows, subjects
from kws_jax.benchmark.timing import interleaved
from kws_jax.space import SearchSpace

ROUNDS = 5


def batch_growth(sizes=(10, 25, 50, 100, 200)) -> dict:
    """A training step and a search step, by batch size."""
    makers = {
        size: (
            subjects.Trained(subjects.architecture(), batch=size),
            subjects.Searched(batch=size),
        )
        for size in sizes
    }
    return _sweep('batch_growth', 'clips in a batch', makers)


def macs_growth(choices=('e1k3', 'e1k7', 'e2k5', 'e3k5', 'e4k5', 'e5k5', 'e6k7')) -> dict:
    """A training step of networks of one choice each, by their MACs."""
    makers = {}
    for choice in choices:
        of = subjects.space().architecture([choice] * len(subjects.space().layers))
        makers[subjects.network_macs(of)] = (subjects.Trained(of), None)
    return _sweep('macs_growth', 'MACs of the network', makers)


def candidates_growth() -> dict:
    """A search step, by candidates of a layer; mean and largest cost are about the same in all."""
    makers = {}
    for expansions, kernels in (((1, 6), (5,)), ((1, 6), (3, 5, 7)), ((1, 3, 4, 6), (3, 5, 7))):
        makers |= _candidates(expansions, kernels)
    makers |= _candidates((1, 2, 3, 4, 5, 6), (3, 5, 7))
    return _sweep('candidates_growth', 'candidates of each layer', makers)


def _candidates(expansions, kernels):
    names = [f'e{e}k{k}' for e in expansions for k in kernels]
    stages = [s | {'candidates': names} for s in subjects.space().to_json()['stages']]
    searched = SearchSpace.from_json(subjects.space().to_json() | {'stages': stages})
    return {len(names): (None, subjects.Searched(searched=searched))}


def layers_growth(layers=(1, 2, 3, 4, 5)) -> dict:
    """A training step of e3k5 layers and a search step, by searched layers."""
    makers = {}
    for each in layers:
        stages = [s | {'layers': each} for s in subjects.space().to_json()['stages']]
        searched = SearchSpace.from_json(subjects.space().to_json() | {'stages': stages})
        of = searched.architecture(['e3k5'] * len(searched.layers))
        makers[len(searched.layers)] = (subjects.Trained(of), subjects.Searched(searched=searched))
    return _sweep('layers_growth', 'searched layers', makers)


SWEEPS = {
    'batch_growth': batch_growth,
    'macs_growth': macs_growth,
    'candidates_growth': candidates_growth,
    'layers_growth': layers_growth,
}


def _sweep(name, axis, makers):
    points = []
    for at, (trained, searched) in makers.items():
        point = {'at': at}
        for kind, step in (('train', trained), ('search', searched)):
            if step is not None:
                point[f'{kind}_mib'] = step.compile() / 2**20
                seconds = interleaved({kind: step}, rounds=ROUNDS)[kind]
                point[f'{kind}_seconds'] = float(np.median(seconds))
        points.append(point)
        jax.clear_caches()
    last = points[-1]
    seconds = last.get('train_seconds', last.get('search_seconds'))
    return rows.row(name, f'a step by {axis}', ours=seconds) | {'axis': axis, 'points': points}


def draw(report: dict):
    """The sweeps as a figure: seconds above, mebibytes of working memory below.

    Args:
      report: what `suites.run('growth')` returned.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.ticker import EngFormatter

    from kws_jax.report.style import BLUE, ORANGE, figure, house_style

    sweeps = [entry for entry in report['rows'] if 'points' in entry]
    with house_style():
        picture = figure(height=5.0)
        axes = picture.subplots(2, len(sweeps), squeeze=False)
        for column, entry in zip(axes.T, sweeps, strict=True):
            for ax, unit in zip(column, ('seconds', 'mib'), strict=True):
                for kind, colour in (('train', BLUE), ('search', ORANGE)):
                    own = [p for p in entry['points'] if f'{kind}_{unit}' in p]
                    if own:
                        places = [p['at'] for p in own]
                        values = [p[f'{kind}_{unit}'] for p in own]
                        ax.plot(places, values, 'o-', color=colour, label=kind)
                ax.set_ylim(bottom=0)
                ax.set_xlim(left=0)
                ax.xaxis.set_major_formatter(EngFormatter(sep=''))
            column[1].set_xlabel(entry['axis'])
        axes[0][0].set_ylabel('seconds a step')
        axes[1][0].set_ylabel('MiB of working memory')
        axes[0][0].legend()
    return picture


def markdown(report: dict) -> str:
    """The sweeps as Markdown tables.

    Args:
      report: as for `draw`.
    """
    lines = []
    for entry in report['rows']:
        lines += [f'| {entry["axis"]} | training step | MiB | search step | MiB |']
        lines += ['|---:|---:|---:|---:|---:|']
        for point in entry['points']:
            cells = [f'{point["at"]:,}']
            for kind in ('train', 'search'):
                for unit, form in (('seconds', '{:.3f} s'), ('mib', '{:.0f}')):
                    value = point.get(f'{kind}_{unit}')
                    cells.append('-' if value is None else form.format(value))
            lines.append('| ' + ' | '.join(cells) + ' |')
        lines.append('')
    return '\n'.join(lines)
