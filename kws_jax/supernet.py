"""All candidates at once: one set of weights per candidate, and the path as an input.

The weights of a layer's candidates are padded with zeros to the largest expansion and kernel and
stacked, so that the path's slices can be gathered by index: nothing recompiles when the path
changes. A training step works on the gathered slices and scatters them back, so what was not
sampled is not touched.

`path` is int32 `[layers]`, an index into each layer's choices; identity, where allowed, is last.
"""

import jax
import jax.numpy as jnp

from kws_jax import network
from kws_jax.frontends import FrontEnd
from kws_jax.layers.mbconv import padded_mbconv, padded_mbconv_init, unpad_mbconv
from kws_jax.space import Architecture, Layer, SearchSpace


def _blocks(layer: Layer):
    return tuple(choice for choice in layer.choices if not choice.is_identity)


def init(key: jax.Array, front_end: FrontEnd, space: SearchSpace) -> tuple[dict, dict]:
    """Weights and averages of all candidates.

    Returns:
      As `network.init`, each leaf of a searched layer padded and stacked to `[candidates, ...]`;
      identity has no weights.

    Raises:
      ValueError: the front end makes another image than the space expects.
    """
    params, state = network.init_ends(jax.random.fold_in(key, 0), front_end, space)
    for i, layer in enumerate(space.layers):
        params[layer.name], state[layer.name] = padded_mbconv_init(
            jax.random.fold_in(key, i + 1), layer, _blocks(layer)
        )
    return params, state


def select(space: SearchSpace, tree: dict, path: jax.Array) -> dict:
    """The path's slices of weights, averages or momenta: as `tree`, without the candidate axis.

    `path` is int32 `[layers]` and may be traced.

    For an identity the last candidate's slices stand in; they are neither used nor written back.
    """
    picked = dict(tree)
    for i, layer in enumerate(space.layers):
        picked[layer.name] = _pick(tree[layer.name], _index(path[i], layer))
    return picked


def _index(choice, layer):
    # unsigned: the many slices need no code for indices that count from the end
    return jnp.minimum(choice, len(_blocks(layer)) - 1).astype(jnp.uint32)


@jax.jit  # layers of one shape are traced once, here and below
def _pick(tree, index):
    pick = lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False)  # noqa: E731
    return jax.tree.map(pick, tree)


@jax.jit
def _put(tree, slices, index, chosen):
    """Writes slices at `index` where `chosen` is true or None."""

    def put(whole, part):
        if chosen is not None:
            old = jax.lax.dynamic_index_in_dim(whole, index, keepdims=False)
            part = jax.lax.select(chosen, part, old)
        return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)

    return jax.tree.map(put, tree, slices)


def scatter(space: SearchSpace, tree: dict, slices: dict, path: jax.Array) -> dict:
    """Writes the slices back; every other candidate, and an identity's stand-in, stays as it is."""
    written = dict(slices)
    for i, layer in enumerate(space.layers):
        count, index = len(_blocks(layer)), _index(path[i], layer)
        chosen = path[i] < count if count < len(layer.choices) else None
        written[layer.name] = _put(tree[layer.name], slices[layer.name], index, chosen)
    return written


def _block(params, state, x, *, layer, index, train):
    blocks = _blocks(layer)
    safe = jnp.minimum(index, len(blocks) - 1)
    expansion = jnp.array([c.expansion for c in blocks], jnp.int32)[safe]
    kernel = jnp.array([c.kernel for c in blocks], jnp.int32)[safe]
    y, new = padded_mbconv(
        params, state, x, layer=layer, expansion=expansion, kernel=kernel, train=train
    )
    if len(blocks) < len(layer.choices):
        y = jnp.where(index >= len(blocks), x, y)
    return y, new


def apply_slices(
    slices: dict,
    state: dict,
    audio: jax.Array,
    path: jax.Array,
    *,
    front_end: FrontEnd,
    space: SearchSpace,
    train: bool,
    nudges: list | None = None,
    transform_image=None,
) -> tuple[jax.Array, dict, list]:
    """Runs the path on its gathered slices.

    Args:
      slices, state: what `select` returned of weights and averages.
      audio: float32 `[batch, samples]`.
      path: int32 `[layers]`.
      front_end, space: static.
      train: batch statistics or averages.
      nudges: optional zeros, added to each layer's output; the gradient of a loss to them is its
        gradient to that output, which `gate_gradients` needs.
      transform_image: optional function on the normalized image.

    Returns:
      Logits `[batch, classes]`, new averages (slices), and each searched layer's input.
    """
    y, new = network.apply_stem(
        slices,
        state,
        audio,
        front_end=front_end,
        space=space,
        train=train,
        transform_image=transform_image,
    )
    inputs = []
    for i, layer in enumerate(space.layers):
        inputs.append(y)
        y, new[layer.name] = _block(
            slices[layer.name], state[layer.name], y, layer=layer, index=path[i], train=train
        )
        if nudges is not None:
            y = y + nudges[i]
    logits, head_state = network.apply_head(slices, state, y, train=train)
    return logits, new | head_state, inputs


def apply(
    params: dict,
    state: dict,
    audio: jax.Array,
    *,
    path: jax.Array,
    front_end: FrontEnd,
    space: SearchSpace,
    train: bool = False,
) -> tuple[jax.Array, dict]:
    """Runs one path of the whole supernet.

    Args:
      params, state: as `init` makes them.
      audio: float32 `[batch, samples]`.
      path: int32 `[layers]`; may be traced, so nothing recompiles when it changes.
      front_end, space: static.
      train: batch statistics or averages.

    Returns:
      Logits `[batch, classes]`, and the whole state with only the path's averages moved.
    """
    slices, averages = select(space, params, path), select(space, state, path)
    logits, new, _ = apply_slices(
        slices, averages, audio, path, front_end=front_end, space=space, train=train
    )
    return logits, (scatter(space, state, new, path) if train else state)


def layer_output_shape(layer: Layer, batch: int) -> tuple[int, int, int, int]:
    """Shape of a searched layer's output."""
    return (batch, *layer.image_shape, layer.channels)


def gate_gradients(
    params: dict, state: dict, inputs: list, output_gradients: list, *, space: SearchSpace
) -> list[jax.Array]:
    """The gradient to every candidate's gate: `<o_j(x), dL/d out>` (Cai et al. 2019, sect. 3.2).

    A layer's output is `sum_j g_j o_j(x)` with one-hot gates, so the gradient to g_j needs the
    output of candidate j on the layer's input, but no gradient through it. Candidates run one
    after the other with batch statistics; their averages do not move.

    Args:
      params, state: of the whole supernet.
      inputs: each layer's input on the sampled path.
      output_gradients: gradient of the loss to each layer's output.
      space: the search space.

    Returns:
      One float32 `[choices]` per layer.
    """
    gates = []
    for layer, x, gradient in zip(space.layers, inputs, output_gradients, strict=True):
        blocks = _blocks(layer)
        expansions = jnp.array([c.expansion for c in blocks], jnp.int32)
        kernels = jnp.array([c.kernel for c in blocks], jnp.int32)

        def one(candidate, layer=layer, x=x, gradient=gradient):
            weights, averages, expansion, kernel = candidate
            out, _ = padded_mbconv(
                weights, averages, x, layer=layer, expansion=expansion, kernel=kernel, train=True
            )
            return jnp.vdot(out, gradient)

        own = jax.lax.map(one, (params[layer.name], state[layer.name], expansions, kernels))
        if len(blocks) < len(layer.choices):
            own = jnp.append(own, jnp.vdot(x, gradient))
        gates.append(own)
    return gates


def derive(params: dict, state: dict, architecture: Architecture) -> tuple[dict, dict]:
    """The weights and averages of one architecture, cut out of the supernet's.

    Args:
      params, state: as `init` makes them.
      architecture: of the same space.

    Returns:
      What `network.init` would make, with the supernet's values.
    """
    space = architecture.space
    names = {layer.name for layer in space.layers}
    cut_params = {name: tree for name, tree in params.items() if name not in names}
    cut_state = {name: tree for name, tree in state.items() if name not in names}
    steps = zip(space.layers, architecture.choices, architecture.path, strict=True)
    for layer, choice, index in steps:
        if choice.is_identity:
            continue
        pick = lambda a, index=index: a[index]  # noqa: E731
        cut_params[layer.name], cut_state[layer.name] = unpad_mbconv(
            jax.tree.map(pick, params[layer.name]),
            jax.tree.map(pick, state[layer.name]),
            layer=layer,
            choice=choice,
        )
    return cut_params, cut_state
