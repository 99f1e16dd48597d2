"""How pictures look, and what a picture is."""

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito 2008: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, RED = '#0072B2', '#E69F00', '#009E73', '#D55E00'
SKY, PINK, BLACK, GREY = '#56B4E9', '#CC79A7', '#222222', '#8A8A8A'
CYCLE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
MARKERS = 'oDs^vPX'
SEQUENTIAL = 'Blues'
WIDTH = 11.0  # inches of a picture that takes the whole page


class Picture(NamedTuple):
    """A figure with its words: `name` is that of its file, `text` says what is to be seen."""

    name: str
    title: str
    text: str
    figure: Any


class Missing(Exception):
    """What a picture is drawn from is not there; says what and why."""


@contextlib.contextmanager
def house_style():
    """Matplotlib's settings for our pictures, back to what they were afterwards."""
    import matplotlib

    settings = {
        'font.size': 9.5,
        'axes.titlesize': 10.5,
        'axes.titleweight': 'bold',
        'axes.titlelocation': 'left',
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.grid': True,
        'axes.axisbelow': True,
        'axes.edgecolor': '#555555',
        'grid.color': '#E4E4E4',
        'grid.linewidth': 0.8,
        'legend.frameon': False,
        'lines.linewidth': 1.8,
        'figure.facecolor': 'white',
        'savefig.facecolor': 'white',
        'savefig.dpi': 130,
        'svg.fonttype': 'none',
    }
    with matplotlib.rc_context(settings):
        yield


def figure(width: float = WIDTH, height: float = 4.0):
    """An empty figure, in inches; no window, no backend, nothing global."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def grid(panels: int, *, columns: int, height: float, width: float = WIDTH, **options):
    """A figure of equal panels: `(figure, list of axes)`; places that are left over are empty."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    fig = figure(width, height * rows)
    axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    for spare in axes[panels:]:
        spare.set_axis_off()
    return fig, list(axes[:panels])


def smooth(values, window: int | None = None) -> np.ndarray:
    """Running mean over `window` values (a thirtieth of all if None), shorter at both ends."""
    values = np.asarray(values, float)
    window = window or max(len(values) // 30, 1)
    kernel = np.ones(window)
    weights = np.convolve(np.ones(len(values)), kernel, 'same')
    return np.convolve(values, kernel, 'same')[: len(values)] / weights[: len(values)]


def noisy_line(ax, x, y, color, label):
    """Draws a noisy series: what was logged pale, its running mean strong."""
    if len(y) > 30:
        ax.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
        ax.plot(x, smooth(y), color=color, label=label)
    else:
        ax.plot(x, y, color=color, label=label, marker='.' if len(y) < 12 else None)


def bytes_axis(axis):
    """Labels an axis of bytes as kB (1000 bytes)."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value / 1000:g}'))


def percent(value: float) -> str:
    """A share as text: `12.3 %`."""
    return f'{100 * value:.1f} %'


def millions(value: float) -> str:
    """A count as text: `13.6 M`, `62 k`."""
    if value >= 1e5:
        return f'{value / 1e6:.2f} M'
    return f'{value / 1e3:.1f} k' if value >= 1e3 else f'{value:.0f}'


def duration(seconds: float) -> str:
    """A time as text.

    >>> duration(42.3), duration(754), duration(7300)
    ('42 s', '12 min 34 s', '2 h 02 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    if seconds < 3600:
        return f'{seconds // 60} min {seconds % 60:02d} s'
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min'


def bit_colors():
    """Colour map and norm of bit-widths 1 to 8."""
    import matplotlib
    from matplotlib.colors import Normalize

    return matplotlib.colormaps['viridis_r'], Normalize(0.5, 8.5)


def ink_on(rgba) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = rgba[:3]
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else 'white'
