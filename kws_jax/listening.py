"""How a model does on a long recording: false accepts an hour, false rejects, latency."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import deploy, detection, frontends
from kws_jax import network as network_lib
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.streams import Stream
from kws_jax.deploy import scores as integer
from kws_jax.deploy import stream
from kws_jax.detection import NOT_KEYWORDS
from kws_jax.model import Model

HOP = 1280  # samples between the decisions of a float model: 80 ms
WINDOW = 16000


class Scores(NamedTuple):
    """What a model says of every window of a recording.

    Attributes:
      labels: of the classes.
      values: float64 `[windows, classes]`, which add up to one (to 0.001, of integers).
      ends: int64 `[windows]`, the sample at which each window's last frame ends.
    """

    labels: tuple[str, ...]
    values: np.ndarray
    ends: np.ndarray


def scores(model: Model, audio: np.ndarray) -> Scores:
    """Scores of every window of a recording.

    A quantized model listens in integers, as on a device. A float model is run on each window; but
    a causal one hears the recording as a stream, as its integer form does: what it says of a window
    is of the mean of that window's rows, which have heard what came before it.

    Args:
      model: float or quantized.
      audio: int16 `[samples]`, at least one window.

    Raises:
      ValueError: the recording is shorter than a window, or the model has no integer form.
    """
    if len(audio) < WINDOW:
        raise ValueError(f'{len(audio)} samples are less than one window of {WINDOW}')
    if model.quant is not None:
        network = deploy.from_model(model)
        front_end = network.front_end
        values = integer_scores(network, stream.logits(network, audio))
        length = (network.frames - 1) * front_end.stride + front_end.kernel
        step = stream.hop(network)
    elif _hears_streams(model):
        step, length = _causal_hop(model), WINDOW
        values = detection.softmax(_causal_logits(model, audio))
    else:
        predict, step, length = model.predictor(), HOP, WINDOW
        windows = np.lib.stride_tricks.sliding_window_view(audio, length)[::step]
        parts = []
        for first in range(0, len(windows), 64):
            part = windows[first : first + 64]
            part = np.pad(part, ((0, 64 - len(part)), (0, 0)))
            parts.append(np.asarray(predict(part)))
        values = detection.softmax(np.concatenate(parts)[: len(windows)])
    ends = length + step * np.arange(len(values))
    return Scores(tuple(model.labels), values, ends)


def integer_scores(network: deploy.Network, logits: np.ndarray) -> np.ndarray:
    """Scores `[..., classes]` of integer logits, the very numbers of the C runtime as fractions."""
    return integer.scores(logits, network.logit_step) / integer.SCORE_ONE


def _hears_streams(model):
    """Whether rows of a float model's maps depend neither on later ones nor on a window's ends."""
    # fixed features have no hops, and may pad the ends of a clip
    hops = frontends.settings(**model.front_end).get('hops')
    return model.architecture.space.causal and hops == 1


def _rows(model):
    """Samples from one row of the head's map to the next, and how many rows before it hear a part
    of what a row hears."""
    space = model.architecture.space
    before, apart = space.stem.kernel[0] - 1, space.stem.stride[0]
    for layer, choice in zip(space.layers, model.architecture.choices, strict=True):
        if not choice.is_identity:
            before += (choice.kernel - 1) * apart
            apart *= layer.stride
    return apart * frontends.settings(**model.front_end)['stride'], -(-before // apart)


def _causal_hop(model):
    """Samples between the decisions of a causal float model: whole rows, about `HOP`."""
    row, _ = _rows(model)
    return row * max(1, round(HOP / row))


def _window_logits(model, windows):
    """`logits(audio, first) -> [windows, classes]` of a causal model.

    Windows `_causal_hop` apart, the first of them beginning with row `first` of `audio`, which
    begins where the stream does or `_rows` before that row; what it lacks at its end is zeros.
    """
    front_end, architecture = model.make_front_end(), model.architecture
    (row, before), hop = _rows(model), _causal_hop(model)
    rows = architecture.space.final_shape[0]
    count = rows + (windows - 1) * hop // row
    length = (before + count - 1) * row + WINDOW

    @jax.jit
    def run(params, averages, audio, first):
        body, _ = network_lib.apply_body(
            params,
            averages,
            int16_to_float(audio)[None],
            front_end=front_end,
            architecture=architecture,
        )
        start = first + hop // row * jnp.arange(windows)
        each = body[0].mean(axis=1)[start[:, None] + jnp.arange(rows)[None]]
        return network_lib.classify(params, each.mean(axis=1))

    def logits(audio, first):
        audio = audio[:length]
        audio = np.pad(audio, (0, length - len(audio)))
        return np.asarray(run(model.params, model.averages, audio, first))

    return logits


def _causal_logits(model, audio, windows: int = 256):
    """Logits `[windows, classes]` of all windows of a recording, some at a time."""
    (row, before), hop = _rows(model), _causal_hop(model)
    logits, parts = _window_logits(model, windows), []
    count = (len(audio) - WINDOW) // hop + 1
    for window in range(0, count, windows):
        first = window * hop // row
        heard = min(first, before)
        parts.append(logits(audio[(first - heard) * row :], heard))
    return np.concatenate(parts)[:count]


def curves(
    scored: Scores, recording: Stream, *, smoothing: int = 4, refractory: int = 12
) -> dict[str, detection.Curve]:
    """The DET curve of every keyword on one stream.

    Args:
      scored: what `scores` said of the recording.
      recording: audio and what is said in it.
      smoothing, refractory: windows; see `detection.Rule`.
    """
    smoothed = detection.smooth(scored.values, smoothing)
    return {
        label: detection.curve(
            smoothed[:, i],
            scored.ends,
            [event for event in recording.events if event.label == label],
            hours=recording.hours,
            refractory=refractory,
        )
        for i, label in enumerate(scored.labels)
        if label not in NOT_KEYWORDS
    }


def at_thresholds(
    scored: Scores,
    recording: Stream,
    thresholds: dict[str, float],
    *,
    smoothing: int = 4,
    refractory: int = 12,
    tolerance: int = 16000,
) -> dict:
    """What happens on a stream when every keyword has its threshold, as a listener has it.

    Returns:
      `hours`; `false_accepts_per_hour` of all keywords together, and `under` it the same by what
      was in the window: `background`, `other_words`, `keywords`; `false_reject_rate` of all; and
      `keywords`, for each its `threshold`, `false_accepts_per_hour`, `false_reject_rate`, `words`
      and `latency_seconds` (median; None where none was heard).
    """
    ends = scored.ends
    rule = detection.Rule(scored.labels, thresholds, smoothing, refractory)
    state, heard = detection.start(rule), {label: [] for label in thresholds}
    for row in scored.values:
        state, found = detection.listen(rule, state, row)
        for one in found:
            heard[one.label].append(one.window)
    words = {label: [e for e in recording.events if e.label == label] for label in thresholds}
    keywords, under = {}, dict.fromkeys(('background', 'other_words', 'keywords'), 0)
    missed = false = 0
    for label, windows in heard.items():
        at = ends[np.array(windows, np.int64)]
        errors = detection.match(at, words[label], tolerance=tolerance)
        late = [at[i] - words[label][number].end for number, i in errors.hits]
        missed, false = missed + len(errors.missed), false + len(errors.false)
        for i in errors.false:
            under[_under(recording.events, at[i] - WINDOW, at[i])] += 1
        keywords[label] = {
            'threshold': thresholds[label],
            'false_accepts_per_hour': len(errors.false) / recording.hours,
            'false_reject_rate': len(errors.missed) / max(len(words[label]), 1),
            'words': len(words[label]),
            'latency_seconds': float(np.median(late)) / 16000 if late else None,
        }
    return {
        'hours': recording.hours,
        'false_accepts_per_hour': false / recording.hours,
        'under': {kind: count / recording.hours for kind, count in under.items()},
        'false_reject_rate': missed / max(sum(map(len, words.values())), 1),
        'keywords': keywords,
    }


def _under(events, start, end):
    inside = {event.label for event in events if event.end > start and event.start < end}
    if not inside:
        return 'background'
    return 'keywords' if inside - set(NOT_KEYWORDS) else 'other_words'


def stepper(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    """`step(int16 [samples]) -> scores [decisions, classes]`, which remembers what it was given.

    Pieces may have any length. The pure form of a quantized model is `deploy.stream.step`.
    """
    if model.quant is not None:
        network = deploy.from_model(model)
        state = stream.init(network)

        def step(samples):
            nonlocal state
            state, logits = stream.step(network, state, samples)
            return integer_scores(network, logits)

        return step
    if _hears_streams(model):
        return _causal_stepper(model)
    predict, kept = model.predictor(), np.zeros(0, np.int16)

    def step(samples):
        nonlocal kept
        kept, values = np.concatenate([kept, samples]), []
        while len(kept) >= WINDOW:
            values.append(np.asarray(predict(kept[None, :WINDOW]))[0])
            kept = kept[HOP:]
        return detection.softmax(np.array(values).reshape(-1, len(model.labels)))

    return step


def _causal_stepper(model):
    (row, before), hop = _rows(model), _causal_hop(model)
    logits, kept, first = _window_logits(model, 1), np.zeros(0, np.int16), 0

    def step(samples):
        nonlocal kept, first
        kept, values = np.concatenate([kept, samples]), []
        while len(kept) >= first * row + WINDOW:
            values.append(logits(kept, first)[0])
            first += hop // row
            kept, first = kept[max(first - before, 0) * row :], min(first, before)
        return detection.softmax(np.array(values).reshape(-1, len(model.labels)))

    return step
