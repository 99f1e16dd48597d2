"""Writes a quantized model as code or data for a device, with its costs layer by layer.

    python launch/export.py --model=NAME_OR_PATH --format=c --out=DIR

Formats:
  c       C99 without floating point or dynamic memory: `make -C DIR` builds a library, kws_wav
          and kws_hear
  packed  model.kws alone: weights at their own bits, as kws_jax/deploy/packed.py describes;
          --xz compresses it for storage
  onnx    model.onnx for onnxruntime and others: a float model as it is, a quantized one with its
          codes between QuantizeLinear and DequantizeLinear, weights in 4 or 8 bits
  litert  model.tflite for LiteRT and LiteRT for Microcontrollers: a float model as it is, a
          quantized one in int8, and with that exact.tflite, for LiteRT alone: the integer network's
          logits bit for bit
"""

import dataclasses
import json
import logging as std_logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_MODEL = flags.DEFINE_string(
    'model', None, 'Name of a released model, or a folder that holds one.', required=True
)
_FORMAT = flags.DEFINE_enum('format', 'c', ['c', 'packed', 'onnx', 'litert'], 'What to write.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_POINTS = flags.DEFINE_string(
    'operating_points', None, 'JSON of launch/evaluate_stream.py: when c hears a word.'
)
_HOP = flags.DEFINE_float(
    'hop_ms',
    None,
    'From one decision of a stream to the next; c, packed. Default: 8 frames, 80 ms.',
)
_XZ = flags.DEFINE_bool('xz', False, 'Of packed: write model.kws.xz, for storage.')
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)


def main(argv):
    """Writes the export; prints what it costs."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, deploy, zoo
    from kws_jax.deploy import (
        export_c,
        export_litert,
        export_litert_exact,
        export_onnx,
        firmware,
        packed,
        table,
    )

    try:
        for path in _IMPORT.value:
            config.import_file(path)
        model = zoo.load(_MODEL.value)
        out = pathlib.Path(_OUT.value)
        other = {'onnx': export_onnx, 'litert': export_litert}.get(_FORMAT.value)
        path = out / {'onnx': 'model.onnx', 'litert': 'model.tflite'}.get(
            _FORMAT.value, 'model.kws'
        )
        if other and model.quant is None:
            content = other.from_float(model)
            out.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f'written to {out}')
            return
        network = deploy.from_model(model)
        if _HOP.value is not None:
            every = _HOP.value * 16 / network.front_end.stride
            if every != int(every):
                raise ValueError(f'--hop_ms={_HOP.value:g} is no whole number of frames')
            network = dataclasses.replace(network, decide_every=int(every))
        if _FORMAT.value == 'c':
            points = json.loads(pathlib.Path(_POINTS.value).read_text()) if _POINTS.value else None
            export_c.write(network, out, costs=model.costs(), facts=model.card, points=points)
        else:
            content = (
                other.from_network(network) if other else packed.pack(network, {'card': model.card})
            )
            out.mkdir(parents=True, exist_ok=True)
            if _XZ.value and not other:
                path, content = path.with_suffix('.kws.xz'), packed.compress(content)
            path.write_bytes(content)
            if other is export_litert:
                (out / 'exact.tflite').write_bytes(export_litert_exact.from_network(network))
            if other:
                print(_containers(network, other.stored_bits(network)))
    except (OSError, ValueError) as error:
        raise SystemExit(f'export: {error}') from None
    except ImportError as error:
        raise SystemExit(f'export: {error}; pip install .[export]') from None
    print(table.layers(network, export_c.memory_timeline(network)))
    if _FORMAT.value == 'c' and firmware.available():
        image = firmware.build(out)
        print(
            'image for a Cortex-M4 (cortex_m4.elf, -Os): flash {flash_bytes:,} bytes, of which the '
            'model {model_bytes:,}; static RAM {ram_bytes:,}; stack {stack_bytes:,}'.format(**image)
        )
    print(f'written to {out}')


def _containers(network, stored) -> str:
    """What weights of other widths than the format's take in it, in words."""
    own = {'frontend': network.front_end.bits} | {n: la.bits for n, la in network.layers().items()}
    sizes = {'frontend': network.front_end.taps.size}
    sizes |= {name: layer.weights.size for name, layer in network.layers().items()}
    needed = sum(size * own[name] for name, size in sizes.items()) / 8
    taken = sum(size * stored[name] for name, size in sizes.items()) / 8
    wider = [name for name in sizes if stored[name] > own[name]]
    text = f'weights take {taken:,.0f} bytes, at their own bits {needed:,.0f}'
    if wider:
        text += f' (in containers wider than they are: {", ".join(wider)})'
    return text


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
