"""An export on a Cortex-M4: the image is linked, its map read, its instructions counted."""

import pathlib
import re
import shutil
import subprocess

COMPILER = 'arm-none-eabi-gcc'
PACKAGE = 'gcc-arm-none-eabi libnewlib-arm-none-eabi'  # Debian's
EMULATOR, EMULATOR_PACKAGE = 'qemu-system-arm', 'qemu-system-arm'
_EMULATE = ('-M', 'mps2-an386', '-nographic', '-monitor', 'none', '-serial', 'none')
_EMULATE += ('-icount', 'shift=0,sleep=off', '-semihosting-config', 'enable=on,target=native')
_FLAGS = ('-mcpu=cortex-m4', '-mthumb', '-std=c99', '-Os', '-ffunction-sections')
_FLAGS += ('-fdata-sections', '-fcallgraph-info=su')
_LINK = ('-mcpu=cortex-m4', '-mthumb', '-nostartfiles', '-specs=nano.specs', '-Wl,--gc-sections')


def available() -> bool:
    """Whether the compiler is installed."""
    return shutil.which(COMPILER) is not None


def build(folder) -> dict:
    """Links the C export in `folder` for a Cortex-M4, as `cortex_m4.elf` with its map.

    Returns:
      `flash_bytes`: code, constants, the model and the image of initialised data; `ram_bytes`:
      static memory, the buffer of one hop included; `stack_bytes`: the deepest chain of calls from
      reset on, by the compiler's own figures; `model_bytes`: the packed model's part of the flash.

    Raises:
      FileNotFoundError: no compiler; names Debian's packages.
      RuntimeError: it failed; the message ends with what it printed.
    """
    if not available():
        raise FileNotFoundError(
            f'{COMPILER} is missing; on Debian or Ubuntu: apt install {PACKAGE}'
        )
    folder = pathlib.Path(folder)
    names = ('kws_core', 'kws', 'kws_model', 'cortex_m4')
    for name in names:
        _run(folder, *_FLAGS, '-c', f'{name}.c', '-o', f'{name}.m4.o')
    objects = [f'{name}.m4.o' for name in names]
    script, the_map = '-Wl,-T,cortex_m4.ld', '-Wl,-Map=cortex_m4.map'
    _run(folder, *_LINK, script, the_map, *objects, '-o', 'cortex_m4.elf')
    sizes = section_sizes((folder / 'cortex_m4.map').read_text())
    model = re.search(
        r'^extern const uint8_t kws_model\[(\d+)\]', (folder / 'kws_model.c').read_text(), re.M
    )
    graphs = [path.read_text() for path in sorted(folder.glob('*.ci'))]
    return {
        'flash_bytes': sum(sizes.get(name, 0) for name in ('.text', '.ARM.exidx', '.data')),
        'ram_bytes': sum(sizes.get(name, 0) for name in ('.data', '.bss')),
        'stack_bytes': deepest_stack(graphs, 'reset'),
        'model_bytes': int(model.group(1)),
    }


def can_count() -> bool:
    """Whether the compiler and the emulator are installed."""
    return available() and shutil.which(EMULATOR) is not None


def count_instructions(folder, optimize: str = '-O2') -> dict:
    """Instructions that the C export in `folder` takes on an emulated Cortex-M4.

    qemu runs one instruction a nanosecond of its clock, and the program reads the processor's
    timer, of 25 MHz: counts are multiples of 40. They are no cycles: loads, multiplications of 64
    bits and taken branches take several, so that real ones are higher.

    Returns:
      `window`: of one whole window; `decision`: of one decision of a stream, every hop.

    Raises:
      FileNotFoundError: no compiler or emulator; names Debian's packages.
      RuntimeError: it failed, or a loop of known length was counted wrong.
    """
    if not can_count():
        raise FileNotFoundError(
            f'{COMPILER} or {EMULATOR} is missing; on Debian or Ubuntu: '
            f'apt install {PACKAGE} {EMULATOR_PACKAGE}'
        )
    folder = pathlib.Path(folder)
    script = (folder / 'cortex_m4.ld').read_text()
    for name, origin in (('FLASH', '0x00000000'), ('RAM', '0x20000000')):  # the emulated board's
        script = re.sub(
            rf'({name} .*?ORIGIN = )\w+(, LENGTH = )\w+', rf'\g<1>{origin}\g<2>4M', script
        )
    (folder / 'cortex_m4_count.ld').write_text(script)
    names = ('kws_core', 'kws', 'kws_model', 'cortex_m4_count')
    flags = [optimize if flag == '-Os' else flag for flag in _FLAGS[:-1]]
    sources = [f'{name}.c' for name in names]
    _run(folder, *flags, *_LINK[2:], '-Wl,-T,cortex_m4_count.ld', *sources, '-o', 'count.elf')
    done = subprocess.run(
        [EMULATOR, *_EMULATE, '-kernel', 'count.elf'],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    told = dict(re.findall(r'^(\w+) (\d+)$', done.stdout + done.stderr, re.MULTILINE))
    if done.returncode or not {'loop', 'window', 'decision'} <= set(told):
        raise RuntimeError(f'{EMULATOR} failed: {(done.stdout + done.stderr)[-2000:]}')
    counts = {name: 40 * int(told[name]) for name in ('loop', 'window', 'decision')}
    if abs(counts.pop('loop') - 2_000_000) > 2_000:
        raise RuntimeError(f'{EMULATOR} counts a loop of 2,000,000 instructions as {told["loop"]}')
    return counts


def _run(folder, *arguments):
    done = subprocess.run(
        [COMPILER, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f'{COMPILER} failed: {done.stderr[-2000:]}')


def section_sizes(text: str) -> dict[str, int]:
    """Bytes of each output section, from a linker map.

    >>> section_sizes('.text           0x08000000     0x1f4c\\n .text  0x0 0x10 a.o\\n')
    {'.text': 8012}
    """
    found = re.findall(r'^(\.[\w.]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)', text, re.MULTILINE)
    return {name: int(size, 16) for name, size in found}


def deepest_stack(graphs, start: str) -> int:
    """Bytes of the deepest chain of calls from a function, by GCC's call graphs.

    Args:
      graphs: contents of the `.ci` files that `-fcallgraph-info=su` writes.
      start: name of the function.

    Functions of other libraries, such as memset, are counted as nothing.

    Raises:
      ValueError: calls go round in circles, so that no depth is certain.
    """
    own, calls = {}, {}
    for text in graphs:
        for title, label in re.findall(r'node: \{ title: "([^"]+)" label: "([^"]*)"', text):
            if size := re.search(r'(\d+) bytes', label):
                own[title] = int(size.group(1))
        for source, target in re.findall(
            r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text
        ):
            calls.setdefault(source, set()).add(target)

    def depth(name, above):
        if name in above:
            raise ValueError(f'{name} calls itself: the stack has no certain depth')
        inner = (depth(target, above | {name}) for target in calls.get(name, ()))
        return own.get(name, 0) + max(inner, default=0)

    return depth(start, frozenset())
