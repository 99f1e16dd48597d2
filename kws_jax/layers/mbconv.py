"""The inverted residual block: for one candidate, and padded so that the candidate is an input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.layers.basic import (
    batch_norm,
    batch_norm_init,
    fold_batch_norm,
    he_normal,
    pointwise_batch_norm,
    pointwise_conv,
    relu6,
)
from kws_jax.layers.depthwise import Clip, depthwise_conv, depthwise_conv_dynamic
from kws_jax.space import Candidate, Layer


def no_quant(name: str, kind: str, x: jax.Array) -> jax.Array:
    """The quantizer of a float network: returns `x`, whatever its shape."""
    del name, kind
    return x


def mbconv_init(key: jax.Array, layer: Layer, choice: Candidate) -> tuple[dict, dict]:
    """Weights `{part: {'w', 'scale', 'bias'}}` and averages `{part: {'mean', 'var'}}`.

    Parts are `expand` `[in, width]` (absent at expansion 1), `depthwise` `[k, k, width]` and
    `project` `[width, out]`; He-normal by fan-out.
    """
    keys = dict(zip(_PARTS, jax.random.split(key, 3), strict=True))
    params, state = {}, {}
    for part, (shape, fan_out) in _shapes(layer, choice).items():
        bn, state[part] = batch_norm_init(shape[-1])
        params[part] = {'w': he_normal(keys[part], shape, fan_out)} | bn
    return params, state


_PARTS = ('expand', 'depthwise', 'project')


def _shapes(layer, choice):
    """Shape and fan-out of the weights of every part."""
    width, k = layer.in_channels * choice.expansion, choice.kernel
    expand = {'expand': ((layer.in_channels, width), width)} if choice.expansion > 1 else {}
    return expand | {
        'depthwise': ((k, k, width), k * k),
        'project': ((width, layer.channels), layer.channels),
    }


def padded_mbconv_init(
    key: jax.Array, layer: Layer, choices: tuple[Candidate, ...]
) -> tuple[dict, dict]:
    """Weights and averages of several candidates, padded to the largest and stacked.

    All candidates start as cuts of one largest block: the first channels, the innermost taps. So
    they speak to the layers around them in one basis from the start, where candidates drawn one by
    one would first have to agree on it; they are trained apart from there on.

    Returns:
      Weights and averages as `mbconv_init`, each leaf `[choices, ...]`, padded as `pad_mbconv`
      does; each candidate He-normal by its own fan-out.
    """
    width = layer.in_channels * max(c.expansion for c in choices)
    kernel = max(c.kernel for c in choices)
    padded = []
    for choice in choices:
        params, state = {}, {}
        for part, (shape, fan_out) in _shapes(layer, choice).items():
            ones, zeros = np.ones(shape[-1], np.float32), np.zeros(shape[-1], np.float32)
            spread = np.full(shape, np.sqrt(2.0 / fan_out), np.float32)
            params[part] = {'w': spread, 'scale': ones, 'bias': zeros}
            state[part] = {'mean': zeros, 'var': ones}
        padded.append(
            pad_mbconv(params, state, layer=layer, choice=choice, width=width, kernel=kernel)
        )
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    for part, part_key in zip(_PARTS, jax.random.split(key, len(_PARTS)), strict=True):
        spread = params[part]['w']
        params[part]['w'] = spread * jax.random.normal(part_key, (1, *spread.shape[1:]))
    return params, state


def mbconv(params, state, x, *, layer: Layer, train: bool, quant=no_quant):
    """1x1 expand, depthwise k x k, 1x1 project, each with batch norm (Sandler et al. 2018).

    Args:
      params, state: as `mbconv_init` makes them.
      x: `[batch, h, w, in]`.
      layer: gives the stride, whether a residual is added, and the names passed to `quant`.
      train: batch statistics or running averages; may be traced.
      quant: `quant(name, kind, value)` rounds weights (kind 'weight') and activations.

    Returns:
      `[batch, h', w', out]` and the new state.
    """
    new, y, clip = {}, x, None
    if 'expand' in params:
        w = quant(f'{layer.name}.expand', 'weight', params['expand']['w'])
        folded, offset, new['expand'] = fold_batch_norm(
            _bn(params['expand']), state['expand'], y, w, train=train
        )
        y = pointwise_conv(y, folded)
        if quant is no_quant:
            clip = Clip(offset, 0.0, 6.0)  # ReLU6 while the depthwise convolution reads
        else:
            y = relu6(y + offset[None, None, None, :])
            y = quant(f'{layer.name}.expand', 'activation', y)
    w = quant(f'{layer.name}.depthwise', 'weight', params['depthwise']['w'])
    y = depthwise_conv(y, w, stride=layer.stride, clip=clip, causal=layer.causal)
    y, new['depthwise'] = batch_norm(_bn(params['depthwise']), state['depthwise'], y, train=train)
    y = quant(f'{layer.name}.depthwise', 'activation', relu6(y))
    w = quant(f'{layer.name}.project', 'weight', params['project']['w'])
    bn = _bn(params['project'])
    y, new['project'] = pointwise_batch_norm(bn, state['project'], y, w, train=train)
    y = y + x if layer.keeps_shape else y
    return quant(f'{layer.name}.project', 'activation', y), new


def _bn(params):
    return {'scale': params['scale'], 'bias': params['bias']}


def pad_mbconv(params, state, *, layer: Layer, choice: Candidate, width: int, kernel: int):
    """Pads one candidate's weights with zeros to `width` channels and a `kernel` x `kernel` tap.

    `unpad_mbconv` is the inverse. Padded channels have weights, scale and offset zero, so they
    carry exact zeros and receive exactly zero gradients.
    """
    more, edge = width - layer.in_channels * choice.expansion, (kernel - choice.kernel) // 2

    xp = np if isinstance(params['project']['w'], np.ndarray) else jnp

    def channels(tree):
        return {n: xp.pad(v, (0, more)) for n, v in tree.items() if n != 'w'}

    wide, full = ((0, 0), (0, more)), ((edge, edge), (edge, edge), (0, more))
    if 'expand' in params:
        expand = {'w': xp.pad(params['expand']['w'], wide)} | channels(params['expand'])
        expand_state = channels(state['expand'])
    else:
        zeros, like = xp.zeros(width, np.float32), params['project']['w'].dtype
        none = xp.zeros((layer.in_channels, width), like)
        expand = {'w': none, 'scale': zeros, 'bias': zeros}
        expand_state = {'mean': zeros, 'var': zeros}
    depthwise = {'w': xp.pad(params['depthwise']['w'], full)} | channels(params['depthwise'])
    project = params['project'] | {'w': xp.pad(params['project']['w'], ((0, more), (0, 0)))}
    padded = {'expand': expand, 'depthwise': depthwise, 'project': project}
    averages = {
        'expand': expand_state,
        'depthwise': channels(state['depthwise']),
        'project': state['project'],
    }
    return padded, averages


def unpad_mbconv(params, state, *, layer: Layer, choice: Candidate):
    """Cuts one candidate out of padded weights and averages; the inverse of `pad_mbconv`."""
    width = layer.in_channels * choice.expansion
    edge = (params['depthwise']['w'].shape[0] - choice.kernel) // 2
    inside = slice(edge, edge + choice.kernel)

    def channels(tree):
        return {n: v[:width] for n, v in tree.items() if n != 'w'}

    taps = params['depthwise']['w'][inside, inside, :width]
    cut = {
        'expand': {'w': params['expand']['w'][:, :width]} | channels(params['expand']),
        'depthwise': {'w': taps} | channels(params['depthwise']),
        'project': params['project'] | {'w': params['project']['w'][:width]},
    }
    averages = {
        'expand': channels(state['expand']),
        'depthwise': channels(state['depthwise']),
        'project': state['project'],
    }
    if choice.expansion == 1:
        del cut['expand'], averages['expand']
    return cut, averages


def padded_mbconv(params, state, x, *, layer: Layer, expansion, kernel, train: bool):
    """`mbconv` on padded weights, with the candidate as an input: nothing depends on its shape.

    Args:
      params, state: one candidate, padded by `pad_mbconv`.
      x: `[batch, h, w, in]`.
      layer: stride and residual.
      expansion, kernel: int32 scalars, may be traced.
      train: batch statistics or running averages.

    Returns:
      `[batch, h', w', out]` and the new (padded) state.
    """
    return _padded_mbconv(
        params, state, x, expansion, kernel, layer.stride, layer.keeps_shape, layer.causal, train
    )


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))  # layers of one shape are traced once
def _padded_mbconv(params, state, x, expansion, kernel, stride, residual, causal, train):
    new = {}
    expand, project = params['expand'], params['project']
    w, offset, expand_state = fold_batch_norm(
        _bn(expand), state['expand'], x, expand['w'], train=train
    )
    # without an expansion the first channels are the input as it is, and no average moves
    plain = expansion == 1
    w = jnp.where(plain, jnp.eye(*w.shape), w)
    clip = Clip(
        jnp.where(plain, 0.0, offset),
        jnp.where(plain, -jnp.inf, 0.0),
        jnp.where(plain, jnp.inf, 6.0),
    )
    new['expand'] = jax.tree.map(
        lambda old, got: jnp.where(plain, old, got), state['expand'], expand_state
    )
    y = depthwise_conv_dynamic(
        pointwise_conv(x, w),
        params['depthwise']['w'],
        kernel,
        expansion * x.shape[-1],
        stride=stride,
        clip=clip,
        causal=causal,
    )
    y, new['depthwise'] = batch_norm(_bn(params['depthwise']), state['depthwise'], y, train=train)
    y, new['project'] = pointwise_batch_norm(
        _bn(project), state['project'], relu6(y), project['w'], train=train
    )
    return (y + x if residual else y), new
