"""What an integer network costs, layer by layer."""

from kws_jax.deploy import packed
from kws_jax.deploy.network import Network


def rows(network: Network) -> list[dict]:
    """Name, bits, flash bytes and MACs of every layer; whole bits are divided by eight."""
    front_end = network.front_end
    columns = front_end.taps.shape[1]
    taps = packed.stored_taps(front_end).size
    found = [
        {
            'name': 'frontend',
            'weight_bits': front_end.bits,
            'output_bits': front_end.out_bits,
            'flash_bytes': (32 + 32 * columns + 32 * front_end.filters + taps * front_end.bits) / 8,
            'macs': network.frames * front_end.kernel * columns,
        }
    ]
    shape = (network.frames, front_end.filters)
    for name, layer in network.layers().items():
        shape = tuple(-(-n // s) for n, s in zip(shape, layer.stride, strict=True))
        if layer.kind == 'classifier':
            shape = (1, 1)
        words = 1 + (layer.residual is not None) + layer.weights.shape[-1]
        found.append(
            {
                'name': name,
                'weight_bits': layer.bits,
                'output_bits': layer.out_bits,
                'flash_bytes': (32 * words + layer.weights.size * layer.bits) / 8,
                'macs': shape[0] * shape[1] * layer.weights.size,
            }
        )
    return found


def macs_per_second(network: Network) -> float:
    """Multiply-accumulates for a second of a stream of 16 kHz: every frame once, and the network
    behind for every decision; of a causal one every row of every map once."""
    front_end, others = network.front_end, rows(network)[1:]
    frames = 16000 / front_end.stride
    total = frames * front_end.kernel * front_end.taps.shape[1]
    decisions, apart, height = frames / network.decide_every, 1, network.frames
    for row, layer in zip(others, network.layers().values(), strict=True):
        apart, height = apart * layer.stride[0], -(-height // layer.stride[0])
        once_a_row = network.causal and layer.kind != 'classifier'
        total += row['macs'] * (frames / apart / height if once_a_row else decisions)
    return total


def layers(network: Network, memory: list[tuple[str, int]]) -> str:
    """Flash and MACs of every layer, and the `memory` of every step of a runtime, as text."""
    own = rows(network)
    lines = [f'{"layer":16}{"bits W":>7}{"bits out":>9}{"flash":>10}{"MACs":>12}']
    for row in own:
        lines.append(
            f'{row["name"]:16}{row["weight_bits"]:7}{row["output_bits"]:9}'
            f'{row["flash_bytes"]:10,.1f}{row["macs"]:12,}'
        )
    flash, macs = (sum(row[key] for row in own) for key in ('flash_bytes', 'macs'))
    lines.append(f'{"all":32}{flash:10,.1f}{macs:12,}')
    hop = network.decide_every * network.front_end.stride / 16
    stream = f'a second of a stream, a decision every {hop:g} ms'
    lines.append(f'{stream:42}{round(macs_per_second(network)):12,}')
    most = max(size for _, size in memory)
    lines += ['', 'memory of the C runtime, step by step']
    for name, size in memory:
        mark = '  <- most' if size == most else ''
        lines.append(f'{name:16}{size:10,} {"#" * round(40 * size / most)}{mark}')
    return '\n'.join(lines)
