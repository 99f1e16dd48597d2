"""Pictures of how a model does on a long recording."""

import numpy as np

from kws_jax.detection import Curve
from kws_jax.report import style
from kws_jax.report.style import Picture


def det(curves: dict[str, Curve], points: dict[str, dict] | None = None) -> Picture:
    """The DET curve of every keyword; operating points, where there are some, as markers.

    Args:
      curves: by keyword.
      points: by keyword, with `false_accepts_per_hour` and `false_reject_rate`.
    """
    fig = style.figure(8.0, 5.0)
    ax = fig.subplots()
    colors = [style.CYCLE[i % len(style.CYCLE)] for i in range(len(curves))]
    for i, (label, found) in enumerate(curves.items()):
        ax.step(
            found.false_accepts_per_hour,
            100 * found.false_reject_rate,
            color=colors[i],
            linestyle='-' if i < len(style.CYCLE) else '--',
            where='post',
            label=label,
        )
        if points and label in points:
            at = points[label]
            ax.plot(
                at['false_accepts_per_hour'], 100 * at['false_reject_rate'], 'o', color=colors[i]
            )
    most = max(float(np.max(found.false_accepts_per_hour)) for found in curves.values())
    ax.set_xscale('symlog', linthresh=1)
    ax.set_xlim(0, max(most, 1) * 1.1)
    ax.set_ylim(0, None)
    ax.set_xlabel('false accepts per hour')
    ax.set_ylabel('words that were not heard [%]')
    ax.legend(ncols=2)
    text = 'One curve per keyword, over thresholds; dots are the operating points that were chosen.'
    return Picture('det', 'False accepts and false rejects', text, fig)
