"""An integer network as C99: its data, a runtime without memory management or floating point."""

import json
import math
import pathlib
import shutil

from kws_jax import detection
from kws_jax.deploy import packed, table
from kws_jax.deploy.network import FRAMES_AT_ONCE, Layer, Network
from kws_jax.deploy.scores import SCORE_ONE, score_multiplier

_C = pathlib.Path(__file__).with_name('c')
RUNTIME = ('kws_core.h', 'kws_core.c', 'kws.c', 'kws_wav.c', 'kws_hear.c', 'Makefile')
RUNTIME += ('cortex_m4.c', 'cortex_m4_count.c', 'cortex_m4.ld')
_LIMITS = {'channels': 512, 'kernel': 1024, 'classes': 64, 'blocks': 16}  # of kws_core.h


def _map_shape(layer: Layer, shape) -> tuple[int, int]:
    return tuple(-(-n // s) for n, s in zip(shape, layer.stride, strict=True))


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def memory_timeline(network: Network) -> list[tuple[str, int]]:
    """Bytes of memory that the C runtime holds during each step of a window, in order.

    A byte a code. The image and the samples of the frames at work are there all the time; a block
    holds its input, its output, and as many rows of its expanded input as its kernel has. The last
    step of a causal network is its stream, which takes the place of all others but the front end.
    """
    front_end = network.front_end
    shape = (network.frames, front_end.filters)
    image = _aligned(shape[0] * shape[1])
    samples = _aligned(front_end.kernel + (FRAMES_AT_ONCE - 1) * front_end.stride)
    always = image + samples
    steps = [('frontend', always)]
    shape = _map_shape(network.stem, shape)
    size = shape[0] * shape[1] * network.stem.weights.shape[-1]
    row = 4 * shape[1] * network.stem.weights.shape[-1]
    steps.append(('stem', always + _aligned(size) + row))
    rings, most, row_in_out = 0, row, _aligned(row // 4)
    for block in network.blocks:
        deep, before = block.depthwise, shape
        channels = deep.weights.shape[-1]
        shape = _map_shape(deep, before)
        out = shape[0] * shape[1] * block.project.weights.shape[-1]
        wide = shape[1] * channels
        ring = _aligned(deep.weights.shape[0] * before[1] * channels)
        scratch = 4 * wide + _aligned(wide)
        rings, most = rings + ring, max(most, scratch)
        row_in_out = max(row_in_out, _aligned(out // shape[0]))
        scratch += 0 if block.expand is None else ring
        name = deep.name.removesuffix('.depthwise')
        steps.append((name, always + _aligned(size) + _aligned(out) + scratch))
        size = out
    sums = 4 * network.head.weights.shape[-1]
    steps.append(('head', always + _aligned(size) + sums))
    if network.causal:
        kept = rings + shape[0] * sums + max(most, sums) + 2 * row_in_out
        steps.append(('stream', always + kept))
    return steps


def memory_bytes(network: Network) -> int:
    """The most of `memory_timeline`: what the C runtime needs beside its own few variables."""
    return max(size for _, size in memory_timeline(network))


def check(network: Network) -> None:
    """Raises ValueError, naming the layer, for what the C runtime has no room for."""
    sizes = {'frontend': ('kernel', network.front_end.kernel)}
    sizes |= {name: ('channels', la.weights.shape[-1]) for name, la in network.layers().items()}
    sizes['classifier'] = ('classes', len(network.labels))
    for name, (what, size) in sizes.items():
        if size > _LIMITS[what]:
            raise ValueError(f'{name}: {size} {what}; the C runtime has room for {_LIMITS[what]}')
    if len(network.blocks) > _LIMITS['blocks']:
        raise ValueError(f'{len(network.blocks)} blocks; the C runtime has room for 16')
    if network.front_end.stride > network.front_end.kernel:
        raise ValueError('frontend: its stride is longer than its kernel; the C runtime needs all')
    if network.frames < FRAMES_AT_ONCE:
        raise ValueError(f'frontend: {network.frames} frames; the C runtime needs {FRAMES_AT_ONCE}')


def _array(content: bytes) -> str:
    lines = [
        '  ' + ', '.join(f'0x{byte:02x}' for byte in content[i : i + 16])
        for i in range(0, len(content), 16)
    ]
    return ',\n'.join(lines)


def detection_rule(network: Network, points: dict | None) -> detection.Rule:
    """When the C runtime hears a keyword: where what launch/evaluate_stream.py wrote says, else at
    an average score of `detection.THRESHOLD`; rounded up to units of a score.

    Raises:
      ValueError: a threshold of no class, or points that are not that program's.
    """
    keywords = [label for label in network.labels if label not in detection.NOT_KEYWORDS]
    thresholds, settings = dict.fromkeys(keywords, detection.THRESHOLD), ()
    if points is not None:
        if lacking := sorted({'smoothing', 'refractory', 'test'} - set(points)):
            raise ValueError(
                f'the operating points lack {", ".join(lacking)}; give the JSON of '
                'launch/evaluate_stream.py'
            )
        thresholds = {k: point['threshold'] for k, point in points['test']['keywords'].items()}
        settings = points['smoothing'], points['refractory']
    whole = {label: math.ceil(cut * SCORE_ONE) / SCORE_ONE for label, cut in thresholds.items()}
    return detection.Rule(network.labels, whole, *settings)


def _thresholds(rule):
    """In units of a score; 65535 for what is never heard."""
    return [
        round(rule.thresholds[label] * SCORE_ONE) if label in rule.thresholds else 65535
        for label in rule.labels
    ]


def manifest(network: Network, costs: dict, facts: dict, points: dict | None = None) -> dict:
    """What goes beside an export; names follow ESPHome's micro-wake-word manifest where they can.

    Args:
      network: what is exported.
      costs: `Model.costs()`.
      facts: the model's card.
      points: what launch/evaluate_stream.py wrote: a threshold for each keyword.
    """
    rule = detection_rule(network, points)
    front_end = network.front_end
    described = {
        'type': 'kws_jax',
        'version': packed.VERSION,
        'model': 'model.kws',
        'labels': list(network.labels),
        'sample_rate': 16000,
        'window_samples': network.samples,
        'hop_samples': network.decide_every * front_end.stride,
        'micro': {
            'feature_step_size': 1000 * front_end.stride // 16000,
            'tensor_arena_size': memory_bytes(network),
            'sliding_window_size': rule.smoothing,
        },
        'refractory_windows': rule.refractory,
        'logit_step': network.logit_step,
        'flash_bytes': len(packed.stream(network)),
        'file_bytes': len(packed.pack(network)),
        'memory_bytes': memory_bytes(network),
        'macs': costs['macs'],
        'macs_per_second': round(table.macs_per_second(network)),
        'mean_weight_bits': costs['mean_weight_bits'],
        'mean_activation_bits': costs['mean_activation_bits'],
        'card': facts,
    }
    if points is None:
        described['micro']['probability_cutoff'] = detection.THRESHOLD
    else:
        described['operating_points'] = {
            label: {
                'probability_cutoff': point['threshold'],
                **{key: value for key, value in point.items() if key != 'threshold'},
            }
            for label, point in points['test']['keywords'].items()
        }
    return described


def write(
    network: Network,
    out,
    *,
    costs: dict,
    facts: dict | None = None,
    points: dict | None = None,
) -> pathlib.Path:
    """Writes data, runtime, a program for WAV files, a Makefile and a manifest.

    Args:
      network: what to write.
      out: folder; made if need be.
      costs, facts: for the manifest.
      points: what launch/evaluate_stream.py wrote, for the manifest and for `kws_listen`; None for
        one threshold for all keywords.

    Returns:
      The folder.

    Raises:
      ValueError: the runtime has no room for the network, and names the layer; or points of other
        labels.
    """
    check(network)
    rule, (mantissa, shift) = detection_rule(network, points), score_multiplier(network.logit_step)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        shutil.copyfile(_C / name, out / name)
    content = packed.pack(network)
    (out / 'model.kws').write_bytes(content)
    # the runtime does not read the text: the copy in the program is without it
    lean = packed.pack(network, text=False)
    (out / 'kws_model.c').write_text(
        '/* The packed network; model.kws is the same with names. */\n#include <stdint.h>\n\n'
        f'extern const uint8_t kws_model[{len(lean)}];\n'
        f'const uint8_t kws_model[{len(lean)}] = {{\n{_array(lean)}\n}};\n'
        '\n/* When kws_listen hears a word: thresholds of average scores, in units of 2^-15, and\n'
        ' * a unit of a logit in units of 2^-16 of an exponent, times 2^shift. */\n'
        f'extern const uint16_t kws_thresholds[{len(rule.labels)}];\n'
        f'const uint16_t kws_thresholds[{len(rule.labels)}] = '
        f'{{{", ".join(map(str, _thresholds(rule)))}}};\n'
        'extern const uint32_t kws_score_mantissa, kws_score_shift;\n'
        f'const uint32_t kws_score_mantissa = {mantissa}u, kws_score_shift = {shift}u;\n'
    )
    labels = ', '.join(json.dumps(label) for label in network.labels)
    header = (_C / 'kws.h.in').read_text()
    for name, value in {
        'SAMPLES': network.samples,
        'CLASSES': len(network.labels),
        'HOP': network.decide_every * network.front_end.stride,
        'CHUNK': FRAMES_AT_ONCE * network.front_end.stride,
        'MODEL_BYTES': len(lean),
        'MEMORY_BYTES': memory_bytes(network),
        'LABELS': labels,
        'SMOOTHING': rule.smoothing,
        'REFRACTORY': rule.refractory,
    }.items():
        header = header.replace(f'@{name}@', str(value))
    (out / 'kws.h').write_text(header)
    described = manifest(network, costs, facts or {}, points)
    (out / 'manifest.json').write_text(json.dumps(described, indent=1) + '\n')
    return out
