"""Pictures of the chosen network: block diagram, bit-widths, memory."""

import dataclasses
import math

import numpy as np

from kws_jax import costs
from kws_jax.model import Model, quantized_taps
from kws_jax.report import style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture
from kws_jax.space import Architecture


@dataclasses.dataclass(frozen=True)
class Block:
    """One box of the diagram: what it does, what it makes, what it costs."""

    name: str
    operation: str
    output: str
    macs: int
    weights: int
    residual: bool = False
    skipped: bool = False


def blocks(model: Model) -> list[Block]:
    """The boxes from waveform to logits; their MACs add up to those of `model.costs()`."""
    front_end, space = model.make_front_end(), model.architecture.space
    sites = costs.weight_sites(model.architecture, front_end_weights=quantized_taps(front_end))
    stem, head = space.stem, space.head_channels
    found = [
        Block(
            'front end',
            front_end.name,
            _shape(space.image_shape),
            front_end.macs,
            sites.get('frontend', 0),
        ),
        Block(
            'stem',
            f'conv {_shape(stem.kernel)}, stride {_shape(stem.stride)}',
            _shape((*space.stem_shape, stem.channels)),
            math.prod(space.stem_shape) * sites['stem'],
            sites['stem'],
        ),
    ]
    for layer, choice in zip(space.layers, model.architecture.choices, strict=True):
        operation = 'identity: left out'
        if not choice.is_identity:
            operation = f'MBConv, expansion {choice.expansion}, kernel {choice.kernel}'
            operation += f', stride {layer.stride}' if layer.stride > 1 else ''
        found.append(
            Block(
                layer.name,
                operation,
                _shape((*layer.image_shape, layer.channels)),
                costs.layer_macs(layer, choice),
                sum(costs.layer_weights(layer, choice).values()),
                residual=layer.keeps_shape and not choice.is_identity,
                skipped=choice.is_identity,
            )
        )
    return [
        *found,
        Block(
            'head',
            'conv 1 × 1',
            _shape((*space.final_shape, head)),
            math.prod(space.final_shape) * sites['head'],
            sites['head'],
        ),
        Block(
            'classifier',
            'mean, then linear',
            f'{space.classes} classes',
            sites['classifier'],
            sites['classifier'],
        ),
    ]


def _shape(sizes):
    return ' × '.join(map(str, sizes))


def _model(records):
    name = records.main_model()
    if name is None:
        raise Missing('no model is finished')
    return name, records.models[name]


def architecture(records: Records) -> list[Picture]:
    """Block diagram of the chosen network, with shapes, MACs and weights."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    model = _model(records)[1]
    boxes = blocks(model)
    total = sum(box.macs for box in boxes)
    stored = sum(box.weights for box in boxes)
    fig = style.figure(style.WIDTH, 0.56 * len(boxes) + 1.0)
    diagram, macs, weights = fig.subplots(1, 3, sharey=True, width_ratios=(2.3, 1, 1))
    height, half = 0.56, 0.28
    colors = {'front end': '#DCEBF7', 'stem': '#EDEDED', 'head': '#EDEDED', 'classifier': '#EDEDED'}
    diagram.set_xlim(0, 10)
    for i, box in enumerate(boxes):
        face = 'white' if box.skipped else colors.get(box.name, '#FBEBD0')
        diagram.add_patch(
            FancyBboxPatch(
                (0.6, i - half),
                7.6,
                height,
                boxstyle='round,pad=0,rounding_size=0.14',
                facecolor=face,
                edgecolor='#777777',
                linestyle='--' if box.skipped else '-',
                linewidth=1,
            )
        )
        ink = '#888888' if box.skipped else 'black'
        diagram.text(0.85, i, box.name, va='center', fontweight='bold', color=ink)
        diagram.text(2.85, i, box.operation, va='center', color=ink)
        above = '16000 samples' if i == 0 else boxes[i - 1].output
        _arrow(diagram, FancyArrowPatch, i - 1 + half, i - half)
        diagram.text(4.2, i - 0.5, above, va='center', ha='right', fontsize=8, color='#555555')
        if box.residual:
            # leaves the arrow above the box, joins the one below it
            leaves, joins = i - half - 0.09, i + half + 0.09
            diagram.plot(
                [4.4, 8.8, 8.8, 4.4],
                [leaves, leaves, joins, joins],
                color=style.GREEN,
                linewidth=1.4,
            )
            diagram.text(4.55, joins + 0.1, '+', color=style.GREEN, va='center', fontweight='bold')
    last = len(boxes) - 1
    _arrow(diagram, FancyArrowPatch, last + half, last + 1 - half + 0.05)
    diagram.text(
        4.2, last + 0.5, boxes[-1].output, va='center', ha='right', fontsize=8, color='#555555'
    )
    diagram.set_axis_off()
    diagram.set_title('Waveform to logits', loc='left')
    for ax, values, whole, title in (
        (macs, [b.macs for b in boxes], total, 'MACs'),
        (weights, [b.weights for b in boxes], stored, 'Weights stored'),
    ):
        bars = ax.barh(range(len(boxes)), values, height=height, color=style.BLUE)
        ax.bar_label(
            bars,
            [f'{style.millions(v)} ({100 * v / whole:.0f} %)' if v else '0' for v in values],
            padding=3,
            fontsize=8,
        )
        ax.set_title(f'{title}: {style.millions(whole)}')
        ax.set_xlim(0, max(values) * 1.75)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[['bottom']].set_visible(False)
        ax.grid(False)
    macs.set_ylim(last + 0.75, -1.0)
    text = (
        f'{model.architecture}. Shapes are frames × filters × channels. A green line is a residual.'
    )
    return [Picture('architecture', 'The chosen network', text, fig)]


def _arrow(ax, patch, start, end):
    ax.add_patch(
        patch(
            (4.4, start),
            (4.4, end),
            arrowstyle='-|>',
            mutation_scale=9,
            color='#555555',
            linewidth=1.1,
            shrinkA=0,
            shrinkB=0,
        )
    )


def bit_profile(records: Records) -> list[Picture]:
    """Bits of each tensor, weights and activations, in the last quantized model."""
    quantized = {n: m for n, m in records.models.items() if m.quant is not None}
    if not quantized:
        raise Missing('no quantized model is finished')
    name = records.main_model()
    model = quantized.get(name) or next(iter(quantized.values()))
    learned = {}
    if f'{name}/learn' in records.logs:
        evaluations = records.logs[f'{name}/learn'].of_kind('eval')
        learned = evaluations[-1] if evaluations else {}
    taps = quantized_taps(model.make_front_end())
    sizes = {
        'weight': costs.weight_sites(model.architecture, front_end_weights=taps),
        'activation': costs.activation_sites(model.architecture),
    }
    rows = list(dict.fromkeys([*list(sizes['activation'])[:1], *sizes['weight'], 'classifier']))
    fig = style.figure(style.WIDTH, 0.25 * len(rows) + 1.2)
    axes = fig.subplots(1, 2, sharey=True)
    cmap, norm = style.bit_colors()
    for ax, kind in zip(axes, ('weight', 'activation'), strict=True):
        bits = model.bits(kind)
        own = [row for row in rows if row in bits]
        at = [rows.index(row) for row in own]
        values = [bits[row] for row in own]
        ax.barh(at, values, height=0.74, color=[cmap(norm(v)) for v in values])
        for row, i, value in zip(own, at, values, strict=True):
            ink = style.ink_on(cmap(norm(value)))
            ax.text(0.15, i, value, va='center', fontsize=8.5, fontweight='bold', color=ink)
            count = style.millions(sizes[kind][row])
            ax.text(
                0.995,
                i,
                count,
                va='center',
                ha='right',
                fontsize=8,
                color='#555555',
                transform=ax.get_yaxis_transform(),
            )
        real = [(learned.get(f'bits/{kind}/{row}'), i) for row, i in zip(own, at, strict=True)]
        real = [(value, i) for value, i in real if value is not None]
        if real:
            ax.plot(
                *zip(*real, strict=True),
                linestyle='none',
                marker='d',
                color=style.RED,
                markersize=5,
                label='learned, before rounding',
            )
        mean = costs.mean_bits(bits, sizes[kind])
        ax.axvline(
            mean,
            color=style.BLACK,
            linestyle='--',
            linewidth=1,
            label=f'mean over values: {mean:.2f}',
        )
        ax.set_title(f'Bits of the {kind}s; at the right how many there are')
        most = max(8, *values)
        ax.set_xlim(0, 1.2 * most)
        ax.set_xticks(range(0, most + 1, max(most // 8, 1)))
        ax.set_xlabel('bits')
        ax.grid(False, axis='y')
        ax.legend(
            loc='upper center',
            bbox_to_anchor=(0.5, -0.55 / fig.get_figheight()),
            ncols=2,
            fontsize=8.5,
        )
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for ax in axes:
        ax.tick_params(axis='y', length=0, labelsize=8.5)
    text = f'Whole bit-widths of {name}, layers from input to output; {model.quant["form"]} form.'
    return [Picture('bit_profile', 'Bit-widths of each layer', text, fig)]


def live_values(architecture: Architecture) -> list[tuple[str, dict[str, str | None]]]:
    """The activations that are live during each convolution, run one after the other.

    Returns:
      For each convolution its name and `{'input', 'output', 'residual'}`: the names of the live
      tensors of `costs.activation_sites` (None: no residual waits). The largest sum over them is
      `costs.peak_activation_bytes`.
    """
    sites = costs.activation_sites(architecture)
    steps = [('frontend', 'input', 'frontend', None), ('stem', 'frontend', 'stem', None)]
    before = 'stem'
    for layer, choice in zip(architecture.space.layers, architecture.choices, strict=True):
        if choice.is_identity:
            continue
        waiting, reads = (before if layer.keeps_shape else None), before
        for part in ('expand', 'depthwise', 'project'):
            makes = f'{layer.name}.{part}'
            if makes in sites:
                # What the block's first convolution reads is the residual itself: counted once.
                steps.append((makes, reads, makes, None if reads == before else waiting))
                reads = makes
        before = reads
    steps.append(('head', before, 'head', None))
    return [(n, {'input': i, 'output': o, 'residual': r}) for n, i, o, r in steps]


def memory(records: Records) -> list[Picture]:
    """Live activations during each convolution, and the bytes of each layer's weights."""
    name, model = _model(records)
    bits = {kind: model.bits(kind) for kind in ('weight', 'activation')}
    sites = costs.activation_sites(model.architecture)
    size = {n: sites[n] * bits['activation'][n] / 8 for n in sites}
    steps = live_values(model.architecture)
    taps = quantized_taps(model.make_front_end())
    weights = costs.weight_sites(model.architecture, front_end_weights=taps)
    fig = style.figure(style.WIDTH, 6.6)
    ram, flash = fig.subplots(2, 1)
    bottom = np.zeros(len(steps))
    for part, color, label in (
        ('input', style.BLUE, 'its input'),
        ('output', style.ORANGE, 'its output'),
        ('residual', style.GREEN, "the block's input, waiting for its sum"),
    ):
        parts = np.array([size[live[part]] if live[part] else 0.0 for _, live in steps])
        ram.bar(range(len(steps)), parts, bottom=bottom, color=color, label=label, width=0.8)
        bottom += parts
    peak = int(bottom.argmax())
    ram.axhline(bottom[peak], color=style.RED, linestyle='--', linewidth=1)
    ram.text(
        len(steps) - 0.5,
        bottom[peak],
        f'peak {bottom[peak] / 1000:.1f} kB at {steps[peak][0]}',
        ha='right',
        va='bottom',
        color=style.RED,
    )
    ram.set_xticks(range(len(steps)), [n for n, _ in steps], rotation=90)
    ram.set_ylim(0, bottom[peak] * 1.32)  # room for the legend above the peak
    ram.set_ylabel('live activations [kB]')
    ram.set_title('Memory of activations, one convolution after the other')
    ram.legend(loc='upper right', ncols=3, fontsize=8.5)
    own = [weights[n] * bits['weight'][n] / 8 for n in weights]
    bars = flash.bar(range(len(own)), own, color=style.BLUE, width=0.8)
    flash.bar_label(
        bars,
        [f'{v / 1000:.2g}' if v < 1e4 else f'{v / 1000:.0f}' for v in own],
        fontsize=7.5,
        padding=2,
    )
    flash.set_xticks(range(len(own)), list(weights), rotation=90)
    flash.set_ylabel('weights [kB]')
    flash.margins(y=0.12)
    flash.set_title(f'Bytes of weights: {sum(own) / 1000:.1f} kB, scales and offsets not counted')
    for ax in (ram, flash):
        ax.grid(False, axis='x')
        ax.tick_params(axis='x', labelsize=8, length=0)
        style.bytes_axis(ax.yaxis)
    mean = model.costs()
    text = (
        f'Of {name}: {mean["mean_weight_bits"]:.2f} bits per weight and '
        f'{mean["mean_activation_bits"]:.2f} per activation on average; kB are 1000 bytes.'
    )
    return [Picture('memory', 'Memory', text, fig)]
