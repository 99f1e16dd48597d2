"""From scores over time to detections: smoothing, thresholds, refractory time; and their errors.

Scores come at a fixed hop, one row per window. They are averaged over the last few windows; where
the average of a keyword reaches its threshold, the keyword is heard, and not again before its
refractory time is over. `Listener` does so as scores come in; `detect` says the same of a whole
stream at once, at any threshold, which curves need.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NOT_KEYWORDS = ('silence', 'unknown')
THRESHOLD = 0.8  # of every keyword, where no operating points are known


class Detection(NamedTuple):
    """A keyword that was heard: which, at the end of which window (its number), how surely."""

    label: str
    window: int
    score: float


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a keyword counts as heard.

    Attributes:
      labels: of the scores.
      thresholds: of the smoothed score, by keyword; what is not in it is never reported.
      smoothing: windows that are averaged; the first ones of a stream are averaged over fewer.
      refractory: windows after a detection in which the same keyword is not reported again.
    """

    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    smoothing: int = 4
    refractory: int = 12

    def __post_init__(self):
        """Raises ValueError for a threshold of no class, or values out of range."""
        for label, threshold in self.thresholds.items():
            if label not in self.labels:
                raise ValueError(
                    f'threshold of {label!r}, which is none of {", ".join(self.labels)}'
                )
            if not 0 < threshold <= 1.01:
                raise ValueError(f'the threshold of {label!r} must be in (0, 1], got {threshold}')
        for name in ('smoothing', 'refractory'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1 window, got {getattr(self, name)}')


class ListenerState(NamedTuple):
    """The last scores `[smoothing, classes]`, windows so far, and the last detection of each."""

    recent: np.ndarray
    windows: int
    last: Mapping[str, int]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores `[..., classes]` that add up to one, float64."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def smooth(scores: np.ndarray, smoothing: int) -> np.ndarray:
    """Mean of each row `[windows, classes]` and the `smoothing - 1` before it.

    >>> smooth(np.array([[1.0], [0.0], [0.5]]), 2).ravel()
    array([1.  , 0.5 , 0.25])
    """
    return np.stack(
        [scores[max(i - smoothing + 1, 0) : i + 1].mean(axis=0) for i in range(len(scores))]
    )


def start(rule: Rule) -> ListenerState:
    """The state before the first scores."""
    return ListenerState(np.zeros((0, len(rule.labels))), 0, {})


def listen(
    rule: Rule, state: ListenerState, scores: np.ndarray
) -> tuple[ListenerState, list[Detection]]:
    """Takes in the scores `[classes]` of one more window; returns what is heard in it.

    The state that was given is not changed.
    """
    recent = np.concatenate([state.recent, np.asarray(scores, np.float64)[None]])
    recent = recent[-rule.smoothing :]
    mean, heard, last = recent.mean(axis=0), [], dict(state.last)
    for label, threshold in rule.thresholds.items():
        score = float(mean[rule.labels.index(label)])
        quiet = state.windows - last.get(label, -rule.refractory - 1) > rule.refractory
        if score >= threshold and quiet:
            heard.append(Detection(label, state.windows, score))
            last[label] = state.windows
    return ListenerState(recent, state.windows + 1, last), heard


def detect(scores: np.ndarray, threshold: float, refractory: int) -> np.ndarray:
    """Windows in which one keyword is heard, from its smoothed scores `[windows]`.

    >>> detect(np.array([0.0, 0.9, 0.9, 0.9, 0.9]), 0.5, refractory=2)
    array([1, 4])
    """
    above, found, free = np.flatnonzero(scores >= threshold), [], 0
    while (at := np.searchsorted(above, free)) < len(above):
        found.append(above[at])
        free = above[at] + refractory + 1
    return np.array(found, np.int64)


class Event(NamedTuple):
    """A word that was spoken: its class, and its samples from start to end."""

    label: str
    start: int
    end: int


class Errors(NamedTuple):
    """What came of one keyword at one threshold.

    Attributes:
      hits: detections that met a word, as `(word, detection)` numbers.
      missed: words that were not heard.
      false: windows of detections that met none.
    """

    hits: list[tuple[int, int]]
    missed: list[int]
    false: list[int]


def match(ends: np.ndarray, events: Sequence[Event], *, tolerance: int) -> Errors:
    """Which detections of a keyword meet which of its words.

    Args:
      ends: of the windows of the detections, in samples, ascending.
      events: the keyword's words, in order.
      tolerance: a detection may come so many samples after the end of its word.

    Each word takes the first detection from its start on; a second one is a false accept.
    """
    hits, missed, used = [], [], set()
    for number, event in enumerate(events):
        first = int(np.searchsorted(ends, event.start))
        while first in used:
            first += 1
        if first < len(ends) and ends[first] <= event.end + tolerance:
            used.add(first)
            hits.append((number, first))
        else:
            missed.append(number)
    return Errors(hits, missed, [i for i in range(len(ends)) if i not in used])


class Curve(NamedTuple):
    """The trade-off of one keyword, a value per threshold.

    Attributes:
      thresholds: ascending.
      false_accepts_per_hour: all detections that met no word of theirs, over the whole stream.
      false_reject_rate: share of words that were not heard.
      latency: median seconds from the end of a word to its detection (NaN if none was heard).
    """

    thresholds: np.ndarray
    false_accepts_per_hour: np.ndarray
    false_reject_rate: np.ndarray
    latency: np.ndarray


def curve(
    scores: np.ndarray,
    ends: np.ndarray,
    events: Sequence[Event],
    *,
    hours: float,
    refractory: int,
    tolerance: int = 16000,
    sample_rate: int = 16000,
    thresholds: np.ndarray | None = None,
) -> Curve:
    """The DET curve of one keyword on one stream.

    Args:
      scores: its smoothed scores `[windows]`.
      ends: last sample of each window `[windows]`.
      events: the keyword's words in the stream, in order.
      hours: length of the stream.
      refractory: windows; see `Rule`.
      tolerance: samples; see `match`.
      sample_rate: in Hz.
      thresholds: ascending; by default 200, closer together towards 1.
    """
    if thresholds is None:
        thresholds = 1 - np.geomspace(0.98, 1e-4, 200)
    rows = []
    for threshold in thresholds:
        windows = detect(scores, threshold, refractory)
        errors = match(ends[windows], events, tolerance=tolerance)
        late = [ends[windows[i]] - events[number].end for number, i in errors.hits]
        rows.append(
            (
                len(errors.false) / hours,
                len(errors.missed) / len(events) if events else np.nan,
                np.median(late) / sample_rate if late else np.nan,
            )
        )
    false, rejected, latency = np.array(rows, np.float64).reshape(-1, 3).T
    return Curve(np.asarray(thresholds), false, rejected, latency)


def operating_point(found: Curve, false_accepts_per_hour: float) -> dict:
    """The lowest threshold of a curve from which on false accepts stay at or below the rate.

    Returns:
      `threshold`, `false_accepts_per_hour`, `false_reject_rate`, `latency_seconds`.

    Raises:
      ValueError: no threshold of the curve meets the rate.
    """
    over = np.flatnonzero(found.false_accepts_per_hour > false_accepts_per_hour)
    at = over[-1] + 1 if len(over) else 0
    if at == len(found.thresholds):
        raise ValueError(
            f'no threshold keeps false accepts at {false_accepts_per_hour:g} an hour; the highest '
            f'gives {found.false_accepts_per_hour[-1]:g}'
        )
    return {
        'threshold': float(found.thresholds[at]),
        'false_accepts_per_hour': float(found.false_accepts_per_hour[at]),
        'false_reject_rate': float(found.false_reject_rate[at]),
        'latency_seconds': float(found.latency[at]),
    }
