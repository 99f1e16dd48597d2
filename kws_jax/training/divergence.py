"""Noticing that a training has diverged, and saying where."""

import collections
import math
import pathlib
import statistics
from typing import Any

import jax
import numpy as np

from kws_jax.errors import RunError
from kws_jax.training import checkpoints

_USUAL = 100  # chunks that make up the usual loss
_FACTOR, _OFFSET = 20.0, 10.0


class TrainingDiverged(RunError):
    """The loss is not finite or exploded.

    Args:
      reason: what was seen.
      step: first step with it, counted from 1.
      total: steps of the run.
      norms: L2 norm of each layer's parameters after the chunk with that step.
      checkpoint: the last good one, or None.
    """

    def __init__(
        self,
        reason: str,
        *,
        step: int,
        total: int,
        norms: dict[str, float],
        checkpoint: pathlib.Path | None,
    ):
        self.reason, self.step, self.norms, self.checkpoint = reason, step, norms, checkpoint
        order = sorted(norms, key=lambda name: (math.isfinite(norms[name]), -norms[name]))
        lines = [f'  {name}: {norms[name]:.4g}' for name in order[:12]]
        if len(order) > 12:
            lines.append(f'  and {len(order) - 12} more, none above {norms[order[12]]:.4g}')
        good = (
            f'last good checkpoint: {checkpoint}'
            if checkpoint
            else 'no checkpoint was saved before'
        )
        super().__init__(
            '\n'.join([
                f'diverged at step {step} of {total}: {reason}',
                'L2 norms of the layers:',
                *lines,
                good,
                'A lower learning rate or clipped gradients may help; use another workdir.',
            ])
        )


class LossWatch:
    """Compares losses with the usual one: the median of the means of the last 100 chunks.

    Args:
      history: means of earlier chunks, oldest first.

    >>> watch = LossWatch()
    >>> watch.trouble(np.array([2.0, 2.5]))
    >>> watch.trouble(np.array([2.0, np.nan]))
    (1, 'the loss is nan')
    >>> watch.trouble(np.array([3.0, 1e4]))
    (1, 'the loss is 1e+04, the usual one 2.25')
    """

    def __init__(self, history=()):
        self._history = collections.deque(history, _USUAL)

    def trouble(self, losses: np.ndarray) -> tuple[int, str] | None:
        """Index of the first bad one of `losses` [n] and what is wrong, or None.

        Exploded is a mean of the chunk over 20 times the usual loss plus 10: a chance outlier does
        not move it far, and a loss that starts at log(classes) never gets there by itself.
        """
        losses = np.atleast_1d(np.asarray(losses, np.float64))
        losses = losses.reshape(len(losses), -1).mean(axis=1)  # one per step
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            return int(bad[0]), f'the loss is {losses[bad[0]]:.4g}'
        usual = statistics.median(self._history) if self._history else losses[0]
        limit = _FACTOR * abs(usual) + _OFFSET
        mean = float(losses.mean())
        if mean > limit:
            first = int(np.argmax(losses > limit))
            return first, f'the loss is {losses[first]:.4g}, the usual one {usual:.4g}'
        self._history.append(mean)
        return None


def layer_norms(params: Any) -> dict[str, float]:
    """L2 norm of the leaves of each layer, a layer being all leaves with the same parent.

    >>> layer_norms({'stem': {'w': np.array([3.0]), 'b': np.array([4.0])}})
    {'stem': 5.0}
    """
    squares = collections.defaultdict(float)
    with np.errstate(over='ignore', invalid='ignore'):
        for path, leaf in checkpoints.named_leaves(jax.device_get(params)):
            layer = path.rpartition('/')[0] or path
            squares[layer] += float(np.sum(np.square(np.asarray(leaf, np.float64))))
    return {layer: math.sqrt(value) for layer, value in squares.items()}


def nan_layers(params: Any) -> list[str]:
    """Paths of the leaves that hold a NaN.

    Infinities may be meant, such as the logit of an excluded candidate.

    >>> nan_layers({'a': np.array([np.nan]), 'b': np.array([-np.inf])})
    ['a']
    """
    return [
        path
        for path, leaf in checkpoints.named_leaves(jax.device_get(params))
        if np.isnan(np.asarray(leaf, np.float64)).any()
    ]
