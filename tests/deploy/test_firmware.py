"""The image for a Cortex-M4: what its map says, how deep its calls go; the manifest."""

import json
import subprocess

import integer_models
import pytest

from kws_jax import deploy
from kws_jax.deploy import export_c, firmware, packed

GRAPH = """
graph: { title: "a.c"
node: { title: "top" label: "top\\na.c:1:1\\n16 bytes (static)\\n0 dynamic objects" }
node: { title: "a.c:left" label: "left\\na.c:2:1\\n100 bytes (static)" }
node: { title: "right" label: "right\\na.c:3:1\\n8 bytes (static)" }
node: { title: "memset" label: "memset\\n<built-in>" shape : ellipse }
edge: { sourcename: "top" targetname: "a.c:left" label: "a.c:1:2" }
edge: { sourcename: "top" targetname: "right" }
edge: { sourcename: "right" targetname: "memset" }
}
"""
MORE = 'node: { title: "deep" label: "deep\\nb.c\\n200 bytes (static)" }'
MORE += '\nedge: { sourcename: "right" targetname: "deep" }'


def test_the_stack_is_the_deepest_chain_of_calls_over_all_files():
    assert firmware.deepest_stack([GRAPH], 'top') == 16 + 100
    assert firmware.deepest_stack([GRAPH, MORE], 'top') == 16 + 8 + 200
    assert firmware.deepest_stack([GRAPH], 'right') == 8


def test_calls_in_circles_have_no_depth():
    circle = 'edge: { sourcename: "deep" targetname: "right" }'
    with pytest.raises(ValueError, match='right calls itself'):
        firmware.deepest_stack([GRAPH, MORE, circle], 'top')


@pytest.mark.skipif(not firmware.available(), reason=f'apt install {firmware.PACKAGE}')
def test_the_image_links_and_its_sizes_are_those_of_binutils(tmp_path):
    model = integer_models.make()
    network = deploy.from_model(model)
    export_c.write(network, tmp_path, costs=model.costs())
    sizes = firmware.build(tmp_path)
    done = subprocess.run(
        ['arm-none-eabi-size', tmp_path / 'cortex_m4.elf'],
        capture_output=True,
        text=True,
        check=True,
    )
    text, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
    assert sizes['flash_bytes'] == text + data and sizes['ram_bytes'] == data + bss
    assert sizes['model_bytes'] == len(packed.pack(network, text=False))
    assert sizes['model_bytes'] < sizes['flash_bytes'] < sizes['model_bytes'] + 16384
    assert sizes['ram_bytes'] >= export_c.memory_bytes(network)
    assert 200 < sizes['stack_bytes'] < 8192
    # it begins with the stack's top and the address of reset, in thumb
    raw = tmp_path / 'image.bin'
    subprocess.run(
        ['arm-none-eabi-objcopy', '-O', 'binary', tmp_path / 'cortex_m4.elf', raw], check=True
    )
    stack, reset = (int.from_bytes(raw.read_bytes()[i : i + 4], 'little') for i in (0, 4))
    assert stack == 0x20000000 + 96 * 1024 and 0x08000000 < reset < 0x08040000 and reset % 2 == 1


@pytest.mark.skipif(
    not firmware.can_count(), reason=f'apt install {firmware.PACKAGE} {firmware.EMULATOR_PACKAGE}'
)
def test_instructions_are_counted_and_grow_with_the_kernel(tmp_path):
    counts = {}
    for weight in (1, 8):
        model = integer_models.make(weight=weight)
        folder = tmp_path / str(weight)
        export_c.write(deploy.from_model(model), folder, costs=model.costs())
        counts[weight] = firmware.count_instructions(folder)
    macs = model.costs()['macs']
    # a multiply-accumulate takes two loads, a multiplication and its share of the loops
    assert 2 * macs < counts[8]['window'] < 40 * macs
    assert 0 < counts[8]['decision'] < counts[8]['window']
    # the same arithmetic; only unpacking differs
    assert abs(counts[8]['window'] - counts[1]['window']) < 0.2 * counts[8]['window']


@pytest.mark.skipif(not firmware.available(), reason=f'apt install {firmware.PACKAGE}')
def test_a_program_that_does_not_compile_says_so(tmp_path):
    model = integer_models.make()
    export_c.write(deploy.from_model(model), tmp_path, costs=model.costs())
    (tmp_path / 'kws.c').write_text('#error no')
    with pytest.raises(RuntimeError, match='failed: .*#error no'):
        firmware.build(tmp_path)


def test_without_a_compiler_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(FileNotFoundError, match='apt install gcc-arm-none-eabi'):
        firmware.build(tmp_path)


def test_the_manifest_has_the_operating_points_of_every_keyword(tmp_path):
    model = integer_models.make()
    row = {'threshold': 0.7, 'false_accepts_per_hour': 0.5, 'false_reject_rate': 0.1}
    points = {'smoothing': 4, 'refractory': 12, 'test': {'keywords': {'low': row}}}
    export_c.write(deploy.from_model(model), tmp_path, costs=model.costs(), points=points)
    manifest = json.loads((tmp_path / 'manifest.json').read_text())
    assert manifest['micro']['sliding_window_size'] == 4 and manifest['refractory_windows'] == 12
    assert manifest['operating_points'] == {
        'low': {
            'probability_cutoff': 0.7,
            'false_accepts_per_hour': 0.5,
            'false_reject_rate': 0.1,
        }
    }
