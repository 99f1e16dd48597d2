"""What a trained model costs to run, here and in what people would use: batch 1, one core.

Every runtime is measured in processes of its own, pinned to one core, a few times in turn. Run as a
program it measures one and prints a line of JSON; `measure` starts it.
"""

import ctypes
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from kws_jax.benchmark.fresh import resident

NOT_STREAMING = 'whole windows at every hop: it keeps nothing from one to the next'

# what runs what: name of the runtime, and of the model's file
RUNTIMES = {
    'c': ('C99, -O2', 'c/model.kws'),
    'tflm_int8': ('LiteRT for Microcontrollers, portable kernels', 'int8.tflite'),
    'litert_int8': ('LiteRT, one thread', 'int8.tflite'),
    'litert_exact': ('LiteRT, one thread', 'exact.tflite'),
    'litert_float': ('LiteRT, one thread', 'float.tflite'),
    'onnxruntime_int8': ('onnxruntime, one thread', 'int8.onnx'),
    'onnxruntime_float': ('onnxruntime, one thread', 'float.onnx'),
    'jax_integer': ('JAX, jitted', 'model'),
    'jax_float': ('JAX, jitted', 'float'),
}
_NEEDS = {
    'tflm': {'tflite_micro': 'tflite_micro', 'ai_edge_litert': 'ai-edge-litert'},
    'litert': {'ai_edge_litert': 'ai-edge-litert'},
    'onnxruntime': {'onnx': 'onnx', 'onnxruntime': 'onnxruntime'},
}


def missing(runtime: str) -> str:
    """The packages to install for a runtime and the file that it reads, or ''."""
    needs = _NEEDS.get(runtime.split('_')[0], {})
    return ' '.join(needs[name] for name in needs if importlib.util.find_spec(name) is None)


def recordings(model, data_dir, cache_dir) -> tuple[np.ndarray, np.ndarray]:
    """Audio and labels of the validation clips in a folder, as the model's labels number them.

    Raises:
      ValueError: as `load_dataset`.
    """
    from kws_jax.data.dataset import load_dataset
    from kws_jax.detection import NOT_KEYWORDS

    keywords = [label for label in model.labels if label not in NOT_KEYWORDS]
    data = load_dataset(
        data_dir=data_dir, cache_dir=cache_dir, labels=','.join(keywords), progress=False
    )
    audio, labels = data.evaluation('validation')
    number = {label: i for i, label in enumerate(model.labels)}
    return audio, np.array([number[data.labels.names[label]] for label in labels])


def report(
    model, float_model, *, data_dir=None, cache_dir=None, clips: int = 1000, **effort
) -> dict:
    """The suite as JSON has it: `rows` of `measure`, `hardware`, `wall_seconds`.

    Args:
      model: quantized.
      float_model: what the float runtimes run.
      data_dir: recordings, of which validation clips are used; without them noisy tones are, and
        there are no accuracies.
      cache_dir: of decoded audio.
      clips: at most so many, drawn evenly.
      **effort: of `measure`.

    Raises:
      ValueError, RuntimeError: as `measure` and `recordings`.
    """
    from kws_jax.benchmark import subjects
    from kws_jax.pipeline import hardware

    began, labels = time.monotonic(), None
    audio = subjects.clips()[0]
    if data_dir:
        audio, labels = recordings(model, data_dir, cache_dir)
        few = np.linspace(0, len(audio) - 1, min(clips, len(audio))).astype(int)
        audio, labels = audio[few], labels[few]
    rows = measure(model, float_model, audio, labels, **effort)
    used = {'cores_used': 1}
    return {
        'rows': rows,
        'hardware': hardware() | used,
        'wall_seconds': time.monotonic() - began,
    }


def table(found: dict) -> str:
    """The rows as a table for people; what is not known is a dash.

    >>> row = {'name': 'c', 'what': 'C99', 'ours': 0.01, 'peer': None, 'ratio': None, 'bar': None,
    ...     'stream_seconds': 0.1, 'stream_note': '', 'file_bytes': 30000, 'weight_bytes': 25000,
    ...     'ram_bytes': 40000, 'agreement': 1.0}
    >>> print(table({'rows': [row]}))
    runtime              window  ours/its   stream    file  weights      RAM  accuracy  as trained
    c                  10.00 ms         -   100 ms   30.0k    25.0k    40.0k         -     100.0 %
    window: one second of audio; stream: compute in a second of audio, a decision every 80 ms
    """
    head = f'{"runtime":<18}{"window":>9}{"ours/its":>10}{"stream":>9}{"file":>8}{"weights":>9}'
    lines = [head + f'{"RAM":>9}{"accuracy":>10}{"as trained":>12}']

    def size(value):
        return '-' if value is None else f'{value / 1000:.1f}k'

    for row in found['rows']:
        if row.get('note'):
            lines.append(f'{row["name"]:<18}  {row["note"]}')
            continue
        ratio = '-' if row['ratio'] is None else f'{row["ratio"]:.2f}'
        own = row['ours'] if row['peer'] is None else row['peer']
        accuracy = f'{row["accuracy"]:.2%}' if 'accuracy' in row else '-'
        lines.append(
            f'{row["name"]:<18}{1000 * own:>6.2f} ms{ratio:>10}{1000 * row["stream_seconds"]:>6.0f}'
            f' ms{size(row["file_bytes"]):>8}{size(row["weight_bytes"]):>9}'
            f'{size(row["ram_bytes"]):>9}{accuracy:>10}{100 * row["agreement"]:>10.1f} %'
        )
    lines.append(
        'window: one second of audio; stream: compute in a second of audio, a decision every 80 ms'
    )
    if counts := found['rows'][0].get('cortex_m4_instructions'):
        lines.append(
            'c on a Cortex-M4, in millions of instructions (emulated): window '
            f'{counts["window"] / 1e6:.1f}, decision of a stream {counts["decision"] / 1e6:.1f}'
        )
    return '\n'.join(lines)


def measure(
    model,
    float_model,
    audio: np.ndarray,
    labels: np.ndarray | None,
    *,
    rounds: int = 3,
    seconds: float = 2.0,
) -> list[dict]:
    """A row for every runtime, ours first.

    Args:
      model: quantized.
      float_model: what the float runtimes run.
      audio: int16 `[clips, samples]`, the same for all; at least one clip.
      labels: int `[clips]` for accuracies, or None: no accuracy is given.
      rounds: processes for each runtime, in turn.
      seconds: of calls in each.

    Returns:
      Rows as `suites.run` has them: `ours` the seconds that the C runtime takes for a window,
      `peer` those of the other; with `stream_seconds` (of compute in a second of audio, a decision
      every hop), `file_bytes`, `weight_bytes`, `ram_bytes`, `accuracy`, `trained_accuracy` (of the
      network that was trained), `agreement` (of its predictions with the trained network's); `c`
      also `cortex_m4_instructions`, see `firmware.count_instructions`, None without an emulator.

    Raises:
      ValueError: the model has no integer form.
      RuntimeError: a runtime failed; the message ends with what it printed.
    """
    from kws_jax.deploy import firmware
    from kws_jax.training.evaluation import predict_all

    expected = {
        False: predict_all(model.predictor(), audio).argmax(axis=1),
        True: predict_all(float_model.predictor(), audio).argmax(axis=1),
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        weights = _export(model, float_model, folder)
        counted = firmware.count_instructions(folder / 'c') if firmware.can_count() else None
        np.save(folder / 'audio.npy', audio)
        present = [name for name in RUNTIMES if not missing(name)]
        found = {name: [] for name in present}
        for turn in range(rounds):
            for name in present:
                found[name].append(_start(name, folder, seconds=seconds, predict=turn == 0))
    ours = np.array([one['window_seconds'] for one in found['c']])
    rows = []
    for name, (what, _) in RUNTIMES.items():
        row = {'name': name, 'what': what, 'unit': 's', 'bar': 0.5 if name == 'tflm_int8' else None}
        if name not in found:
            rows.append(row | {'ours': float(np.median(ours)), 'peer': None, 'ratio': None,
                               'note': f'not installed (pip install {missing(name)})'})  # fmt: skip
            continue
        own = np.array([one['window_seconds'] for one in found[name]])
        first, is_float = found[name][0], name.endswith('float')
        predicted = np.array(first['predictions'])
        row |= {
            'ours': float(np.median(ours)),
            'peer': None if name == 'c' else float(np.median(own)),
            'ratio': None if name == 'c' else float(np.median(ours / own)),
            'stream_seconds': float(np.median([one['stream_seconds'] for one in found[name]])),
            'stream_note': first['stream_note'],
            'file_bytes': first['file_bytes'],
            'weight_bytes': weights.get(name),
            'ram_bytes': min(one['ram_bytes'] for one in found[name]),
            'ram_note': first['ram_note'],
            'clips': len(audio),
            'agreement': float((predicted == expected[is_float]).mean()),
        }
        if name == 'c':
            row['cortex_m4_instructions'] = counted
        if labels is not None:
            row['accuracy'] = float((predicted == labels).mean())
            row['trained_accuracy'] = float((expected[is_float] == labels).mean())
        rows.append(row)
    return rows


def _export(model, float_model, folder) -> dict[str, int]:
    """Writes every file; returns bytes of the weights by runtime, where the format has some."""
    from kws_jax import deploy
    from kws_jax import model as model_lib
    from kws_jax.deploy import export_c, export_litert, export_litert_exact, export_onnx, packed

    network = deploy.from_model(model)
    export_c.write(network, folder / 'c', costs=model.costs())
    command = ['make', '-C', folder / 'c', 'CFLAGS=-O2 -fPIC', 'libkws.a']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    objects = [folder / 'c' / f'{name}.o' for name in ('kws_core', 'kws', 'kws_model')]
    subprocess.run(['cc', '-shared', *objects, '-o', folder / 'c' / 'kws.so'], check=True)
    model_lib.save(model, folder / 'model')
    model_lib.save(float_model, folder / 'float')
    if not missing('litert'):
        (folder / 'int8.tflite').write_bytes(export_litert.from_network(network))
        (folder / 'exact.tflite').write_bytes(export_litert_exact.from_network(network))
        (folder / 'float.tflite').write_bytes(export_litert.from_float(float_model))
    if not missing('onnxruntime'):
        (folder / 'int8.onnx').write_bytes(export_onnx.from_network(network))
        (folder / 'float.onnx').write_bytes(export_onnx.from_float(float_model))
    sizes = {'frontend': network.front_end.taps.size}
    sizes |= {name: layer.weights.size for name, layer in network.layers().items()}

    def total(bits):
        return round(sum(size * bits[name] for name, size in sizes.items()) / 8)

    int8 = total(export_litert.stored_bits(network))
    return {
        'c': len(packed.stream(network)),  # multipliers and offsets included
        'tflm_int8': int8,
        'litert_int8': int8,
        'litert_exact': total(dict.fromkeys(sizes, 8)),
        'onnxruntime_int8': total(export_onnx.stored_bits(network)),
    }


def _start(name, folder, *, seconds, predict) -> dict:
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, '-m', 'kws_jax.benchmark.inference', name, folder]
        + [str(seconds), str(int(predict))],
        env={**os.environ, 'PYTHONPATH': paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{name} failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------ in the process of one runtime


@dataclasses.dataclass
class _Runner:
    """A loaded model: `run(int16 [samples]) -> logits`, and how it takes a stream, if it does."""

    run: object
    ram_bytes: int | None = None  # None: what the process grew by
    stream: object = None  # stream(int16 [hop]), after one window


def _c(folder) -> _Runner:
    library = ctypes.CDLL(str(folder / 'c' / 'kws.so'))
    manifest = json.loads((folder / 'c' / 'manifest.json').read_text())
    logits = np.zeros(len(manifest['labels']), np.int32)
    out = logits.ctypes.data_as(ctypes.c_void_p)
    assert library.kws_init() == 0

    def run(samples):
        library.kws_run(samples.ctypes.data_as(ctypes.c_void_p), out)
        return logits

    def stream(samples):
        library.kws_stream(samples.ctypes.data_as(ctypes.c_void_p), len(samples), out)

    return _Runner(run, manifest['memory_bytes'], stream)


def _tflm(folder, name) -> _Runner:
    from tflite_micro.python.tflite_micro import runtime

    content = (folder / RUNTIMES[name][1]).read_bytes()
    made = runtime.Interpreter.from_bytes(content, arena_size=1 << 23)
    told = _stderr_of(made.print_allocations)
    arena = re.search(r'Arena allocation total (\d+) bytes', told)

    def run(samples):
        made.set_input(samples[None], 0)
        made.invoke()
        return made.get_output(0)[0]

    return _Runner(run, int(arena.group(1)))


def _stderr_of(call) -> str:
    """What a call prints to the standard error, from C too."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode(errors='replace')


def _litert(folder, name) -> _Runner:
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(str(folder / RUNTIMES[name][1]), num_threads=1)
    made.allocate_tensors()
    given, found = made.get_input_details()[0]['index'], made.get_output_details()[0]['index']

    def run(samples):
        made.set_tensor(given, samples[None])
        made.invoke()
        return made.get_tensor(found)[0]

    return _Runner(run)


def _onnxruntime(folder, name) -> _Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / RUNTIMES[name][1]), options, providers=['CPUExecutionProvider']
    )
    return _Runner(lambda samples: session.run(['logits'], {'samples': samples[None]})[0][0])


def _jax(folder, name) -> _Runner:
    from kws_jax import deploy
    from kws_jax import model as model_lib
    from kws_jax.deploy import execute

    model = model_lib.load(folder / RUNTIMES[name][1])
    if name == 'jax_float':
        predict = model.predictor()
        return _Runner(lambda samples: np.asarray(predict(samples[None]))[0])
    network = deploy.from_model(model)
    whole = execute.jitted(network)
    return _Runner(lambda samples: whole(samples[None])[0])


def _seconds(call, budget) -> float:
    """Median of one call, over `budget` seconds of them."""
    call()
    times, until = [], time.perf_counter() + budget
    while not times or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _main(name, folder, seconds, predict):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    folder, audio = pathlib.Path(folder), np.load(pathlib.Path(folder) / 'audio.npy')
    kind = name.split('_')[0]
    modules = {'litert': 'ai_edge_litert.interpreter', 'jax': 'kws_jax.deploy'}
    if kind in ('litert', 'onnxruntime', 'jax'):
        importlib.import_module(modules.get(kind, kind))  # its code is not what the model takes
    before = resident('VmRSS')
    if kind == 'c':
        runner = _c(folder)
    else:
        runner = {'tflm': _tflm, 'litert': _litert, 'onnxruntime': _onnxruntime, 'jax': _jax}[kind](
            folder, name
        )
    clips = [np.ascontiguousarray(clip) for clip in audio]
    runner.run(clips[0])
    grown = resident('VmHWM') - before
    turn = iter(range(10**9))
    window = _seconds(lambda: runner.run(clips[next(turn) % len(clips)]), seconds)
    file = folder / RUNTIMES[name][1]
    result = {
        'window_seconds': window,
        'file_bytes': sum(
            path.stat().st_size for path in ([file] if file.is_file() else file.iterdir())
        ),
        'ram_bytes': grown if runner.ram_bytes is None else runner.ram_bytes,
        'ram_note': 'growth of the process' if runner.ram_bytes is None else 'memory it asks for',
        'predictions': [],
    }
    hop = json.loads((folder / 'c' / 'manifest.json').read_text())['hop_samples']
    hops_a_second = 16000 / hop
    if runner.stream:
        chunks = np.concatenate(clips[:20])
        chunks = [np.ascontiguousarray(chunks[i : i + hop]) for i in range(0, len(chunks), hop)]
        chunks = [chunk for chunk in chunks if len(chunk) == hop]
        for chunk in chunks[: 2 + len(clips[0]) // hop]:
            runner.stream(chunk)
        each = _seconds(lambda: runner.stream(chunks[next(turn) % len(chunks)]), seconds)
        result |= {'stream_seconds': each * hops_a_second, 'stream_note': ''}
    else:
        result |= {'stream_seconds': window * hops_a_second, 'stream_note': NOT_STREAMING}
    if predict:
        result['predictions'] = [int(np.argmax(runner.run(clip))) for clip in clips]
    print(json.dumps(result))


if __name__ == '__main__':
    _main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == '1')
