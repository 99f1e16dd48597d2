"""Integer networks on a stream: `step(state, samples) -> (state, ...)`, frames computed once.

A frame of the front end is computed when its last sample arrives, and stays in the image until it
has left the window; the network behind runs every `decide_every` frames. Window `i` begins at
sample `i * hop`, and its logits are those of `execute.run` on these samples, bit for bit, in
whatever chunks they came.
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
      image: codes `[frames, filters]` of the last frames, the oldest first.
      due: batches of `FRAMES_AT_ONCE` frames until the next decision.
    """

    codes: np.ndarray
    have: np.ndarray
    image: np.ndarray
    due: np.ndarray


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


def init(network: Network) -> State:
    """The state before the first sample; for `step` and for what `jitted_step` makes."""
    # the first batch begins with frames before the first sample: they never are in a window
    before = _first(network) * FRAMES_AT_ONCE - network.frames
    return State(
        codes=np.zeros(_needed(network) - 1, np.int32),
        have=np.int32(before * network.front_end.stride),
        image=np.zeros((network.frames, network.front_end.filters), np.int32),
        due=np.int32(_first(network)),
    )


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
    image, due, logits = state.image, int(state.due), []
    while len(codes) >= _needed(network):
        frames = np.lib.stride_tricks.sliding_window_view(
            codes[: _needed(network)], front_end.kernel
        )[:: front_end.stride]
        rows = execute.image_of_frames(front_end, frames)
        image = np.concatenate([image[FRAMES_AT_ONCE:], rows])
        codes = codes[_advance(network) :]
        due -= 1
        if due == 0:
            due = network.decide_every // FRAMES_AT_ONCE
            logits.append(execute.logits_of_image(network, image[None])[0])
    kept = np.zeros_like(state.codes)
    kept[: len(codes)] = codes
    decided = np.array(logits, np.int32).reshape(-1, len(network.labels))
    next_state = State(kept, np.int32(len(codes)), image.astype(np.int32), np.int32(due))
    return next_state, decided


def jitted_step(network: Network) -> Callable:
    """The same numbers by JAX.

    Returns:
      `step(state, int16 [samples]) -> (state, logits [most, classes], decided [most])`: as many
      places for logits as such a chunk can bring decisions, and which of them it did bring. It is
      a pure function, compiled anew for each length of chunk.
    """
    needed, advance = _needed(network), _advance(network)
    every = network.decide_every // FRAMES_AT_ONCE
    front_end, classes = network.front_end, len(network.labels)

    @jax.jit
    def run(state, samples):
        codes = execute.quantize_samples(front_end, samples, jnp).astype(jnp.int32)
        room = state.codes.shape[0]
        codes = jax.lax.dynamic_update_slice(
            jnp.concatenate([state.codes, jnp.zeros_like(codes)]), codes, (state.have,)
        )
        have = state.have + samples.shape[0]

        def batch(carry, start):
            image, due = carry
            part = jax.lax.dynamic_slice(codes, (start,), (needed,))
            rows = execute.jax_image(front_end, part[None])[0].astype(jnp.int32)
            image = jnp.concatenate([image[FRAMES_AT_ONCE:], rows])
            decided = due == 1
            logits = jax.lax.cond(
                decided,
                lambda: execute.jax_logits(network, image[None])[0],
                lambda: jnp.zeros(classes, jnp.int32),
            )
            return (image, jnp.where(decided, every, due - 1)), (logits, decided)

        def maybe(carry, start):
            nothing = (jnp.zeros(classes, jnp.int32), jnp.array(False))
            return jax.lax.cond(
                have >= start + needed, batch, lambda carry, _: (carry, nothing), carry, start
            )

        most = (room + samples.shape[0] - needed) // advance + 1
        starts = advance * jnp.arange(most, dtype=jnp.int32)
        carry = (state.image, state.due)
        (image, due), (logits, decided) = jax.lax.scan(maybe, carry, starts)
        used = advance * jnp.sum(have >= starts + needed, dtype=jnp.int32)
        kept = jax.lax.dynamic_slice(jnp.pad(codes, (0, room)), (used,), (room,))
        have = (have - used).astype(jnp.int32)
        # what lies behind `have` is zero, as in NumPy: equal states are equal to the bit
        kept = jnp.where(jnp.arange(room) < have, kept, 0)
        return State(kept, have, image, due.astype(jnp.int32)), logits, decided

    def step_(state, samples):
        _check(network, samples)
        with jax.enable_x64(True):
            return run(state, samples)

    return step_


def logits(network: Network, audio: np.ndarray, batch: int = 64) -> np.ndarray:
    """All decisions of a recording at once: what `step` gives for it, int32 `[windows, classes]`.

    Each frame is computed once; the network runs on `batch` windows at a time.

    Raises:
      ValueError: `audio` is not int16 `[samples]`, or shorter than one window's frames.
    """
    _check(network, audio)
    front_end = network.front_end
    frames = (len(audio) - front_end.kernel) // front_end.stride + 1
    windows = (frames - network.frames) // network.decide_every + 1
    if windows < 1:
        raise ValueError(f'{len(audio)} samples are less than one window of {network.samples}')
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
