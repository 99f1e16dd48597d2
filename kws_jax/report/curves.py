"""Pictures of trainings: loss, accuracy, and bit-widths over time."""

import numpy as np

from kws_jax import costs
from kws_jax.report import style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture


def training(records: Records) -> list[Picture]:
    """Training loss and validation accuracy of every run but the search."""
    logs = [log for name, log in records.logs.items() if name != 'search' and log.of_kind('train')]
    if not logs:
        raise Missing('no training has logged anything')
    columns = min(len(logs), 3 if len(logs) in (5, 6, 9) else 4)
    blocks = -(-len(logs) // columns)
    fig = style.figure(style.WIDTH, 4.6 * blocks)
    axes = fig.subplots(2 * blocks, columns, squeeze=False)
    for spare in axes.ravel():
        spare.set_axis_off()
    for i, log in enumerate(logs):
        loss, accuracy = (
            axes[2 * (i // columns), i % columns],
            axes[2 * (i // columns) + 1, i % columns],
        )
        for ax in (loss, accuracy):
            ax.set_axis_on()
            ax.set_xlim(0, max(log.epochs, 1e-9))
        style.noisy_line(loss, *log.series('train', 'loss'), style.BLUE, 'training')
        _validation(loss, *log.series('eval', 'cross_entropy'))
        loss.set_title(log.name + ('' if log.finished else ' (not finished)'))
        loss.set_ylabel('loss [nats]')
        x, y = log.series('train', 'accuracy')
        style.noisy_line(accuracy, x, 100 * np.array(y), style.BLUE, 'training')
        x, y = log.series('eval', 'accuracy')
        _validation(accuracy, x, 100 * np.array(y))
        if x:
            words = f'validation: last {100 * y[-1]:.1f} %, best {100 * max(y):.1f} %'
            accuracy.set_title(words, fontsize=9, fontweight='normal')
        accuracy.set_ylabel('accuracy [%]')
        accuracy.set_xlabel('epoch')
    lines = {line.get_label(): line for ax in axes.ravel() for line in ax.get_lines()}
    shown = [lines[name] for name in ('training', 'validation') if name in lines]
    fig.legend(handles=shown, loc='outside lower center', ncols=2)
    text = (
        'Training: on augmented clips, the loss as it is minimized, with label smoothing, '
        'distillation and price where a run has them. Validation: cross-entropy and accuracy of '
        'what the run would end with at that time.'
    )
    return [Picture('training', 'Training', text, fig)]


def _validation(ax, x, y):
    # The last point lies on the edge of the axes: not cut in half.
    ax.plot(x, y, color=style.RED, marker='.', label='validation', clip_on=False, zorder=3)


def _bit_logs(records):
    names = [n for n in records.logs if n.startswith('trained-bits')]
    logs = [records.logs[n] for n in names if records.logs[n].of_kind('train')]
    if not logs:
        raise Missing('no bit-widths were trained (yet)')
    return logs


def bits(records: Records) -> list[Picture]:
    """Mean bit-widths and those of each tensor while they are learned, and after."""
    logs = _bit_logs(records)
    learn, offset, points = logs[0], 0.0, []
    fig = style.figure(style.WIDTH, 2.9)
    ax = fig.subplots()
    colors = {'weight': style.BLUE, 'activation': style.RED}
    for i, log in enumerate(logs):
        for kind, color in colors.items():
            x, y = log.series('train', f'{kind}_bits')
            if not i and log.config.get('start_bits'):
                x, y = [0.0, *x], [float(log.config['start_bits']), *y]
            label = f'{kind}s, mean over values' if i == 0 else None
            # The two may coincide: one is drawn inside the other.
            width = 3.6 if kind == 'weight' else 1.6
            ax.plot(np.array(x) + offset, y, color=color, label=label, linewidth=width)
        points += [(r['at'] + offset, r) for r in log.of_kind('eval')]
        if i:
            ax.axvline(offset, color=style.GREY, linestyle=':')
            ax.text(
                offset,
                0.98,
                ' whole bits, fixed ',
                va='top',
                color='#555555',
                transform=ax.get_xaxis_transform(),
            )
        offset += log.epochs
    for kind, color in colors.items():
        wanted = learn.config.get(f'mean_{kind}_bits')
        if wanted and learn.config.get('price') == 'budget':
            ax.axhline(
                wanted,
                color=color,
                linestyle='--',
                linewidth=1,
                label=f'budget of the {kind}s: {wanted:g}',
            )
    ax.set_xlim(0, max(offset, 1e-9))
    ax.set_ylim(bottom=0)
    ax.set_xlabel('epoch')
    ax.set_ylabel('bits per value')
    ax.set_title('Mean bit-widths while they are learned')
    fig.legend(loc='outside lower center', ncols=4)
    text = 'The price pulls the means to the budget; then widths are rounded and fixed.'
    pictures = [Picture('bits_mean', 'Bit-widths over time', text, fig)]
    if points:
        start = learn.config.get('start_bits')
        pictures.append(_bits_of_tensors(points, start, records.architecture, logs[0].epochs))
    return pictures


def _bits_of_tensors(points, start, architecture, learned_until):
    cmap, norm = style.bit_colors()
    kinds = ('weight', 'activation')
    keys = {k: [n for n in points[0][1] if n.startswith(f'bits/{k}/')] for k in kinds}
    if not any(keys.values()):
        raise Missing('the evaluations of the run logged no bit-widths')
    most = max(map(len, keys.values()))
    fig = style.figure(style.WIDTH, 0.22 * most + 1.1)
    axes = fig.subplots(1, 2)
    columns = [f'{at:g}' for at, _ in points]
    for ax, kind in zip(axes, kinds, strict=True):
        names = _from_input_to_output([k.rsplit('/', 1)[1] for k in keys[kind]], architecture)
        values = np.array(
            [
                [
                    np.nan if r.get(f'bits/{kind}/{n}') is None else r[f'bits/{kind}/{n}']
                    for _, r in points
                ]
                for n in names
            ]
        ).reshape(len(names), len(points))
        labels = columns
        if start is not None:
            values = np.concatenate([np.full((len(names), 1), float(start)), values], axis=1)
            labels = ['0', *columns]
        image = ax.imshow(values, cmap=cmap, norm=norm, aspect='auto')
        if values.shape[1] <= 14:
            for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
                value = values[i, j]
                ax.text(
                    j,
                    i,
                    f'{value:.1f}'.removesuffix('.0'),
                    ha='center',
                    va='center',
                    fontsize=7.5,
                    color=style.ink_on(cmap(norm(value))),
                )
        whole = sum(at <= learned_until for at, _ in points) + (start is not None)
        if 0 < whole < values.shape[1]:
            ax.axvline(whole - 0.5, color='white', linewidth=3)
        every = -(-len(labels) // 14)
        ax.set_xticks(range(0, len(labels), every), labels[::every])
        ax.set_yticks(range(len(names)), names)
        ax.tick_params(labelsize=8, length=0)
        ax.grid(False)
        ax.set_xlabel('epoch')
        ax.set_title(f'{kind}s')
    bar = fig.colorbar(image, ax=list(axes), shrink=0.8, aspect=35)
    bar.set_label('bits')
    bar.outline.set_visible(False)
    text = (
        'Bits of each tensor after each epoch, layers from input to output; 0 is the start. Right '
        'of the white line they are whole and fixed.'
    )
    return Picture('bits_by_layer', 'Bit-widths of each tensor over time', text, fig)


def _from_input_to_output(names, architecture):
    """Names of tensors in the order of the network; as they are if that is not known."""
    if architecture is None:
        return names
    order = ['input', *costs.weight_sites(architecture, front_end_weights=1)]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))
