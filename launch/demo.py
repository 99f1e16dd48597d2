"""Serves a page that listens: a quantized model in integers, in the browser, as WebAssembly.

    python launch/demo.py --model=NAME_OR_PATH          then open the address that it prints

The page shows waveform, front-end image and scores as they come, from the microphone or from a
recording that is dropped on it; no sound leaves the browser. Thresholds come from
launch/evaluate_stream.py's JSON, or are one for all keywords. Ctrl-C ends it.
"""

import json
import logging as std_logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_MODEL = flags.DEFINE_string(
    'model', None, 'Name of a released model, or a folder that holds one.', required=True
)
_PORT = flags.DEFINE_integer('port', 8000, 'Of the address; 0 for a free one.', 0, 65535)
_POINTS = flags.DEFINE_string(
    'operating_points', None, 'JSON of launch/evaluate_stream.py: a threshold for each keyword.'
)
_IMPORT = flags.DEFINE_multi_string(
    'import', [], 'Python file that adds a quantizer of your own to quantizers.FORMS.'
)


def main(argv):
    """Serves until it is interrupted."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags begin with --')
    from kws_jax import config, deploy, zoo
    from kws_jax.deploy import demo, export_c

    try:
        for path in _IMPORT.value:
            config.import_file(path)
        model = zoo.load(_MODEL.value)
        network = deploy.from_model(model)
        export_c.check(network)
        rule = {}
        if _POINTS.value:
            found = json.loads(pathlib.Path(_POINTS.value).read_text())
            rule = {key: found[key] for key in ('smoothing', 'refractory')}
            rule['thresholds'] = {k: point['threshold'] for k, point in found['validation'].items()}
        serving = demo.server(
            network, name=_MODEL.value, card=model.card, rule=rule, port=_PORT.value
        )
    except OSError as error:
        hint = '; --port=0 takes a free one' if error.errno == 98 else ''
        raise SystemExit(f'demo: {error}{hint}') from None
    except (ValueError, KeyError) as error:
        raise SystemExit(f'demo: {error}') from None
    print(f'http://localhost:{serving.server_address[1]}', flush=True)
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
