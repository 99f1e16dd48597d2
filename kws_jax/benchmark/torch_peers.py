"""The same networks in PyTorch, written as PyTorch users write them: what the benchmark races.

Needs PyTorch (`pip install .[bench]`); nothing but the benchmark and its tests imports this module.
Images are NCHW. Weights are copied from ours, so that outputs and gradients can be compared.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kws_jax.layers.basic import BN_EPSILON, BN_MOMENTUM
from kws_jax.space import Architecture, Candidate, Layer, SearchSpace

LOG_GAIN = 1000.0


def _batch_norm(kind, channels, **options):
    return kind(channels, eps=BN_EPSILON, momentum=1 - BN_MOMENTUM, **options)


class MBConv(nn.Module):
    """1x1 expand (absent at expansion 1), depthwise, 1x1 project, each with batch norm."""

    def __init__(self, layer: Layer, choice: Candidate):
        """Makes the block of one candidate of a layer."""
        super().__init__()
        width, parts = layer.in_channels * choice.expansion, []
        if choice.expansion > 1:
            parts += [nn.Conv2d(layer.in_channels, width, 1, bias=False)]
            parts += [_batch_norm(nn.BatchNorm2d, width), nn.ReLU6(inplace=True)]
        k = choice.kernel
        depthwise = nn.Conv2d(
            width, width, k, layer.stride, padding=k // 2, groups=width, bias=False
        )
        parts += [depthwise, _batch_norm(nn.BatchNorm2d, width), nn.ReLU6(inplace=True)]
        parts += [nn.Conv2d(width, layer.channels, 1, bias=False)]
        parts += [_batch_norm(nn.BatchNorm2d, layer.channels)]
        self.parts, self.residual = nn.Sequential(*parts), layer.keeps_shape

    def forward(self, x):
        """`[batch, in, h, w]` to `[batch, out, h', w']`."""
        y = self.parts(x)
        return x + y if self.residual else y


class Network(nn.Module):
    """Conv1D front end with log compression, stem, blocks, head; `blocks` run in order."""

    def __init__(self, space: SearchSpace, blocks, *, kernel=400, stride=160):
        """Makes the ends of the networks of `space` around `blocks`."""
        super().__init__()
        filters, stem = space.image_shape[1], space.stem
        self.front = nn.Conv1d(1, filters, kernel, stride, bias=False)
        self.image_bn = _batch_norm(nn.BatchNorm1d, filters, affine=False)
        edges = tuple(k // 2 for k in stem.kernel)
        self.stem = nn.Conv2d(1, stem.channels, stem.kernel, stem.stride, edges, bias=False)
        self.stem_bn = _batch_norm(nn.BatchNorm2d, stem.channels)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(space.stages[-1].channels, space.head_channels, 1, bias=False)
        self.head_bn = _batch_norm(nn.BatchNorm2d, space.head_channels)
        self.classifier = nn.Linear(space.head_channels, space.classes)

    def forward(self, audio):
        """float32 `[batch, samples]` to logits `[batch, classes]`."""
        image = torch.log1p(LOG_GAIN * torch.abs(self.front(audio[:, None])))
        y = self.image_bn(image).transpose(1, 2)[:, None]
        y = functional.relu6(self.stem_bn(self.stem(y)), inplace=True)
        for block in self.blocks:
            y = block(y)
        y = functional.relu6(self.head_bn(self.head(y)), inplace=True)
        return self.classifier(y.mean(dim=(2, 3)))


def make_network(architecture: Architecture, params: dict, averages: dict) -> Network:
    """One network with our weights, as `network.init` makes them with a `conv` front end."""
    space, blocks = architecture.space, []
    for layer, choice in zip(space.layers, architecture.choices, strict=True):
        if not choice.is_identity:
            block = MBConv(layer, choice)
            _fill_block(block, params[layer.name], averages[layer.name])
            blocks.append(block)
    net = Network(space, blocks)
    _fill_ends(net, params, averages)
    return net


def sgd(net: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum 0.9; weights behind the front end decay, as ours do."""
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 and n != 'front.weight']
    rest = [p for n, p in net.named_parameters() if p.ndim <= 1 or n == 'front.weight']
    groups = [{'params': decayed, 'weight_decay': weight_decay}, {'params': rest}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def train_step(net, optimizer, audio, labels, *, label_smoothing=0.1, **options) -> torch.Tensor:
    """One step on int16 `audio` `[batch, samples]` and int64 `labels`; returns the loss."""
    net.train()
    logits = net(audio.float() / 32768.0, **options)
    loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


class MixedLayer(nn.Module):
    """All candidates of a layer as modules of their own; one runs, the others wait."""

    def __init__(self, layer: Layer):
        """Makes every candidate of `layer`."""
        super().__init__()
        self.candidates = nn.ModuleList(
            nn.Identity() if c.is_identity else MBConv(layer, c) for c in layer.choices
        )
        self.active, self.kept = 0, None

    def forward(self, x):
        """Runs the active candidate; keeps what the gates need where they are asked for."""
        y = self.candidates[self.active](x)
        if self.kept is not None:
            y.retain_grad()
            self.kept = (x.detach(), y)
        return y

    def gate_gradients(self) -> torch.Tensor:
        """`<o_j(x), dL/d out>` for every candidate j, after the backward pass."""
        x, y = self.kept
        with torch.no_grad():
            return torch.stack([torch.sum(c(x) * y.grad) for c in self.candidates])


class Supernet(Network):
    """ProxylessNAS in its usual form: modules per candidate, a sampled path, gate gradients."""

    def __init__(self, space: SearchSpace):
        """Makes all candidates of `space`."""
        super().__init__(space, [MixedLayer(layer) for layer in space.layers])
        shapes = [len(layer.choices) for layer in space.layers]
        self.logits = [torch.zeros(n, requires_grad=True) for n in shapes]

    def set_path(self, path, *, keep: bool = False):
        """Makes `path` active; `keep` has the layers remember what the gates need."""
        for mixed, index in zip(self.blocks, path, strict=True):
            mixed.active, mixed.kept = int(index), (() if keep else None)


def make_supernet(space: SearchSpace, params: dict, averages: dict) -> Supernet:
    """A supernet with our weights, as `supernet.init` makes them with a `conv` front end."""
    from kws_jax.layers.mbconv import unpad_mbconv

    net = Supernet(space)
    _fill_ends(net, params, averages)
    for layer, mixed in zip(space.layers, net.blocks, strict=True):
        for j, (choice, block) in enumerate(zip(layer.choices, mixed.candidates, strict=True)):
            if not choice.is_identity:
                own = [_pick(tree[layer.name], j) for tree in (params, averages)]
                _fill_block(block, *unpad_mbconv(*own, layer=layer, choice=choice))
    return net


def arch_step(net, optimizer, audio, labels, path, costs, *, target: float) -> torch.Tensor:
    """One update of the arch params on int16 validation `audio`; returns the loss.

    The gradients of the loss and of the log of the expected cost are added at equal norms.

    Args:
      net: `Supernet`.
      optimizer: of `net.logits`.
      audio, labels: a validation batch.
      path: the sampled one.
      costs: float tensor per layer, of every candidate.
      target: cost wanted, in the unit of `costs`.
    """
    net.train()
    net.set_path(path, keep=True)
    loss = functional.cross_entropy(net(audio.float() / 32768.0), labels)
    loss.backward()
    shares = [torch.softmax(row, dim=0) for row in net.logits]
    gates = [mixed.gate_gradients() for mixed in net.blocks]
    of_loss = torch.autograd.grad(shares, net.logits, gates, retain_graph=True)
    expected = sum(torch.sum(p * c) for p, c in zip(shares, costs, strict=True))
    of_cost = torch.autograd.grad(torch.log(expected), net.logits)
    norms = [torch.sqrt(sum(torch.sum(g * g) for g in gs)) + 1e-12 for gs in (of_loss, of_cost)]
    price = torch.clamp(20.0 * torch.log(expected.detach() / target), -2.0, 2.0)
    for row, a, b in zip(net.logits, of_loss, of_cost, strict=True):
        row.grad = a / norms[0] + price * b / norms[1]
    optimizer.step()
    net.zero_grad(set_to_none=True)
    return loss.detach()


def _pick(tree, j):
    return {k: _pick(v, j) if isinstance(v, dict) else np.asarray(v)[j] for k, v in tree.items()}


def _put(tensor, value):
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(value, np.float32)))


def _fill_bn(bn, params, averages):
    if params is not None:
        _put(bn.weight, params['scale'])
        _put(bn.bias, params['bias'])
    _put(bn.running_mean, averages['mean'])
    _put(bn.running_var, averages['var'])


def _fill_block(block, params, averages):
    parts = [part for part in block.parts if not isinstance(part, nn.ReLU6)]
    for conv, bn, name in zip(parts[::2], parts[1::2], params, strict=True):
        w = np.asarray(params[name]['w'])
        taps = w.transpose(2, 0, 1)[:, None] if w.ndim == 3 else w.T[:, :, None, None]
        _put(conv.weight, taps)
        _fill_bn(bn, params[name], averages[name])


def _fill_ends(net, params, averages):
    _put(net.front.weight, np.asarray(params['frontend']['taps']).T[:, None])
    _fill_bn(net.image_bn, None, averages['image'])
    _put(net.stem.weight, np.asarray(params['stem']['w']).transpose(3, 2, 0, 1))
    _fill_bn(net.stem_bn, params['stem'], averages['stem'])
    _put(net.head.weight, np.asarray(params['head']['w']).T[:, :, None, None])
    _fill_bn(net.head_bn, params['head'], averages['head'])
    _put(net.classifier.weight, np.asarray(params['classifier']['w']).T)
    _put(net.classifier.bias, params['classifier']['b'])
