"""Tables and pictures of what a run did: `table(results)`, `write(workdir)`."""

import pathlib

from kws_jax.report import tables
from kws_jax.report.tables import caption, markdown_table, table

__all__ = ['caption', 'markdown_table', 'table', 'tables', 'write']


def write(workdir) -> pathlib.Path:
    """Draws what a run did, finished or not.

    Args:
      workdir: of `pipeline.run`, or of a single run (a folder with `metrics.jsonl`).

    Returns:
      `workdir/report/index.html`, one file with all pictures in it; they lie beside it as PNG. What
      the run does not have (yet) is named on the page.

    Raises:
      FileNotFoundError: `workdir` holds nothing that a run writes.
    """
    from kws_jax.report import page

    return page.write(workdir)
