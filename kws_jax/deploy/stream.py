"""Integer networks on a stream: `step(state, samples) -> (state, ...)`, frames computed once.

A frame of the front end is computed when its last sample arrives, and stays in the image until it
has left the window; the network behind runs every `decide_every` frames. Window `i` begins at
sample `i * hop`, and its logits are those of `execute.run` on these samples, bit for bit, in
whatever chunks they came.

A causal network computes every row of every map once. Its decisions are about the same windows,
but rows at the start of a window have heard what came before it, where `execute.run` has zeros: the
first decision equals that of `execute.run`, all of them what the network says of the recording so
far, whose last rows are those that count.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.deploy import execute
from kws_jax.deploy.network import FRAMES_AT_ONCE, Network


class State(NamedTuple):
    """What a stream remembers.

    Attributes:
      codes: `[length]` of samples that frames still need; the first `have` count.
      have: how many.
      seen: what the network keeps of the frames so far: codes `[frames, filters]` of the last ones,
        the oldest first; or the `Rows` of a causal network.
      due: batches of `FRAMES_AT_ONCE` frames until the next decision.
    """

    codes: np.ndarray
    have: np.ndarray
    seen: 'np.ndarray | Rows'
    due: np.ndarray


class Rows(NamedTuple):
    """What a causal network keeps of the frames so far.

    Attributes:
      before: how many of the next frames lie before the first sample.
      above: for the stem and every depthwise layer the last rows of its input, codes
        `[kernel - 1, width, channels]`.
      sums: of the head's codes `[rows, channels]`, one row for each of the last rows of its map.
    """

    before: np.ndarray
    above: tuple[np.ndarray, ...]
    sums: np.ndarray


def hop(network: Network) -> int:
    """Samples from one decision to the next."""
    return network.decide_every * network.front_end.stride


def _advance(network):
    """Samples from one batch of frames to the next."""
    return FRAMES_AT_ONCE * network.front_end.stride


def _needed(network):
    """Samples of a batch of frames."""
    front_end = network.front_end
    return front_end.kernel + (FRAMES_AT_ONCE - 1) * front_end.stride


def _first(network):
    """Batches of frames until the first decision."""
    return -(-network.frames // FRAMES_AT_ONCE)


def _before(network):
    """Frames of the first batch that lie before the first sample."""
    return _first(network) * FRAMES_AT_ONCE - network.frames


def init(network: Network) -> State:
    """The state before the first sample; for `step` and for what `jitted_step` makes."""
    # the first batch begins with frames before the first sample: they never are in a window
    before = _before(network)
    if network.causal:
        seen = _no_rows(network, before)
    else:
        seen = np.zeros((network.frames, network.front_end.filters), np.int32)
    return State(
        codes=np.zeros(_needed(network) - 1, np.int32),
        have=np.int32(before * network.front_end.stride),
        seen=seen,
        due=np.int32(_first(network)),
    )


def _no_rows(network, before):
    height, width, above = network.frames, network.front_end.filters, []
    for layer in (network.stem, *(block.depthwise for block in network.blocks)):
        channels = 1 if layer is network.stem else layer.weights.shape[-1]
        above.append(np.zeros((layer.weights.shape[0] - 1, width, channels), np.int32))
        height, width = (-(-n // s) for n, s in zip((height, width), layer.stride, strict=True))
    sums = np.zeros((height, network.head.weights.shape[-1]), np.int32)
    return Rows(np.int32(before), tuple(above), sums)


def _more_rows(network: Network, state: Rows, image, xp=np):
    """Takes in codes `[frames, filters]` of the next frames, a multiple of `FRAMES_AT_ONCE`.

    Returns:
      The next state, and the sums that are new in it, `[rows, channels]`.
    """
    # strides divide FRAMES_AT_ONCE: a batch always begins in the same place between two rows
    phase = -_before(network)
    first, kept = -state.before, []

    def rows_of(layer, x):
        """Sums of what rows `x` of a layer's input, number `first` on, bring of its output."""
        nonlocal first, phase
        stride, height = layer.stride[0], layer.weights.shape[0]
        padding = xp.arange(len(x)) + first < 0
        x = xp.where(padding[:, None, None], 0, x)
        whole = xp.concatenate([state.above[len(kept)], x])
        kept.append(whole[len(whole) - height + 1 :].astype(np.int32))
        skipped = -phase % stride
        first, phase = -(-first // stride), -(-phase // stride)
        return execute.convolve(layer, whole[None, skipped:], xp=xp)

    x = image.astype(np.int64)[..., None]
    x = execute.rescale(network.stem, rows_of(network.stem, x), xp=xp)
    for block in network.blocks:
        y, deep = x, block.depthwise
        if block.expand is not None:
            y = execute.rescale(block.expand, execute.convolve(block.expand, y), xp=xp)
        y = execute.rescale(deep, rows_of(deep, y[0]), xp=xp)
        x = execute.rescale(block.project, execute.convolve(block.project, y), x, xp)
    codes = execute.rescale(network.head, execute.convolve(network.head, x), xp=xp)[0]
    padding = xp.arange(len(codes)) + first < 0
    new = xp.where(padding[:, None], 0, codes.sum(axis=1)).astype(np.int32)
    sums = xp.concatenate([state.sums, new])[len(new) :]
    before = xp.maximum(state.before - len(image), 0).astype(np.int32)
    return Rows(before, tuple(kept), sums), new


def _see(network, seen, rows, xp=np):
    """What is kept when codes `[FRAMES_AT_ONCE, filters]` of new frames have come."""
    if network.causal:
        return _more_rows(network, seen, rows, xp)[0]
    return xp.concatenate([seen[FRAMES_AT_ONCE:], rows]).astype(np.int32)


def _check(network, samples):
    if samples.dtype != np.int16 or samples.ndim != 1:
        raise ValueError(f'samples must be int16 [samples], got {samples.dtype} {samples.shape}')
    if _needed(network) <= _advance(network):
        raise ValueError('frontend: its stride is longer than its kernel; streams need all samples')


def step(network: Network, state: State, samples: np.ndarray) -> tuple[State, np.ndarray]:
    """Takes in some samples, in NumPy.

    Args:
      network: that listens.
      state: from `init` or the last step; it is not changed.
      samples: int16 `[samples]`, any number.

    Returns:
      The next state, and int32 logits `[decisions, classes]` of the decisions that these samples
      brought, in order; often none.

    Raises:
      ValueError: samples of another type or shape.
    """
    _check(network, samples)
    front_end = network.front_end
    codes = execute.quantize_samples(front_end, samples)
    codes = np.concatenate([state.codes[: state.have], codes])
    seen, due, logits = state.seen, int(state.due), []
    while len(codes) >= _needed(network):
        frames = np.lib.stride_tricks.sliding_window_view(
            codes[: _needed(network)], front_end.kernel
        )[:: front_end.stride]
        seen = _see(network, seen, execute.image_of_frames(front_end, frames))
        codes = codes[_advance(network) :]
        due -= 1
        if due == 0:
            due = network.decide_every // FRAMES_AT_ONCE
            if network.causal:
                logits.append(execute.classify(network, seen.sums.sum(axis=0, dtype=np.int64)))
            else:
                logits.append(execute.logits_of_image(network, seen[None])[0])
    kept = np.zeros_like(state.codes)
    kept[: len(codes)] = codes
    decided = np.array(logits, np.int32).reshape(-1, len(network.labels))
    return State(kept, np.int32(len(codes)), seen, np.int32(due)), decided


def jitted_step(network: Network) -> Callable:
    """The same numbers by JAX.

    Returns:
      `step(state, int16 [samples]) -> (state, logits [most, classes], decided [most])`: as many
      places for logits as such a chunk can bring decisions, and which of them it did bring. It is
      a pure function, compiled anew for each length of chunk.

    Raises:
      ValueError: a layer's sums may be larger than float32 holds exactly; names it.
    """
    network.check_float32('JAX')
    needed, advance = _needed(network), _advance(network)
    every = network.decide_every // FRAMES_AT_ONCE
    front_end, classes = network.front_end, len(network.labels)

    def decision(seen):
        if network.causal:
            return execute.classify(network, seen.sums.sum(axis=0, dtype=jnp.int64))
        return execute.jax_logits(network, seen[None])[0]

    @jax.jit
    def run(state, samples):
        codes = execute.quantize_samples(front_end, samples, jnp).astype(jnp.int32)
        room = state.codes.shape[0]
        codes = jax.lax.dynamic_update_slice(
            jnp.concatenate([state.codes, jnp.zeros_like(codes)]), codes, (state.have,)
        )
        have = state.have + samples.shape[0]

        def batch(carry, start):
            seen, due = carry
            part = jax.lax.dynamic_slice(codes, (start,), (needed,))
            seen = _see(network, seen, execute.jax_image(front_end, part[None])[0], jnp)
            decided = due == 1
            logits = jax.lax.cond(
                decided, lambda: decision(seen), lambda: jnp.zeros(classes, jnp.int32)
            )
            return (seen, jnp.where(decided, every, due - 1)), (logits, decided)

        def maybe(carry, start):
            nothing = (jnp.zeros(classes, jnp.int32), jnp.array(False))
            return jax.lax.cond(
                have >= start + needed, batch, lambda carry, _: (carry, nothing), carry, start
            )

        most = (room + samples.shape[0] - needed) // advance + 1
        starts = advance * jnp.arange(most, dtype=jnp.int32)
        carry = (state.seen, state.due)
        (seen, due), (logits, decided) = jax.lax.scan(maybe, carry, starts)
        used = advance * jnp.sum(have >= starts + needed, dtype=jnp.int32)
        kept = jax.lax.dynamic_slice(jnp.pad(codes, (0, room)), (used,), (room,))
        have = (have - used).astype(jnp.int32)
        # what lies behind `have` is zero, as in NumPy: equal states are equal to the bit
        kept = jnp.where(jnp.arange(room) < have, kept, 0)
        return State(kept, have, seen, due.astype(jnp.int32)), logits, decided

    def step_(state, samples):
        _check(network, samples)
        with jax.enable_x64(True):
            return run(state, samples)

    return step_


def logits(network: Network, audio: np.ndarray, batch: int = 64) -> np.ndarray:
    """All decisions of a recording at once: what `step` gives for it, int32 `[windows, classes]`.

    Each frame is computed once; the network runs on `batch` windows at a time.

    Raises:
      ValueError: `audio` is not int16 `[samples]`, or shorter than one window's frames; or a
        layer's sums may be larger than float32 holds exactly.
    """
    _check(network, audio)
    network.check_float32('JAX')
    front_end = network.front_end
    frames = (len(audio) - front_end.kernel) // front_end.stride + 1
    windows = (frames - network.frames) // network.decide_every + 1
    if windows < 1:
        raise ValueError(f'{len(audio)} samples are less than one window of {network.samples}')
    if network.causal:
        return _causal_logits(network, audio, windows)
    span = (batch - 1) * hop(network) + (network.frames - 1) * front_end.stride + front_end.kernel

    @jax.jit
    def run(part):
        codes = execute.quantize_samples(front_end, part, jnp)
        image = execute.jax_image(front_end, codes[None])[0]
        rows = network.decide_every * np.arange(batch)[:, None] + np.arange(network.frames)[None]
        return execute.jax_logits(network, image[rows])

    padded = np.pad(audio, (0, span))
    parts = []
    with jax.enable_x64(True):
        for first in range(0, windows, batch):
            at = first * hop(network)
            parts.append(np.asarray(run(padded[at : at + span])))
    return np.concatenate(parts)[:windows]


def _causal_logits(network, audio, windows, frames: int = 512):
    front_end, state = network.front_end, init(network).seen
    before = _before(network) * front_end.stride
    span = (frames - 1) * front_end.stride + front_end.kernel

    @jax.jit
    def run(state, part):
        codes = execute.quantize_samples(front_end, part, jnp)
        return _more_rows(network, state, execute.jax_image(front_end, codes[None])[0], jnp)

    padded, parts = np.pad(audio, (before, span)), []
    with jax.enable_x64(True):
        for at in range(0, before + len(audio), frames * front_end.stride):
            state, new = run(state, padded[at : at + span])
            parts.append(np.asarray(new, np.int64))
    height, sums = len(state.sums), np.concatenate(parts)
    a_batch = len(parts[0]) * FRAMES_AT_ONCE // frames  # rows
    sums = sums[_first(network) * a_batch - height :]
    total = np.concatenate([np.zeros_like(sums[:1]), np.cumsum(sums, axis=0)])
    starts = network.decide_every // FRAMES_AT_ONCE * a_batch * np.arange(windows)
    return execute.classify(network, total[starts + height] - total[starts])
