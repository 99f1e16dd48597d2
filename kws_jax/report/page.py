"""The page: a table, pictures, and what is missing, in one HTML file."""

import base64
import html
import os
import pathlib
from collections.abc import Callable, Sequence

from absl import logging

from kws_jax.report import curves, filters, networks, outcome, records, searching, style, tables
from kws_jax.report.style import Missing

SECTIONS: tuple[tuple[str, tuple[Callable, ...]], ...] = (
    ('Outcome', (outcome.accuracy_and_cost, outcome.recall, outcome.confusion)),
    ('The network', (networks.architecture, networks.memory, filters.front_end)),
    ('Search', (searching.probabilities, searching.progress)),
    ('Bit-widths', (networks.bit_profile, curves.bits)),
    ('Training', (curves.training, outcome.wall_time)),
)

_CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --dim: #5c5c5c; --back: #fafaf8; --line: #dcdcd8;
  --card: #ffffff; --link: #00588f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --dim: #a3a39f; --back: #17181a;
  --line: #383a3d; --card: #202225; --link: #7fbfec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 72rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p, li { max-width: 54rem; }
.dim { color: var(--dim); font-size: .92rem; }
nav a { color: var(--link); margin-right: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; }
figure { margin: 1.2rem 0 1.8rem; }
figure img { width: 100%; height: auto; display: block; background: white; border-radius: 8px;
  border: 1px solid var(--line); padding: .5rem; }
figcaption { margin-top: .45rem; color: var(--dim); font-size: .92rem; }
figcaption b { color: var(--ink); }
.missing { border-left: 3px solid #E69F00; padding: .1rem 0 .1rem .8rem; color: var(--dim); }
"""


def write(workdir, *, sections: Sequence = SECTIONS) -> pathlib.Path:
    """Draws everything; see `report.write`.

    Args:
      workdir: of a run.
      sections: `(title, functions)`; each function takes `Records`, returns pictures, and raises
        `Missing` where what it draws is not there.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: `workdir` holds no run.
    """
    run = records.read(workdir)
    folder = pathlib.Path(workdir) / 'report'
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.png'):
        old.unlink()
    body, missing = [], []
    with style.house_style():
        for title, draw_all in sections:
            figures = []
            for draw in draw_all:
                try:
                    pictures = draw(run)
                    figures += [_figure(folder, picture) for picture in pictures]
                except Missing as reason:
                    missing.append(f'{title}: {reason}')
                    figures.append(f'<p class="missing">Not drawn: {html.escape(str(reason))}.</p>')
                except Exception as error:
                    # One picture must not take the page of a run of hours with it.
                    logging.exception('%s could not be drawn', draw.__name__)
                    reason = f'{draw.__name__} could not be drawn: {error!r}'
                    run.problems.append(reason)
            body.append(_section(title, figures))
    page = _page(run, [title for title, _ in sections], body, missing)
    path = folder / 'index.html'
    temporary = path.with_suffix('.tmp')
    temporary.write_text(page, encoding='utf-8')
    os.replace(temporary, path)
    return path


def _figure(folder, picture):
    path = folder / f'{picture.name}.png'
    picture.figure.savefig(path, bbox_inches='tight', pad_inches=0.08)
    data = base64.b64encode(path.read_bytes()).decode()
    title, text = html.escape(picture.title), html.escape(picture.text)
    return (
        f'<figure><img alt="{title}: {text}" src="data:image/png;base64,{data}">'
        f'<figcaption><b>{title}.</b> {text}</figcaption></figure>'
    )


def _anchor(title):
    return title.lower().replace(' ', '-')


def _section(title, figures):
    once = dict.fromkeys(figures)  # several pictures may lack the same thing
    return f'<h2 id="{_anchor(title)}">{title}</h2>\n' + '\n'.join(once)


def _page(run, titles, body, missing):
    name = html.escape(run.workdir.resolve().name)
    links = ' '.join(f'<a href="#{_anchor(title)}">{title}</a>' for title in titles)
    notes = [f'<li>{html.escape(note)}</li>' for note in [*run.problems, *missing]]
    sections = '\n'.join(body)
    noted = f'<h2>What is missing</h2><ul class="dim">{"".join(notes)}</ul>' if notes else ''
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: report</title><style>{_CSS}</style></head><body>
<h1>{name}</h1>
<p class="dim">{_facts(run)}</p>
<nav>{links}</nav>
{_table(run)}
{sections}
{noted}
</body></html>
"""


def _facts(run):
    facts = []
    if not run.results:
        facts.append('This run is not finished.')
    hardware = run.results.get('hardware', {})
    if hardware:
        devices = ', '.join(hardware.get('devices', []))
        facts.append(
            f'Run on {hardware.get("cpu")} with {hardware.get("cores")} cores '
            f'(JAX {hardware.get("jax")} on {devices}).'
        )
    seconds = sum(log.wall_seconds for log in run.logs.values())
    if seconds:
        facts.append(f'{style.duration(seconds)} of training and search.')
    search = run.search
    if search.get('method'):
        facts.append(f'Search: {search["method"]}.')
    return html.escape(' '.join(facts))


def _table(run):
    if not run.rows:
        return '<p class="missing">No model is finished yet.</p>'
    head = ''.join(f'<th>{html.escape(text)}</th>' for text in tables.COLUMNS)
    rows = ''.join(
        '<tr>' + ''.join(f'<td>{html.escape(text)}</td>' for text in tables.cells(row)) + '</tr>'
        for row in run.rows
    )
    caption = html.escape(tables.caption(run.summary)).replace('\n', '<br>')
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
        f'<p class="dim">{caption}</p>'
    )
