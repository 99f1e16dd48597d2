"""The C runtime: no warning, the numbers of the reference, nothing touched that is not its own."""

import ctypes
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import wave

import integer_models
import numpy as np
import pytest

from kws_jax import deploy, detection, listening
from kws_jax import model as model_lib
from kws_jax.deploy import export_c, packed, scores, stream, table
from kws_jax.deploy import network as network_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
STRICT = ['-std=c99', '-Wall', '-Wextra', '-Wconversion', '-pedantic', '-Werror']
COMPILERS = ('gcc', 'clang')
PACKAGES = {'gcc': 'gcc', 'clang': 'clang', 'valgrind': 'valgrind', 'qemu-arm': 'qemu-user'}
PACKAGES |= {
    'arm-linux-gnueabihf-gcc': 'gcc-arm-linux-gnueabihf',
    'arm-none-eabi-gcc': 'gcc-arm-none-eabi libnewlib-arm-none-eabi',
}


def need(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f'{tool} is not installed (apt install {PACKAGES[tool]})')


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{command}: {done.stdout}\n{done.stderr}'
    return done.stdout


def export(folder, model):
    network = deploy.from_model(model)
    export_c.write(network, folder, costs=model.costs(), facts={'seed': 3})
    return network


def library(folder, compiler='gcc', *flags):
    """The export's functions, by ctypes."""
    out = folder / f'lib-{compiler}.so'
    sources = [folder / name for name in ('kws_core.c', 'kws.c', 'kws_model.c')]
    run(compiler, *STRICT, '-Os', *flags, '-shared', '-fPIC', *sources, '-o', out)
    return ctypes.CDLL(str(out))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def windows(functions, audio, classes):
    logits = np.zeros((len(audio), classes), np.int32)
    for samples, out in zip(audio, logits, strict=True):
        functions.kws_run(pointer(np.ascontiguousarray(samples)), pointer(out))
    return logits


def write_wav(path, samples):
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.astype('<i2').tobytes())


@pytest.mark.parametrize('compiler', COMPILERS)
@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
def test_windows_are_those_of_the_reference(tmp_path, compiler, front_end):
    need(compiler)
    audio = integer_models.clips()
    widths = [(1, 2, False), (2, 3, False), (3, 4, False), (8, 8, False)]
    if front_end == 'pairs':
        widths.append((2, 3, True))
    for weight, activation, causal in widths:
        folder = tmp_path / f'{weight}-{activation}-{causal}'
        model = integer_models.make(front_end, weight=weight, activation=activation, causal=causal)
        network = export(folder, model)
        functions = library(folder, compiler)
        assert functions.kws_init() == 0
        expected = deploy.run(network, audio)
        np.testing.assert_array_equal(windows(functions, audio, 3), expected)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('every', [8, 24])
def test_a_stream_in_any_chunks_decides_as_that_of_the_reference(tmp_path, every, causal):
    need('gcc')
    model = integer_models.make(causal=causal)
    network = dataclasses.replace(deploy.from_model(model), decide_every=every)
    export_c.write(network, tmp_path, costs=model.costs())
    functions = library(tmp_path)
    audio = integer_models.clips().ravel()
    hop = every * network.front_end.stride
    expected = stream.logits(network, audio)
    last = (network.frames - 1) * network.front_end.stride + network.front_end.kernel
    rng = np.random.default_rng(0)
    assert functions.kws_init() == 0
    for largest in (1, 700, 5000):
        functions.kws_stream_reset()
        got, at, logits = [], 0, np.zeros(3, np.int32)
        size = len(audio) if largest > 1 else last + hop + 10
        while at < size:
            chunk = min(int(rng.integers(1, largest + 1)), size - at, hop)
            part = np.ascontiguousarray(audio[at : at + chunk])
            if functions.kws_stream(pointer(part), chunk, pointer(logits)):
                got.append(logits.copy())
            at += chunk
        assert len(got) == 1 + (size - last) // hop
        np.testing.assert_array_equal(got, expected[: len(got)])


def operating_points(network, audio):
    """A threshold for two of three labels that is reached now and then, as evaluate_stream.py
    writes it."""
    smoothed = detection.smooth(listening.integer_scores(network, stream.logits(network, audio)), 3)
    keywords = {
        label: {'threshold': float(np.quantile(smoothed[:, i], 0.7)), 'words': 1}
        for i, label in enumerate(network.labels[:2])
    }
    return {'smoothing': 3, 'refractory': 4, 'test': {'keywords': keywords}}


@pytest.mark.parametrize('compiler', COMPILERS)
def test_words_are_heard_where_the_rule_says(tmp_path, compiler):
    need(compiler)
    model, audio = integer_models.make(), integer_models.clips().ravel()
    network = deploy.from_model(model)
    points = operating_points(network, audio)
    export_c.write(network, tmp_path, costs=model.costs(), points=points)
    rule = export_c.detection_rule(network, points)
    state, expected = detection.start(rule), []
    for row in listening.integer_scores(network, stream.logits(network, audio)):
        state, found = detection.listen(rule, state, row)
        best = max(found, key=lambda one: one.score, default=None)
        expected.append(-1 if best is None else network.labels.index(best.label))
    assert len(set(expected)) == 3 and expected.count(-1) < len(expected) - 5

    functions, hop = library(tmp_path, compiler), 8 * network.front_end.stride
    assert functions.kws_init() == 0
    last = (network.frames - 1) * network.front_end.stride + network.front_end.kernel
    for chunk in (hop, 700):
        functions.kws_stream_reset()
        heard = []
        for at in range(0, len(audio), chunk):
            part = np.ascontiguousarray(audio[at : at + chunk])
            heard.append(functions.kws_listen(pointer(part), len(part)))
        # the decision of window i comes with the samples up to its last frame's
        ends = [(last + i * hop - 1) // chunk for i in range(len(expected))]
        assert [heard[i] for i in ends] == expected
        assert sum(word >= 0 for word in heard) == sum(word >= 0 for word in expected)

    run('make', '-C', tmp_path, f'CC={compiler}')
    said = [line.split()[-1] for line in hear(tmp_path / 'kws_hear').splitlines()]
    assert said == [network.labels[word] for word in expected if word >= 0]
    silent = subprocess.run([tmp_path / 'kws_hear'], input=b'', capture_output=True, check=True)
    assert b'nothing was heard' in silent.stdout


def test_without_operating_points_every_keyword_has_one_threshold(tmp_path):
    model = integer_models.make()  # of low, high and silence
    network = export(tmp_path, model)
    rule = export_c.detection_rule(network, None)
    assert set(rule.thresholds) == {'low', 'high'}
    assert all(0.8 <= cut < 0.8 + 2**-15 for cut in rule.thresholds.values())
    cut = math.ceil(0.8 * 2**15)
    assert f'kws_thresholds[3] = {{{cut}, {cut}, 65535}};' in (tmp_path / 'kws_model.c').read_text()
    manifest = json.loads((tmp_path / 'manifest.json').read_text())
    assert manifest['micro']['probability_cutoff'] == 0.8
    points = {'smoothing': 4, 'refractory': 12, 'test': {'keywords': {'loud': {'threshold': 0.5}}}}
    with pytest.raises(ValueError, match="threshold of 'loud', which is none of low, high"):
        export_c.write(network, tmp_path, costs=model.costs(), points=points)
    with pytest.raises(ValueError, match='lack refractory, test; give the JSON of launch/eval'):
        export_c.write(network, tmp_path, costs=model.costs(), points={'smoothing': 4})


def test_the_firmware_of_the_documentation_compiles(tmp_path):
    need('gcc')
    export(tmp_path, integer_models.make())
    (example,) = re.findall(r'```c\n(.*?)```', (ROOT / 'docs/deploy.md').read_text(), re.DOTALL)
    stubs = (
        'void microphone_read(int16_t *samples, uint32_t count) { (void)samples, (void)count; }\n'
        'void act_on(const char *word) { (void)word; }\n'
    )
    (tmp_path / 'firmware.c').write_text(example + stubs)
    run('gcc', *STRICT, *sources(tmp_path, 'firmware'), '-o', tmp_path / 'firmware')


def test_scores_of_the_runtime_have_the_same_table():
    source = (ROOT / 'kws_jax/deploy/c/kws.c').read_text()
    (body,) = re.findall(r'exp2_table\[33\] = \{(.*?)\}', source, flags=re.DOTALL)
    assert [int(v.strip(' \nu')) for v in body.split(',')] == list(scores.exp2_table())


def test_memory_is_what_the_timeline_says_and_the_file_what_the_costs_say(tmp_path):
    need('gcc')
    models = {name: integer_models.make(name) for name in integer_models.FRONT_ENDS}
    models['causal'] = integer_models.make(causal=True)
    for name, model in models.items():
        network = export(tmp_path / name, model)
        functions = library(tmp_path / name)
        core = ctypes.create_string_buffer(1 << 14)
        content = packed.pack(network)
        assert functions.kws_load(core, content, len(content)) == 0
        assert functions.kws_memory(core) == export_c.memory_bytes(network)
        memory = np.zeros(1 << 18, np.uint8)
        assert functions.kws_attach(core, pointer(memory), export_c.memory_bytes(network) - 1) < 0
        assert functions.kws_attach(core, pointer(memory), export_c.memory_bytes(network)) == 0


def test_the_table_adds_up_to_the_costs():
    model = integer_models.make()
    rows = table.rows(deploy.from_model(model))
    costs = model.costs()
    assert sum(row['macs'] for row in rows) == costs['macs']
    assert math.ceil(sum(row['flash_bytes'] for row in rows)) == costs['flash_bytes']


def test_a_stream_costs_its_windows_and_a_causal_one_its_rows():
    model = integer_models.make()
    network = deploy.from_model(model)
    # 49 frames of 400 samples a window, 16000 / 320 = 50 a second, a decision every 8
    front_end = 400 * 16
    per_window = model.costs()['macs'] - 49 * front_end
    expected = 50 * front_end + per_window * 50 / 8
    assert table.macs_per_second(network) == pytest.approx(expected)
    # maps of 25 and 13 rows: 25 and 12.5 a second
    causal = deploy.from_model(integer_models.make(causal=True))
    by_name = {row['name']: row['macs'] for row in table.rows(causal)}
    wide = by_name['stem'] + by_name['a.0.expand']
    classifier = by_name['classifier']
    deep = per_window - wide - classifier
    expected = 50 * front_end + wide * 25 / 25 + deep * 12.5 / 13 + classifier * 50 / 8
    assert table.macs_per_second(causal) == pytest.approx(expected)
    text = table.layers(causal, [('stem', 10), ('head', 20)])
    assert f'{round(expected):,}' in text and text.endswith('<- most')


def test_the_logarithm_of_the_runtime_has_the_same_table():
    source = (ROOT / 'kws_jax/deploy/c/kws_core.c').read_text()
    (body,) = re.findall(r'kLog\[257\] = \{(.*?)\}', source, flags=re.DOTALL)
    assert [int(v) for v in body.replace('\n', ' ').split(',')] == list(network_lib.log_table())


def test_neither_floating_point_nor_dynamic_memory_is_used():
    for name in ('kws_core.c', 'kws_core.h', 'kws.c', 'kws.h.in'):
        source = (ROOT / 'kws_jax/deploy/c' / name).read_text()
        source = re.sub(r'/\*.*?\*/', '', source, flags=re.DOTALL)
        assert not re.search(r'\b(float|double|malloc|calloc|realloc|free)\b', source), name
        assert set(re.findall(r'#include <(.*?)>', source)) <= {'stdint.h', 'string.h'}


@pytest.mark.parametrize('compiler', COMPILERS)
def test_the_makefile_builds_a_program_that_hears_a_wav_file(tmp_path, compiler):
    need(compiler)
    network = export(tmp_path, integer_models.make())
    run('make', '-C', tmp_path, f'CC={compiler}', 'CFLAGS=-Os -Werror')
    audio = integer_models.clips()
    write_wav(tmp_path / 'one.wav', audio[0])
    _, label, *logits = run(tmp_path / 'kws_wav', tmp_path / 'one.wav').split()
    expected = deploy.run(network, audio[:1])[0]
    np.testing.assert_array_equal([int(v) for v in logits], expected)
    assert label == network.labels[expected.argmax()]
    write_wav(tmp_path / 'long.wav', audio[:3].ravel())
    assert len(run(tmp_path / 'kws_wav', tmp_path / 'long.wav').splitlines()) > 5
    (tmp_path / 'no.wav').write_bytes(b'no sound')
    done = subprocess.run(
        [tmp_path / 'kws_wav', tmp_path / 'no.wav'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and 'is not a WAV file' in done.stderr


@pytest.fixture(scope='module')
def sanitized(tmp_path_factory):
    """A folder with kws_wav and kws_hear under both sanitizers."""
    need('gcc')
    folder, model = tmp_path_factory.mktemp('sanitized'), integer_models.make()
    network = deploy.from_model(model)
    points = operating_points(network, integer_models.clips().ravel())
    export_c.write(network, folder, costs=model.costs(), points=points)
    flags = ['-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']
    for program in ('kws_wav', 'kws_hear'):
        run('gcc', '-std=c99', *flags, *sources(folder, program), '-o', folder / program)
    return folder


def sources(folder, program):
    return [folder / f'{name}.c' for name in ('kws_core', 'kws', 'kws_model', program)]


def hear(*command):
    audio = integer_models.clips().ravel().astype('<i2').tobytes()
    done = subprocess.run([str(c) for c in command], input=audio, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_altered_models_are_refused_or_run_without_touching_what_is_not_theirs(tmp_path):
    need('clang')
    seeds = tmp_path / 'seeds'
    seeds.mkdir()
    for front_end, weight, causal in (
        ('pairs', 2, False),
        ('odd_pairs', 1, False),
        ('relu', 3, True),
    ):
        model = integer_models.make(front_end, weight=weight, causal=causal)
        network = export(tmp_path / 'c', model)
        (seeds / f'{front_end}.kws').write_bytes(packed.pack(network, text=False))
    flags = ['-O1', '-g', '-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all']
    source = pathlib.Path(__file__).with_name('fuzz.c')
    core, fuzz = tmp_path / 'c' / 'kws_core.c', tmp_path / 'fuzz'
    run('clang', '-std=c99', *flags, f'-I{core.parent}', source, core, '-o', fuzz)
    # KWS_JAX_FUZZ_RUNS=1000000 takes some minutes. Resident memory is all the sanitizer's:
    # gigabytes where its shadow lies on huge pages
    options = ['-rss_limit_mb=0', '-print_final_stats=1']
    runs = os.environ.get('KWS_JAX_FUZZ_RUNS', '20000')
    done = subprocess.run(
        [fuzz, f'-runs={runs}', '-seed=1', '-max_len=4096', *options, seeds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'stat::number_of_executed_units: {runs}' in done.stderr
    found = int(re.findall(r'cov: (\d+)', done.stderr)[-1])
    assert found > 300, 'it gets nowhere into the code'


def test_every_cut_of_a_model_is_refused(tmp_path):
    need('gcc')
    network = export(tmp_path, integer_models.make())
    functions = library(tmp_path)
    core, content = ctypes.create_string_buffer(1 << 14), packed.pack(network)
    for size in [*range(200), *range(200, len(content), 37)]:
        assert functions.kws_load(core, content[:size], size) < 0
    assert functions.kws_load(core, b'KWSI\x03' + content[5:], len(content)) == -2


def test_sanitizers_and_valgrind_find_nothing(sanitized, tmp_path):
    write_wav(tmp_path / 'long.wav', integer_models.clips()[:2].ravel())
    first, heard = run(sanitized / 'kws_wav', tmp_path / 'long.wav'), hear(sanitized / 'kws_hear')
    assert len(heard.splitlines()) > 5
    need('valgrind')
    run('make', '-C', sanitized, 'CFLAGS=-O1 -g')
    flags = ['--error-exitcode=9', '--leak-check=full', '-q']
    assert run('valgrind', *flags, sanitized / 'kws_wav', tmp_path / 'long.wav') == first
    assert hear('valgrind', *flags, sanitized / 'kws_hear') == heard


def test_an_arm_processor_gives_the_same_bits(sanitized, tmp_path):
    need('arm-linux-gnueabihf-gcc', 'qemu-arm')
    network = deploy.from_model(integer_models.make())
    arm = 'arm-linux-gnueabihf-gcc', *STRICT, '-Os', '-static'
    program = tmp_path / 'kws_arm'
    run(*arm, *sources(sanitized, 'kws_hear'), '-o', program)
    assert hear('qemu-arm', program) == hear(sanitized / 'kws_hear')
    run(*arm, *sources(sanitized, 'kws_wav'), '-o', program)
    audio = integer_models.clips()
    for i, expected in enumerate(deploy.run(network, audio)):
        write_wav(tmp_path / 'one.wav', audio[i])
        logits = run('qemu-arm', program, tmp_path / 'one.wav').split()[2:]
        np.testing.assert_array_equal([int(v) for v in logits], expected)


def test_a_cortex_m4_links_it_without_software_floating_point(tmp_path):
    need('arm-none-eabi-gcc')
    export(tmp_path, integer_models.make())
    (tmp_path / 'main.c').write_text(
        '#include "kws.h"\nstatic int16_t s[KWS_SAMPLES];\nint main(void) {\n'
        '  int32_t l[KWS_CLASSES];\n  kws_init();\n  kws_run(s, l);\n'
        '  return (int)l[0] + kws_listen(s, KWS_HOP);\n}\n'
    )
    files = sources(tmp_path, 'main')
    cpu = ['-mcpu=cortex-m4', '-mthumb', '-ffunction-sections', '-fdata-sections']
    link = ['--specs=nosys.specs', '--specs=nano.specs', '-Wl,--gc-sections']
    elf = tmp_path / 'kws.elf'
    run('arm-none-eabi-gcc', *STRICT, '-Os', *cpu, *files, *link, '-o', elf)
    names = run('arm-none-eabi-nm', elf)
    assert 'kws_run' in names and 'kws_listen' in names
    assert not re.search(r'__aeabi_[df](add|mul|div|sub)|\bmalloc\b', names)


def test_what_has_no_room_is_refused_by_name(tmp_path):
    import dataclasses

    network = deploy.from_model(integer_models.make())
    wide = dataclasses.replace(network.head, weights=np.zeros((6, 600), np.int8))
    with pytest.raises(ValueError, match='head: 600 channels; the C runtime has room for 512'):
        export_c.write(dataclasses.replace(network, head=wide), tmp_path, costs={})


def test_the_program_exports_and_says_what_it_costs(tmp_path):
    model_lib.save(integer_models.make(), tmp_path / 'model')
    launch = [sys.executable, ROOT / 'launch/export.py', f'--model={tmp_path / "model"}']
    out = run(*launch, '--format=c', f'--out={tmp_path / "c"}')
    assert 'a.0.depthwise' in out and '<- most' in out
    assert {'kws.h', 'kws_core.c', 'kws_model.c', 'manifest.json'} <= {
        path.name for path in (tmp_path / 'c').iterdir()
    }
    run(*launch, '--format=packed', '--hop_ms=480', f'--out={tmp_path / "p"}')
    again, _ = packed.unpack((tmp_path / 'p/model.kws').read_bytes())
    assert again.decide_every == 24  # frames of 20 ms
    run(*launch, '--format=packed', '--xz', f'--out={tmp_path / "xz"}')
    assert packed.unpack((tmp_path / 'xz/model.kws.xz').read_bytes())[0].labels == again.labels
    audio = integer_models.clips(1)
    expected = deploy.run(deploy.from_model(integer_models.make()), audio)
    np.testing.assert_array_equal(deploy.run(again, audio), expected)
