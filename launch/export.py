"""Writes a quantized model as code or data for a device, with its costs layer by layer.

    python launch/export.py --model=NAME_OR_PATH --format=c --out=DIR

Formats:
  c       C99 without floating point or dynamic memory: `make -C DIR` builds a library and kws_wav
  packed  model.kws alone: weights at their own bits, as kws_jax/deploy/packed.py describes
"""

import logging as std_logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_MODEL = flags.DEFINE_string(
    'model', None, 'Name of a released model, or a folder that holds one.', required=True
)
_FORMAT = flags.DEFINE_enum('format', 'c', ['c', 'packed'], 'What to write.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)


def main(argv):
    """Writes the export; prints what it costs."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, deploy, zoo
    from kws_jax.deploy import export_c, packed, table

    try:
        for path in _IMPORT.value:
            config.import_file(path)
        model = zoo.load(_MODEL.value)
        network = deploy.from_model(model)
        out = pathlib.Path(_OUT.value)
        if _FORMAT.value == 'c':
            export_c.write(network, out, costs=model.costs(), facts=model.card)
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / 'model.kws').write_bytes(packed.pack(network, {'card': model.card}))
    except (OSError, ValueError) as error:
        raise SystemExit(f'export: {error}') from None
    print(table.layers(network))
    print(f'written to {out}')


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
