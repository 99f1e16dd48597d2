"""A page that listens: the C runtime as WebAssembly, served with a packed model."""

import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import tempfile

from kws_jax.deploy import packed
from kws_jax.deploy.network import Network

PAGE = pathlib.Path(__file__).with_name('page')
_C = pathlib.Path(__file__).with_name('c')
_SOURCES = ('kws_core.c', 'kws_wasm.c')
_FLAGS = (
    '--target=wasm32', '-std=c99', '-Wall', '-Wextra', '-Wconversion', '-pedantic', '-O2',
    '-ffreestanding', '-fno-builtin', '-nostdlib', '-Iwasm',
    '-Wl,--no-entry,--strip-all,-z,stack-size=65536',
)  # fmt: skip
_TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.js': 'text/javascript; charset=utf-8',
    '.wasm': 'application/wasm',
}


def build_wasm(path) -> int:
    """Compiles the runtime to WebAssembly; returns the bytes it takes.

    What is committed as `page/kws.wasm` was made so: nobody needs a compiler to serve the page.

    Raises:
      FileNotFoundError: no compiler; names Debian's packages.
      RuntimeError: it failed; the message ends with what it printed.
    """
    for tool in ('clang', 'wasm-ld'):
        if shutil.which(tool) is None:
            raise FileNotFoundError(
                f'{tool} is missing; on Debian or Ubuntu: apt install clang lld'
            )
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / 'kws.wasm'
        done = subprocess.run(
            ['clang', *_FLAGS, *_SOURCES, '-o', made],
            cwd=_C,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f'clang failed: {done.stderr[-2000:]}')
        shutil.copyfile(made, path)
    return pathlib.Path(path).stat().st_size


def server(
    network: Network,
    *,
    name: str,
    card: dict | None = None,
    rule: dict | None = None,
    host: str = 'localhost',
    port: int = 0,
) -> http.server.ThreadingHTTPServer:
    """A server of the page with one model; `serve_forever()` runs it.

    Args:
      network: what listens.
      name: of the page.
      card: the model's, kept in its packed file.
      rule: `thresholds` by keyword, `smoothing`, `refractory`; the page has its own defaults.
      host: only `localhost` and https may use a microphone.
      port: 0 for a free one; `server_address` tells which.

    Raises:
      OSError: the port is in use.
    """
    made = {
        'model.kws': ('application/octet-stream', packed.pack(network, {'card': card or {}})),
        'about.json': (
            'application/json',
            json.dumps({'name': name, 'thresholds': {}} | (rule or {})).encode(),
        ),
    }
    return http.server.ThreadingHTTPServer((host, port), functools.partial(_Handler, made))


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, made, *arguments):
        self.made = made
        super().__init__(*arguments)

    def do_GET(self):
        name = self.path.split('?')[0].lstrip('/') or 'index.html'
        files = {path.name: path for path in PAGE.iterdir()}
        if name in self.made:
            kind, content = self.made[name]
        elif name in files:
            kind, content = _TYPES[files[name].suffix], files[name].read_bytes()
        else:
            self.send_error(404, f'there is no {name}')
            return
        self.send_response(200)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(content)))
        self.send_header('Cache-Control', 'no-store')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Says nothing: the terminal belongs to the program."""
