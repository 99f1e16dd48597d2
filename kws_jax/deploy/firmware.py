"""What an export takes on a Cortex-M4: the image is linked, its map is read."""

import pathlib
import re
import shutil
import subprocess

COMPILER = 'arm-none-eabi-gcc'
PACKAGE = 'gcc-arm-none-eabi libnewlib-arm-none-eabi'  # Debian's
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
