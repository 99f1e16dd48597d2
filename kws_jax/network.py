"""One network without choices left: front end, stem, chosen blocks, head."""

import jax
import jax.numpy as jnp

from kws_jax.frontends import FrontEnd
from kws_jax.layers.basic import (
    batch_norm,
    batch_norm_init,
    he_normal,
    pointwise_batch_norm,
    relu6,
    small_conv,
)
from kws_jax.layers.mbconv import mbconv, mbconv_init, no_quant
from kws_jax.space import Architecture, SearchSpace


def init_ends(key: jax.Array, front_end: FrontEnd, space: SearchSpace) -> tuple[dict, dict]:
    """Weights and averages of what every network of a space shares: front end, stem and head.

    Raises:
      ValueError: the front end makes another image than the space expects.
    """
    if tuple(front_end.image_shape) != tuple(space.image_shape):
        raise ValueError(
            f'the front end {front_end.name} makes images of {front_end.image_shape}, the space '
            f'expects {space.image_shape}; build the space with the image_shape of the front end'
        )
    keys = jax.random.split(key, 4)
    stem, head, last = space.stem, space.head_channels, space.stages[-1].channels
    stem_bn, stem_state = batch_norm_init(stem.channels)
    head_bn, head_state = batch_norm_init(head)
    _, image_state = batch_norm_init(space.image_shape[1], learned=False)
    stem_shape = (*stem.kernel, 1, stem.channels)
    stem_fan = stem.kernel[0] * stem.kernel[1] * stem.channels
    params = {
        'frontend': front_end.init(keys[0]),
        'stem': {'w': he_normal(keys[1], stem_shape, stem_fan)} | stem_bn,
        'head': {'w': he_normal(keys[2], (last, head), head)} | head_bn,
        'classifier': {
            'w': jax.random.normal(keys[3], (head, space.classes)) / jnp.sqrt(head),
            'b': jnp.zeros(space.classes),
        },
    }
    return params, {'image': image_state, 'stem': stem_state, 'head': head_state}


def init(key: jax.Array, front_end: FrontEnd, architecture: Architecture) -> tuple[dict, dict]:
    """Weights and batch-norm averages of a network.

    Returns:
      `params`: `{'frontend', 'stem', '<stage>.<layer>', ..., 'head', 'classifier'}`; identities
      have no entry. `state`: the averages, alike, with `image`, without front end and classifier.

    Raises:
      ValueError: the front end makes another image than the space expects.

    >>> from kws_jax import frontends
    >>> from kws_jax.space import table1_space
    >>> front_end = frontends.make('sinc', filters=60)
    >>> choices = ['e1k3', 'identity', 'e2k5', 'e1k3', 'identity', 'identity']
    >>> architecture = table1_space().architecture(choices)
    >>> params, state = init(jax.random.key(0), front_end, architecture)
    >>> ' '.join(params)
    'frontend stem head classifier iii.0 iii.2 iv.0'
    """
    space = architecture.space
    params, state = init_ends(jax.random.fold_in(key, 0), front_end, space)
    for i, (layer, choice) in enumerate(zip(space.layers, architecture.choices, strict=True)):
        if not choice.is_identity:
            k = jax.random.fold_in(key, i + 1)
            params[layer.name], state[layer.name] = mbconv_init(k, layer, choice)
    return params, state


def apply_stem(
    params, state, audio, *, front_end, space, train, quant=no_quant, transform_image=None
):
    """Waveform to the first feature map.

    The image is normalized per filter by averages without learned values, which an export folds
    into the front end; not where `front_end.normalize` is False.

    Args:
      params, state: of the whole network.
      audio: `[batch, samples]` in [-1, 1).
      front_end: makes the image `[batch, frames, filters, 1]`.
      space: gives the stem's stride.
      train: batch statistics or running averages.
      quant: `quant(name, kind, value)`.
      transform_image: optional function on the normalized image (SpecAugment).

    Returns:
      `[batch, h, w, channels]` and the new averages `{'image', 'stem'}`.
    """
    new = {}
    image = front_end.apply(
        params['frontend'],
        audio,
        quantize_weight=lambda taps: quant('frontend', 'weight', taps),
        quantize_input=lambda samples: quant('input', 'activation', samples),
    )
    normal, new['image'] = image[..., 0], state['image']
    if front_end.normalize:
        normal, new['image'] = batch_norm({}, state['image'], normal, train=train)
    if transform_image is not None:
        normal = transform_image(normal[..., None])[..., 0]
    y = quant('frontend', 'activation', normal)[..., None]
    w = quant('stem', 'weight', params['stem']['w'])
    y = small_conv(y, w, stride=space.stem.stride, causal=space.causal)
    bn = {'scale': params['stem']['scale'], 'bias': params['stem']['bias']}
    y, new['stem'] = batch_norm(bn, state['stem'], y, train=train)
    return quant('stem', 'activation', relu6(y)), new


def apply_head(params, state, y, *, train, quant=no_quant):
    """Last feature map `[batch, h, w, channels]` to logits `[batch, classes]`, and new averages."""
    y, new = _head_map(params, state, y, train=train, quant=quant)
    return classify(params, y.mean(axis=(1, 2)), quant=quant), new


def _head_map(params, state, y, *, train, quant):
    w = quant('head', 'weight', params['head']['w'])
    bn = {'scale': params['head']['scale'], 'bias': params['head']['bias']}
    y, head_state = pointwise_batch_norm(bn, state['head'], y, w, train=train)
    return quant('head', 'activation', relu6(y)), {'head': head_state}


def classify(params, pooled, *, quant=no_quant):
    """What the head says on average, `[batch, channels]`, to logits `[batch, classes]`."""
    w = quant('classifier', 'weight', params['classifier']['w'])
    return pooled @ w + params['classifier']['b'][None, :]


def apply(
    params,
    state,
    audio: jax.Array,
    *,
    front_end: FrontEnd,
    architecture: Architecture,
    train: bool = False,
    quant=no_quant,
    transform_image=None,
) -> tuple[jax.Array, dict]:
    """Runs one network.

    Args:
      params, state: as `init` makes them.
      audio: float32 `[batch, samples]` in [-1, 1), 16 kHz.
      front_end, architecture: what the network is made of (static).
      train: batch statistics, and updated averages returned; else running averages.
      quant: `quant(name, kind, value)` rounds weights and activations; names are those of
        `costs.weight_sites` and `costs.activation_sites`.
      transform_image: optional function on the normalized image (SpecAugment).

    Returns:
      Logits `[batch, classes]` and the state to use next.
    """
    y, new = apply_body(
        params,
        state,
        audio,
        front_end=front_end,
        architecture=architecture,
        train=train,
        quant=quant,
        transform_image=transform_image,
    )
    return classify(params, y.mean(axis=(1, 2)), quant=quant), new


def apply_body(
    params,
    state,
    audio: jax.Array,
    *,
    front_end: FrontEnd,
    architecture: Architecture,
    train: bool = False,
    quant=no_quant,
    transform_image=None,
) -> tuple[jax.Array, dict]:
    """What is pooled: the head's map `[batch, h, w, channels]`, and new averages.

    Arguments are those of `apply`. With a front end of taps audio may be of any length; in a causal
    network rows of the map do not depend on what comes after them.
    """
    space = architecture.space
    y, new = apply_stem(
        params,
        state,
        audio,
        front_end=front_end,
        space=space,
        train=train,
        quant=quant,
        transform_image=transform_image,
    )
    for layer, choice in zip(space.layers, architecture.choices, strict=True):
        if not choice.is_identity:
            y, new[layer.name] = mbconv(
                params[layer.name], state[layer.name], y, layer=layer, train=train, quant=quant
            )
    y, head_state = _head_map(params, state, y, train=train, quant=quant)
    return y, new | head_state
