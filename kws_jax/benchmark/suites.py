"""Suites of rows: run with a progress bar, kept as JSON, shown as a table."""

import time
from collections.abc import Callable

import tqdm

from kws_jax.benchmark import growth, rows
from kws_jax.pipeline import hardware

# what measures a row, or several at once, and the rows it gives
TRAINING = {
    rows.depthwise: ('depthwise',),
    rows.train_step: ('train_step',),
    rows.eval_step: ('eval_step',),
    rows.search_weight_step: ('search_weight_step',),
    rows.search_arch_step: ('search_arch_step',),
    rows.quantized_step: ('quantized_step',),
    rows.supernet_step: ('supernet_step',),
    rows.compiling: ('compile_cold', 'compile_warm', 'search_memory'),
    rows.decode: ('decode', 'input_share'),
}
GROWTH = {function: (name,) for name, function in growth.SWEEPS.items()}
SUITES = {'training': TRAINING, 'growth': GROWTH}


def names(suite: str) -> list[str]:
    """The rows of a suite, in order.

    >>> names('training')[:3]
    ['depthwise', 'train_step', 'eval_step']
    """
    return [name for several in SUITES[suite].values() for name in several]


def check_names(suite: str, wanted) -> None:
    """Raises ValueError, naming what there is, if a wanted row is not in the suite."""
    unknown = [name for name in wanted if name not in names(suite)]
    if unknown:
        raise ValueError(
            f'suite {suite} has no row {", ".join(unknown)}; it has {", ".join(names(suite))}'
        )


def run(suite: str, wanted=(), *, keep: Callable[[dict], None] = lambda report: None) -> dict:
    """Measures a suite, or some of its rows.

    Args:
      suite: of `SUITES`.
      wanted: names of rows; empty for all.
      keep: called with the report after each measurement, so that nothing is lost.

    Returns:
      `rows`, `matrix_product_macs_per_second`, `hardware`, `wall_seconds`.

    Raises:
      ValueError: as `check_names`.
    """
    check_names(suite, wanted)
    began = time.monotonic()
    report = {
        'rows': [],
        'matrix_product_macs_per_second': rows.matrix_product(),
        'hardware': hardware() | {'torch': _torch_version()},
    }
    chosen = [f for f, several in SUITES[suite].items() if not wanted or {*several} & {*wanted}]
    for function in tqdm.tqdm(chosen, desc=f'{suite} benchmark', unit='row'):
        made = function()
        made = made if isinstance(made, list) else [made]
        report['rows'] += [entry for entry in made if not wanted or entry['name'] in wanted]
        report['wall_seconds'] = time.monotonic() - began
        rows.free()
        keep(report)
    return report


def table(report: dict) -> str:
    """The rows as text: ours, the peer's, their ratio, and what must be reached.

    >>> entry = {'name': 'eval_step', 'ours': 0.02, 'peer': 0.04, 'ratio': 0.5, 'unit': 's',
    ...          'bar': 0.8, 'macs_per_second': 5e10}
    >>> print(table({'rows': [entry], 'matrix_product_macs_per_second': 1e11}))
    row                       ours       peer  ratio     bar  MACs/s
    eval_step                20 ms      40 ms   0.50    0.80     50%
    MACs/s: share of a 2048 x 2048 float32 matrix product, 100.0 G MACs/s here.
    """
    limit = report['matrix_product_macs_per_second']
    lines = [_line('row', 'ours', 'peer', 'ratio', 'bar', 'MACs/s')]
    for entry in report['rows']:
        share = entry.get('macs_per_second')
        lines.append(
            _line(
                entry['name'],
                _amount(entry['ours'], entry['unit']),
                _amount(entry['peer'], entry['unit']),
                '-' if entry['ratio'] is None else f'{entry["ratio"]:.2f}',
                _bar(entry),
                '' if share is None else f'{share / limit:.0%}',
            )
        )
        if entry.get('note'):
            lines.append(f'    {entry["note"]}')
        if 'worst_ratio' in entry:
            lines.append(f'    worst of the shapes {entry["worst_ratio"]:.2f} (bar 1.30)')
    lines.append(
        f'MACs/s: share of a 2048 x 2048 float32 matrix product, {limit / 1e9:.1f} G MACs/s here.'
    )
    return '\n'.join(lines)


def _line(name, ours, peer, ratio, bar, share):
    return f'{name:<18}{ours:>12}{peer:>11}{ratio:>7}{bar:>8}{share:>8}'.rstrip()


def _bar(entry):
    if entry['bar'] is None:
        return '-'
    return f'{entry["bar"]:.2f}' if entry['ratio'] is not None else f'{entry["bar"]:g}'


def _amount(value, unit):
    if value is None:
        return '-'
    if unit == 's':
        return f'{value:.2f} s' if value >= 1 else f'{1000 * value:.0f} ms'
    return f'{value:.1f} {unit}' if value < 100 else f'{value:.0f} {unit}'


def _torch_version():
    if not rows.has_torch():
        return None
    import torch

    return torch.__version__
