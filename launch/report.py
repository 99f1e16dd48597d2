"""Draws the report of a run, finished or not: one HTML file with a table and all pictures.

    python launch/report.py --workdir=runs/sinc60

Takes about half a minute; the run itself may go on meanwhile.
"""

import logging as std_logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging  # noqa: E402

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run.', required=True)
_DRAW = flags.DEFINE_bool('draw', True, 'Draw the pictures, or print the table alone.')
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print the table as Markdown.')


def main(argv):
    """Writes the report; prints the table and where the report is."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; the folder is given by --workdir')
    from kws_jax import report
    from kws_jax.report import records

    try:
        results = records.read(_WORKDIR.value).summary
        page = report.write(_WORKDIR.value) if _DRAW.value else None
    except FileNotFoundError as error:
        raise SystemExit(f'report: {error}') from None
    print(report.markdown_table(results) if _MARKDOWN.value else report.table(results))
    if page:
        print(f'report: {page}')


if __name__ == '__main__':
    logging.use_absl_handler()
    std_logging.getLogger('jax').setLevel(std_logging.WARNING)  # it lists backends that are absent
    app.run(main)
