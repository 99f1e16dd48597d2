"""Draws the pictures of the documentation from configs/results and the released models.

python launch/figures.py
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from absl import app, flags  # noqa: E402

_RESULTS = flags.DEFINE_string('results', str(ROOT / 'configs/results'), 'Folder of the JSON.')
_OUT = flags.DEFINE_string('out', str(ROOT / 'docs/figures'), 'Where the pictures go.')


def main(argv):
    """Draws what can be drawn; says what cannot, and what makes it."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}')
    from kws_jax.report import studies

    files, missing = studies.write(_RESULTS.value, ROOT / 'kws_jax/zoo', _OUT.value)
    for path in files:
        print(path)
    for text in missing:
        print(f'not drawn: {text}')


if __name__ == '__main__':
    app.run(main)
