"""Pictures of what came out: accuracy against cost, confusions, recall, time spent."""

import numpy as np

from kws_jax.report import style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture
from kws_jax.training.evaluation import wilson_interval


def accuracy_and_cost(records: Records) -> list[Picture]:
    """Test accuracy with its interval, a marker per model; MACs are drawn where they differ."""
    rows = [row for row in records.rows if row.get('test')]
    if not rows:
        raise Missing('no model has been evaluated on the test split')
    panels = 1 if len({row['macs'] for row in rows}) == 1 else 2
    fig, (flash, *others) = style.grid(panels, columns=panels, height=4.0, sharey=True)
    for i, row in enumerate(rows):
        test = row['test']
        low, high = test['accuracy_interval']
        accuracy = 100 * test['accuracy']
        error = [[max(accuracy - 100 * low, 0.0)], [max(100 * high - accuracy, 0.0)]]
        look = {
            'color': style.CYCLE[i % len(style.CYCLE)],
            'marker': style.MARKERS[i % len(style.MARKERS)],
            'markersize': 8,
            'capsize': 4,
            'linestyle': 'none',
        }
        bits = f'{row["mean_weight_bits"]:.1f}/{row["mean_activation_bits"]:.1f} bits'
        label = f'{row["name"]} ({bits}): {accuracy:.1f} %'
        flash.errorbar(row['flash_bytes'], accuracy, error, label=label, **look)
        for macs in others:
            macs.errorbar(row['macs'], accuracy, error, **look)
    _log_axis(flash, [row['flash_bytes'] for row in rows], 1e3)
    flash.set_xlabel('flash of the exported model [kB = 1000 bytes]')
    flash.set_ylabel('test accuracy [%], 95 % interval')
    flash.set_title('Accuracy and flash')
    for macs in others:
        _log_axis(macs, [row['macs'] for row in rows], 1e6)
        macs.set_xlabel('multiply-accumulates per clip [millions]')
        macs.set_title('Accuracy and MACs')
    fig.legend(loc='outside lower center', ncols=min(len(rows), 3))
    text = 'Bars are 95 % intervals (Wilson) of the accuracy on the test clips.'
    if not others:
        text += f' Every model takes {rows[0]["macs"]:,} MACs a clip.'
    return [Picture('accuracy', 'Accuracy against cost', text, fig)]


def _log_axis(ax, values, unit):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    spread = max((high / low) ** 0.15, 1.3)
    ax.set_xscale('log')
    ax.set_xlim(low / spread, high * spread)
    decades = np.log10(high / low * spread**2)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 0.7 else range(1, 10)))
    if decades <= 0.3:
        ax.set_xscale('linear')
        ax.set_xlim(low / spread, high * spread)
        ax.locator_params(axis='x', nbins=6)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value / unit:g}'))


def _compared(records):
    """The tested float model and the tested trained bits, or what comes nearest."""
    rows = {row['name']: row for row in records.rows if (row.get('test') or {}).get('confusion')}
    if not rows:
        raise Missing('no model has a confusion matrix: none has been tested')
    names = list(rows)
    wanted = ['float' if 'float' in rows else names[0]]
    last = 'trained-bits' if 'trained-bits' in rows else names[-1]
    return [rows[name] for name in dict.fromkeys([*wanted, last])]


def confusion(records: Records) -> list[Picture]:
    """Which classes are taken for which, for the float model and the trained bits."""
    import matplotlib
    from matplotlib.colors import PowerNorm

    rows = _compared(records)
    classes = len(rows[0]['test']['labels'])
    side_by_side = classes <= 16
    height = min(0.3 * classes + 1.8, 5.4) if side_by_side else 9.0
    fig, axes = style.grid(len(rows), columns=2 if side_by_side else 1, height=height)
    # Confusions are a few percent at most: the root makes them visible.
    cmap, norm = matplotlib.colormaps[style.SEQUENTIAL], PowerNorm(0.5, 0.0, 1.0)
    for ax, row in zip(axes, rows, strict=True):
        labels, counts = row['test']['labels'], np.array(row['test']['confusion'])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = ax.imshow(shares, cmap=cmap, norm=norm)
        ax.grid(False)
        ax.set_xticks(range(classes), labels, rotation=90)
        ax.set_yticks(range(classes), labels)
        if not side_by_side:
            ax.tick_params(labelsize=7)
        for i, j in zip(*np.nonzero(counts), strict=True):
            ax.text(
                j,
                i,
                counts[i, j],
                ha='center',
                va='center',
                fontsize=7.5 if side_by_side else 5,
                color=style.ink_on(cmap(norm(shares[i, j]))),
            )
        ax.set_xlabel('predicted')
        ax.set_ylabel('spoken')
        ax.set_title(f'{row["name"]}: {100 * row["test"]["accuracy"]:.1f} % of {counts.sum():,}')
    bar = fig.colorbar(image, ax=axes, shrink=0.75, aspect=30)
    bar.set_label('share of the spoken class')
    bar.outline.set_visible(False)
    text = 'Rows are what was said, columns what was heard; numbers are clips, colours are shares.'
    return [Picture('confusion', 'Confusions', text, fig)]


def recall(records: Records) -> list[Picture]:
    """Recall of every class with its interval."""
    rows = _compared(records)
    labels = rows[0]['test']['labels']
    fig = style.figure(style.WIDTH, 3.6)
    ax = fig.subplots()
    for i, row in enumerate(rows):
        counts = np.array(row['test']['confusion'])
        at = np.arange(len(labels)) + 0.22 * (i - (len(rows) - 1) / 2)
        there = counts.sum(axis=1) > 0
        hits, clips = np.diag(counts)[there], counts.sum(axis=1)[there]
        middle = 100 * hits / clips
        ends = 100 * np.array([wilson_interval(h, n) for h, n in zip(hits, clips, strict=True)]).T
        ax.errorbar(
            at[there],
            middle,
            np.abs(ends - middle[None, :]),
            linestyle='none',
            marker=style.MARKERS[i],
            color=style.CYCLE[i],
            capsize=3,
            label=f'{row["name"]} (mean {middle.mean():.1f} %)',
        )
    ax.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) <= 16 else 90)
    ax.grid(False, axis='x')
    ax.set_ylim(top=101.5)
    ax.set_ylabel('recall [%], 95 % interval')
    ax.set_title('Recall of each class')
    fig.legend(loc='outside lower center', ncols=len(rows))
    text = 'Share of the clips of each class that are recognized.'
    return [Picture('recall', 'Recall by class', text, fig)]


def wall_time(records: Records) -> list[Picture]:
    """Wall time of every phase; a search is split into its warm-up and the rest."""
    bars = []
    for name, log in records.logs.items():
        total = log.wall_seconds
        warmup = log.config.get('warmup_epochs', 0) if name == 'search' else 0
        before = [
            r['wall_seconds'] for r in log.of_kind('epoch') if warmup and r['at'] <= warmup + 1e-6
        ]
        state = '' if log.finished is not None else ' (not finished)'
        if before:
            bars.append((f'search: warm-up, {min(warmup, log.epochs):g} epochs', max(before)))
            bars.append((f'search: choosing{state}', max(total - max(before), 0.0)))
        else:
            bars.append((name + state, total))
    if not bars:
        raise Missing('no run has logged anything')
    names, seconds = zip(*bars, strict=True)
    fig = style.figure(style.WIDTH, 0.9 + 0.38 * len(bars))
    ax = fig.subplots()
    unit, word = (60, 'minutes') if max(seconds) > 180 else (1, 'seconds')
    drawn = ax.barh(range(len(bars)), [s / unit for s in seconds], color=style.BLUE, height=0.62)
    ax.bar_label(drawn, [style.duration(s) for s in seconds], padding=4)
    ax.set_yticks(range(len(bars)), names)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.grid(False, axis='y')
    ax.set_xlabel(f'wall time [{word}]')
    ax.set_title(f'Wall time: {style.duration(sum(seconds))} in all')
    text = 'Training and its evaluations, compilation included, attempts of a resumed run together.'
    return [Picture('wall_time', 'Time spent', text, fig)]
