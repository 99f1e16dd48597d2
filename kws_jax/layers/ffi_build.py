"""Builds a C++ source next to this file into a shared library, once per machine and version.

The compiler is `$CXX`, or else the first of c++, g++ and clang++ on the path. Libraries are kept
in `$XDG_CACHE_HOME/kws_jax` (`~/.cache/kws_jax`), named by a hash of the source, the flags, the
compiler, the processor and the version of jaxlib. Several processes may build at once: each writes
a file of its own and moves it into place.
"""

import ctypes
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile

import jax
import jaxlib

FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fPIC', '-shared', '-pthread')
# Not every compiler knows the first on every processor; without either code is portable and slower.
TUNING = (('-march=native',), ('-mcpu=native',), ())
SECONDS = 300


class BuildError(Exception):
    """No library could be made; the message says why."""


def find_compiler() -> list[str]:
    """Command line of the C++ compiler, as a list; raises `BuildError` if there is none."""
    wanted = os.environ.get('CXX', '').strip()
    if wanted:
        command = shlex.split(wanted)
        if shutil.which(command[0]) is None:
            raise BuildError(f'the compiler named by CXX={wanted!r} was not found')
        return command
    for name in ('c++', 'g++', 'clang++'):
        if path := shutil.which(name):
            return [path]
    raise BuildError('no C++ compiler (c++, g++ or clang++) on the path')


def cache_directory() -> pathlib.Path:
    """Folder of this user that keeps libraries; made if absent, a fresh one if it can't be."""
    home = os.environ.get('XDG_CACHE_HOME', '').strip() or os.path.expanduser('~/.cache')
    folder = pathlib.Path(home) / 'kws_jax'
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        # A fixed name in a folder that all may write to would let others plant a library there.
        return pathlib.Path(tempfile.mkdtemp(prefix='kws_jax-'))


def load_library(source: pathlib.Path) -> ctypes.CDLL:
    """Loads the library of C++ file `source`, building it first if it isn't in the cache.

    Raises:
        BuildError: no compiler, it failed, or what it made can't be loaded.
    """
    try:
        compiler = find_compiler()
        name = f'{source.stem}-{_fingerprint(source, compiler)}.so'
        library = cache_directory() / name
        if not library.exists():
            _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error


def register(source: pathlib.Path, handlers: tuple[str, ...]) -> None:
    """Makes the FFI handlers of C++ file `source` known to XLA's CPU backend, by their names.

    Raises:
        BuildError: as `load_library`.
    """
    library = load_library(source)
    for name in handlers:
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform='cpu')


def _sources(source: pathlib.Path) -> list[pathlib.Path]:
    """The file and the headers of ours that it includes."""
    found = re.findall(r'^#include "([^"]+)"', source.read_text(), re.MULTILINE)
    headers = [source.parent / name for name in found]
    return [source, *(header for header in headers if header.exists())]


def _fingerprint(source: pathlib.Path, compiler: list[str]) -> str:
    version = _run([*compiler, '--version'])
    if version.returncode:
        raise BuildError(f'{shlex.join(compiler)} --version failed: {_last_line(version.stderr)}')
    parts = (
        *(part.read_bytes() for part in _sources(source)),
        repr((compiler, FLAGS, TUNING)).encode(),
        version.stdout.encode(),
        _processor().encode(),
        jaxlib.__version__.encode(),
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Name and instruction sets of this processor: a home folder may be shared by machines."""
    names = {platform.machine(), platform.processor()}
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            fields = ('model name', 'flags', 'Features', 'CPU part')
            names.update(line.strip() for line in lines if line.startswith(fields))
    except OSError:
        pass
    return '\n'.join(sorted(names))


def _compile(compiler: list[str], source: pathlib.Path, library: pathlib.Path) -> None:
    handle, unfinished = tempfile.mkstemp(
        prefix=f'{source.stem}-', suffix='.tmp', dir=library.parent
    )
    os.close(handle)
    try:
        for tuning in TUNING:
            result = _run([
                *compiler,
                *FLAGS,
                *tuning,
                f'-I{jax.ffi.include_dir()}',
                str(source),
                '-o',
                unfinished,
            ])
            if result.returncode == 0:
                os.replace(unfinished, library)
                return
        raise BuildError(f'{shlex.join(compiler)} failed: {_last_line(result.stderr)}')
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else 'no message'
