"""The rows of the benchmark: each measures one thing that a search or a training does all day.

A row is a dict fit for JSON: `name`, `ours` and `peer` (medians in `unit`), `ratio` (median over
rounds of ours / peer, or None), `bar` (what must be reached: of `ratio` where there is a peer, of
`ours` elsewhere), `what`, and details of its own.
"""

import functools
import gc
import importlib.util
import io
import itertools
import pathlib
import tempfile
import time
import wave

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import costs, network
from kws_jax.benchmark import fresh
from kws_jax.benchmark.subjects import (
    BATCH,
    LR,
    WEIGHT_DECAY,
    Searched,
    Trained,
    architecture,
    clips,
    front_end,
    network_macs,
    space,
)
from kws_jax.benchmark.timing import interleaved, ratio
from kws_jax.data import cache as cache_lib
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.data.batches import training_source
from kws_jax.data.dataset import Dataset
from kws_jax.data.labels import LabelSet
from kws_jax.data.pools import Pools
from kws_jax.layers.depthwise import depthwise_conv
from kws_jax.space import Architecture
from kws_jax.training import evaluation
from kws_jax.training.evaluation import predict_all

LAYOUTS = ('contiguous_format', 'channels_last')
NO_PEER = 'PyTorch is not installed (pip install .[bench])'


def has_torch() -> bool:
    """Whether the peers can be measured."""
    return importlib.util.find_spec('torch') is not None


def row(name: str, what: str, *, ours, peer=None, unit='s', bar=None, **details) -> dict:
    """One row from seconds per round; `peer` None means that there is none."""
    entry = {'name': name, 'what': what, 'unit': unit, 'bar': bar}
    entry['ours'] = float(np.median(ours))
    entry['peer'] = None if peer is None else float(np.median(peer))
    entry['ratio'] = None if peer is None else ratio(np.asarray(ours), np.asarray(peer))
    return entry | details


def matrix_product(rounds: int = 9) -> float:
    """MACs per second of a float32 product of 2048 x 2048 matrices: about the machine's limit."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    run = jax.jit(jnp.dot)
    seconds = interleaved({'product': lambda: run(a, a)}, rounds=rounds)['product']
    return 2048**3 / float(np.median(seconds))


# ------------------------------------------------------------------------------------ depthwise


def depthwise_shapes() -> list[tuple]:
    """(height, width, channels, kernel, stride) of every depthwise convolution of the space."""
    searched, shapes = space(), set()
    before = tuple(-(-n // s) for n, s in zip(searched.image_shape, searched.stem.stride))
    for layer in searched.layers:
        for choice in layer.choices:
            if not choice.is_identity:
                width = layer.in_channels * choice.expansion
                shapes.add((*before, width, choice.kernel, layer.stride))
        before = layer.image_shape
    return sorted(shapes)


def depthwise(rounds: int = 5, shapes: list | None = None) -> dict:
    """Forward and both gradients at every shape, summed; the peer is grouped `conv2d`."""
    torch = _torch()
    ours, peers, ratios = [], [], {}
    for height, width, channels, kernel, stride in shapes or depthwise_shapes():
        draw = np.random.default_rng(0).standard_normal
        x = draw((BATCH, height, width, channels)).astype(np.float32)
        w = draw((kernel, kernel, channels)).astype(np.float32)
        out = (BATCH, -(-height // stride), -(-width // stride), channels)
        g = draw(out).astype(np.float32)

        @jax.jit
        def both(x, w, g, stride=stride):
            y, pull = jax.vjp(functools.partial(depthwise_conv, stride=stride), x, w)
            return y, *pull(g)

        a, b, c = (jnp.asarray(v) for v in (x, w, g))
        calls = {'ours': lambda both=both, a=a, b=b, c=c: both(a, b, c)}
        if torch:
            for layout in LAYOUTS:
                calls[layout] = _torch_depthwise(torch, x, w, g, stride, layout)
        seconds = interleaved(calls, rounds=rounds)
        ours.append(seconds.pop('ours'))
        if torch:
            peers.append(min(seconds.values(), key=np.median))
            ratios[f'{height}x{width}x{channels} k{kernel} s{stride}'] = ratio(ours[-1], peers[-1])
    result = row(
        'depthwise',
        f'depthwise convolution, forward and both gradients, {len(ours)} shapes, batch {BATCH}',
        ours=np.sum(ours, axis=0),
        peer=np.sum(peers, axis=0) if torch else None,
        bar=0.8,
        note=None if torch else NO_PEER,
    )
    if torch:
        values = np.array(list(ratios.values()))
        result |= {
            'ratio': float(np.exp(np.mean(np.log(values)))),  # geometric mean over shapes
            'worst_ratio': float(values.max()),
            'ratios': ratios,
        }
    return result


def _torch_depthwise(torch, x, w, g, stride, layout):
    layout = getattr(torch, layout)

    def nchw(value):
        return torch.from_numpy(value.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)

    x, g = nchw(x).requires_grad_(), nchw(g)
    w = torch.from_numpy(w.transpose(2, 0, 1)[:, None].copy()).requires_grad_()

    def run():
        y = torch.nn.functional.conv2d(
            x, w, stride=stride, padding=w.shape[-1] // 2, groups=w.shape[0]
        )
        return torch.autograd.grad(y, (x, w), g)[0].sum() * 0  # nothing for JAX to wait for

    return run


def _torch():
    if not has_torch():
        return None
    import torch

    return torch


# ---------------------------------------------------------------------------- one architecture


def train_step(rounds: int = 7) -> dict:
    """One training step: augmentation off, forward, backward, SGD with Nesterov momentum."""
    ours = Trained(architecture())
    calls, torch = {'ours': ours}, _torch()
    if torch:
        from kws_jax.benchmark import torch_peers

        audio, labels = (torch.from_numpy(a) for a in clips())
        for layout in LAYOUTS:
            net = torch_peers.make_network(architecture(), ours.params, ours.averages)
            net = net.to(memory_format=getattr(torch, layout))
            optimizer = torch_peers.sgd(net, lr=LR, weight_decay=WEIGHT_DECAY)
            calls[layout] = functools.partial(
                lambda net, opt: float(torch_peers.train_step(net, opt, audio, labels.long())),
                net,
                optimizer,
            )
    return _against_layouts(
        'train_step',
        f'one training step, 13.6M MACs, batch {BATCH}',
        interleaved(calls, rounds=rounds),
        macs=3 * BATCH * network_macs(architecture()),
    )


def eval_step(rounds: int = 11) -> dict:
    """Logits of one batch by running averages, in the parts that each side is fastest with."""
    of = architecture()
    params, averages = network.init(jax.random.key(0), front_end(), of)
    audio, _ = clips()

    @jax.jit
    def predict(params, averages, audio):
        audio = int16_to_float(audio)
        return network.apply(params, averages, audio, front_end=front_end(), architecture=of)[0]

    calls = {'ours': lambda: predict_all(lambda a: predict(params, averages, a), audio)}
    torch = _torch()
    if torch:
        from kws_jax.benchmark import torch_peers

        same = torch.from_numpy(audio)

        def run(net, part):
            with torch.inference_mode():
                parts = [net(same[i : i + part].float() / 32768.0) for i in range(0, BATCH, part)]
                return torch.cat(parts).numpy()

        for layout, part in itertools.product(LAYOUTS, (BATCH, evaluation.BATCH)):
            net = torch_peers.make_network(of, params, averages).eval()
            net = net.to(memory_format=getattr(torch, layout))
            calls[f'{layout}, {part} at a time'] = functools.partial(run, net, part)
    return _against_layouts(
        'eval_step',
        f'logits of {BATCH} clips, the same network',
        interleaved(calls, rounds=rounds),
        macs=BATCH * network_macs(of),
    )


def _against_layouts(name, what, seconds, macs, **details):
    """The row of ours against the faster of PyTorch's memory layouts."""
    ours = seconds.pop('ours')
    layouts = {layout: float(np.median(values)) for layout, values in seconds.items()}
    peer = seconds[min(layouts, key=layouts.get)] if layouts else None
    rate = macs / float(np.median(ours))
    note = None if layouts else NO_PEER
    return row(
        name,
        what,
        ours=ours,
        peer=peer,
        bar=0.8,
        peer_layouts=layouts,
        macs_per_second=rate,
        note=note,
        **details,
    )


def quantized_step(rounds: int = 7) -> dict:
    """A step with learned widths everywhere against a float step, both ours."""
    calls = {'float': Trained(architecture()), 'ours': Trained(architecture(), quantized=True)}
    seconds = interleaved(calls, rounds=rounds)
    return row(
        'quantized_step',
        f'one step with trained bits everywhere against the float step, batch {BATCH}',
        ours=seconds['ours'],
        peer=seconds['float'],
        bar=1.5,
    )


# ------------------------------------------------------------------------------------- supernet


def search_weight_step(rounds: int = 9) -> dict:
    """One weight update of a sampled path."""
    return _search_row('search_weight_step', 'one search step: weights', rounds, arch=False)


def search_arch_step(rounds: int = 5) -> dict:
    """One weight update, then one arch update that runs every candidate of every layer."""
    return _search_row(
        'search_arch_step', 'one search step: weights, then arch params', rounds, arch=True
    )


def _search_row(name, what, rounds, *, arch):
    ours = Searched(arch=arch)
    calls, torch = {'ours': ours}, _torch()
    if torch:
        calls['peer'] = _torch_search(torch, ours, arch, steps=2 * (rounds + 1))
    seconds = interleaved(calls, rounds=rounds)
    return row(
        name,
        f"{what}, the paper's space, batch {BATCH}",
        ours=seconds['ours'],
        peer=seconds.get('peer'),
        bar=0.7,
        note=None if torch else NO_PEER,
    )


def _torch_search(torch, ours, arch, steps):
    from kws_jax.benchmark import torch_peers

    net = torch_peers.make_supernet(ours.space, ours.state.params, ours.state.averages)
    optimizer = torch_peers.sgd(net, lr=LR, weight_decay=WEIGHT_DECAY)
    arch_optimizer = torch.optim.Adam(net.logits, lr=1e-3, betas=(0.0, 0.999))
    table = costs.macs_table(ours.space, front_end_macs=front_end().macs)
    choice_costs = [torch.tensor(c, dtype=torch.float32) for c in table.layers]
    audio, labels = (torch.from_numpy(a) for a in clips())
    labels = labels.long()
    paths = iter([ours.path(step) for step in range(steps)])  # not in the peer's time

    def run():
        path = next(paths)
        net.set_path(path)
        loss = torch_peers.train_step(net, optimizer, audio, labels)
        if arch:
            torch_peers.arch_step(
                net, arch_optimizer, audio, labels, path, choice_costs, target=ours.target
            )
        return float(loss)

    return run


def supernet_step(rounds: int = 13) -> dict:
    """Sampled supernet steps against steps of one network of average cost, both ours.

    The network's MACs are the mean over the space, which is what uniform sampling takes on average.
    """
    sampled = Searched()
    of = average_architecture()
    seconds = interleaved({'ours': sampled, 'network': Trained(of)}, rounds=rounds)
    # paths differ in cost, so means are compared, not medians
    result = row(
        'supernet_step',
        f'one sampled supernet step against a step of {" ".join(c.name for c in of.choices)}',
        ours=seconds['ours'],
        peer=seconds['network'],
        bar=2.0,
    )
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    return result | {
        'ours': means['ours'],
        'peer': means['network'],
        'ratio': means['ours'] / means['network'],
    }


def average_architecture() -> Architecture:
    """The architecture whose MACs are nearest to the mean over the space, of mean expansions."""
    table = costs.macs_table(space(), front_end_macs=front_end().macs)
    mean = table.fixed + sum(float(np.mean(c)) for c in table.layers)
    rng = np.random.default_rng(0)
    drawn = [space().sample(rng) for _ in range(2000)]
    live = [a for a in drawn if a.live_layers == len(space().layers)]
    return min(live, key=lambda a: abs(table.of(a) - mean))


# --------------------------------------------------------------- compilation, memory, input


def compiling() -> list[dict]:
    """Trace and compilation of the search step, cold and from the cache; its peak memory."""
    with tempfile.TemporaryDirectory() as cache:
        cold = fresh.measure(cache)
        warm = [fresh.measure(cache) for _ in range(2)]
    what = f"of the search step, the paper's space, batch {BATCH}, in a fresh process"
    seconds = [run['compile_seconds'] for run in warm]
    peak = [run['peak_bytes'] / 2**20 for run in warm]
    return [
        row('compile_cold', f'trace and compilation {what}', ours=cold['compile_seconds'], bar=20),
        row('compile_warm', f'trace and reading the cache {what}', ours=seconds, bar=3),
        row(
            'search_memory',
            f'growth of resident memory {what}, programs from the cache',
            ours=peak,
            unit='MiB',
            bar=1024,
            with_compilation=cold['peak_bytes'] / 2**20,
        ),
    ]


def decode(recordings: int = 20_000) -> list[dict]:
    """Decoding WAVs into the cache; then the share that batches take of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        labels = _write_recordings(folder / 'clips', recordings)
        began = time.perf_counter()
        cache = cache_lib.open_cache(sorted((folder / 'clips').iterdir()), folder, progress=False)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        cache = cache_lib.open_cache(sorted((folder / 'clips').iterdir()), folder, progress=False)
        again = time.perf_counter() - began
        shares = _input_share(cache, labels)
    return [
        row(
            'decode',
            f'decoding {recordings} WAVs of one second into the cache',
            ours=seconds,
            bar=20,
            opening_again=again,
        ),
        row(
            'input_share',
            f'making a batch of {BATCH} as a share of a training step (it is made ahead, in a '
            'thread)',
            ours=shares,
            unit='%',
            bar=5,
        ),
    ]


def _write_recordings(folder, count):
    """Recordings of twelve tones, one second each; returns their labels, in the order of names."""
    folder.mkdir()
    audio, labels = clips(240)
    header = io.BytesIO()
    with wave.open(header, 'wb') as file:
        file.setparams((1, 2, 16000, 0, 'NONE', 'NONE'))
        file.writeframes(audio[0].tobytes())
    start = header.getvalue()[:44]
    for i in range(count):
        (folder / f'{i:06d}.wav').write_bytes(start + audio[i % len(audio)].tobytes())
    return np.resize(labels, count)


def _input_share(cache, labels, rounds=9):
    none = np.zeros(0, np.int32)
    names = tuple(f'word{i}' for i in range(12))
    every = {'training': (np.arange(len(labels), dtype=np.int32), labels)}
    every |= dict.fromkeys(('validation', 'testing'), (none, none))
    data = Dataset(
        labels=LabelSet(names, names, None, None),
        audio=cache.audio,
        pools=Pools(every, dict.fromkeys(every, none), none),
        noise={},
        unknown_percent=0.0,
        silence_percent=0.0,
        fingerprint='benchmark',
    )
    source = training_source(data, batch=BATCH, seed=0)
    numbers = itertools.count()
    step = Trained(architecture())
    calls = {'batch': lambda: jax.device_put(source(next(numbers), 1)), 'step': step}
    seconds = interleaved(calls, rounds=rounds)
    return 100 * seconds['batch'] / seconds['step']


def free() -> None:
    """Drops compiled programs and buffers that a row has left behind."""
    jax.clear_caches()
    gc.collect()
