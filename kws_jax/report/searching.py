"""Pictures of a search: probabilities, entropy, expected MACs, losses."""

import numpy as np

from kws_jax.report import style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture


def _log(records):
    if 'search' not in records.logs:
        method = records.search.get('method')
        why = f'the method {method!r} trains nothing' if method else 'it has not begun'
        raise Missing(f'the search has logged nothing: {why}')
    return records.logs['search']


def probabilities(records: Records) -> list[Picture]:
    """One heat map per layer: the probability of each candidate after each epoch."""
    import matplotlib
    from matplotlib.colors import PowerNorm

    log = _log(records)
    found = [r for r in log.of_kind('eval') if any(k.startswith('probabilities/') for k in r)]
    if not found:
        raise Missing('no epoch of the search has ended, so no probabilities were logged')
    names = [k for k in found[0] if k.startswith('probabilities/')]
    layers = {} if records.space is None else {x.name: x for x in records.space.layers}
    chosen = {}
    if records.architecture is not None:
        chosen = dict(zip(layers, records.architecture.choices, strict=True))
    values = {k.partition('/')[2]: np.array([r[k] for r in found]).T for k in names}
    most = max(len(v) for v in values.values())
    peak = max(float(v.max()) for v in values.values())
    fig, axes = style.grid(
        len(values), columns=3, height=max(0.135 * most + 0.55, 1.8), sharex=True, sharey=True
    )
    cmap, norm = matplotlib.colormaps[style.SEQUENTIAL], PowerNorm(0.5, 0.0, max(peak, 0.1))
    epochs = [r['at'] for r in found]
    edges = np.concatenate([[epochs[0] - 1], epochs]) if len(epochs) > 1 else [0, epochs[0]]
    for ax, (layer, rows) in zip(axes, values.items(), strict=True):
        image = ax.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, rows, cmap=cmap, norm=norm)
        ax.grid(False)
        title = layer
        if layer in chosen:
            pick = layers[layer].choices.index(chosen[layer])
            title = f'{layer}: {chosen[layer].name} chosen'
            ax.plot(
                1.03,
                pick,
                marker='<',
                color=style.RED,
                transform=ax.get_yaxis_transform(),
                clip_on=False,
                markersize=6,
            )
        ax.set_title(title, fontsize=9.5)
    longest = max(layers.values(), key=lambda x: len(x.choices)) if layers else None
    labels = [c.name for c in longest.choices] if longest else [str(i) for i in range(most)]
    axes[0].set_ylim(most - 0.5, -0.5)
    for ax in axes:
        ax.set_yticks(range(len(labels)), labels)
        ax.tick_params(axis='y', labelsize=7, length=0)
        if ax.get_subplotspec().is_last_row() or ax in axes[-3:]:
            ax.set_xlabel('epoch')
    warmup = log.config.get('warmup_epochs', 0)
    if 0 < warmup < epochs[-1]:
        for ax in axes:
            ax.axvline(warmup, color=style.GREY, linestyle=':', linewidth=1.2)
    bar = fig.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    bar.set_label('probability of the candidate')
    bar.outline.set_visible(False)
    text = (
        'Every row is a candidate (e: expansion, k: kernel), every column an epoch. '
        'The red arrow marks what was chosen at the end, which also depends on the cost.'
        if chosen
        else 'Every row is a candidate (e: expansion, k: kernel), every column an epoch.'
    )
    if warmup:
        text += f' The first {warmup:g} epochs, up to the dotted line, train weights alone.'
    return [Picture('search_probabilities', 'Search: probabilities of the candidates', text, fig)]


def progress(records: Records) -> list[Picture]:
    """Entropy, expected MACs against the target, both losses and accuracies over a search."""
    log = _log(records)
    if not log.of_kind('train'):
        raise Missing('the search has logged no step')
    fig, axes = style.grid(4, columns=2, height=3.0, sharex=True)
    entropy, macs, losses, accuracies = axes
    warmup = log.config.get('warmup_epochs', 0)
    steps = {k: _series(log, k) for k in ('entropy', 'expected_cost')}
    entropy.plot(*steps['entropy'], color=style.BLUE)
    entropy.set_ylim(0, 1.04)
    entropy.set_title('Entropy of the choices')
    entropy.set_ylabel('entropy / that of a uniform choice')
    _macs(macs, steps['expected_cost'], records, log)
    for ax, names in (
        (losses, ('loss', 'validation_loss')),
        (accuracies, ('accuracy', 'validation_accuracy')),
    ):
        for key, color, label in zip(
            names,
            (style.BLUE, style.RED),
            ('weights, on training batches', 'choices, on validation batches'),
            strict=True,
        ):
            x, y = map(np.array, log.series('train', key))
            if key.startswith('validation'):
                # It stands at 0 until the first update of the choices, within its first record.
                begun = np.flatnonzero(y)[1:]
                x, y = (x[begun[0] :], y[begun[0] :]) if len(begun) else (x[:0], y[:0])
            if len(x):
                style.noisy_line(ax, x, 100 * y if 'accuracy' in key else y, color, label)
        ax.set_xlabel('epoch')
        if ax.lines:
            ax.legend(fontsize=8.5)
    losses.set_title('Losses of the sampled paths')
    losses.set_ylabel('loss [nats]')
    accuracies.set_title('Accuracy of the sampled paths')
    accuracies.set_ylabel('accuracy [%]')
    if warmup:
        for ax in axes:
            ax.axvspan(0, warmup, color='#F1F1F1', zorder=0)
        entropy.text(warmup / 2, 0.04, 'warm-up', ha='center', color='#555555')
    for ax in axes:
        ax.set_xlim(0, max(log.epochs, 1e-9))
    text = (
        'Each step trains a path drawn from the probabilities; the choices are trained on '
        'validation batches. Expected MACs are those of the probabilities at that time.'
    )
    return [Picture('search_progress', 'Search: entropy, cost and losses', text, fig)]


def _series(log, key):
    x, y = log.series('train', key)
    return (x, y) if x else log.series('eval', key)


def _macs(ax, series, records, log):
    x, y = series
    target = log.config.get('macs') or records.search.get('macs_target')
    if x:
        ax.plot(x, np.array(y) / 1e6, color=style.BLUE, label='expected')
    if target:
        ax.axhline(target / 1e6, color=style.RED, linestyle='--', linewidth=1.3, label='target')
    if records.search.get('macs') and x:
        ax.plot(
            x[-1],
            records.search['macs'] / 1e6,
            marker='D',
            color=style.GREEN,
            linestyle='none',
            clip_on=False,
            label=f'chosen: {records.search["macs"] / 1e6:.2f} M',
        )
    seen = [v / 1e6 for v in (*y, target, records.search.get('macs')) if v]
    if seen:
        # A tenth of the target is worth seeing, a thousandth is not; above, room for the legend.
        middle = (min(seen) + max(seen)) / 2
        span = max(max(seen) - min(seen), 0.2 * middle)
        ax.set_ylim(middle - 0.65 * span, middle + 0.95 * span)
    ax.set_title('Expected MACs')
    ax.set_ylabel('MACs per clip [millions]')
    if x or target:
        ax.legend(fontsize=8.5, loc='upper right', ncols=3)
