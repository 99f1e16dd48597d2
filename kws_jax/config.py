"""Configurations of programs: a Python file with `get_config(variant='')`, and overrides on the
command line.

A program is flags, a configuration, one call:

    _WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.', required=True)

    def main(config):
        from kws_jax import training   # here, so that --help needs no jax
        ...

    if __name__ == '__main__':
        config_lib.run(main, default='configs/sinc60.py')

It is started as `program --config=configs/sinc60.py:mini --config.search.epochs=3
--workdir=runs/a`.
"""

import ast
import difflib
import importlib.util
import os
import pathlib
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import app, flags

from kws_jax.errors import RunError

# --config is listed by --help under the program that defines it, not under this module.
flags.disclaim_key_flags()

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_WORDS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}


class ConfigError(ValueError):
    """A configuration file or an override that cannot be used."""


def run(
    main: Callable[[ml_collections.ConfigDict], Any],
    *,
    default: str | None = None,
    errors: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, RunError),
):
    """Runs a program: parses the absl flags and `--config`, calls `main(config)`, exits.

    An unknown flag, a misspelt override or a wrong value ends it with status 1 and a message that
    names the nearest valid one. So do the `errors` that `main` raises; `--traceback` shows where
    they came from. SIGTERM ends it with status 0 where `main` does not handle it.

    Args:
      main: gets the configuration, locked against new keys.
      default: of `--config`; None makes the flag required.
      errors: what a user can put right.
    """

    use_huge_pages()

    def parser(argv):
        try:
            return parse(argv)
        except (flags.Error, ConfigError) as error:
            print(
                f'{pathlib.Path(argv[0]).name}: {error}\nPass --help to see the flags.',
                file=sys.stderr,
            )
            sys.exit(1)

    def guarded(parsed):
        try:
            main(parsed[1])
        except errors as error:
            if flags.FLAGS.traceback:
                raise
            sys.exit(f'{pathlib.Path(parsed[0][0]).name}: {error}\n(--traceback shows where)')

    define_flag(default)
    flags.DEFINE_bool('traceback', False, 'Show where an error came from.')
    signal.signal(signal.SIGTERM, _leave)
    app.run(guarded, flags_parser=parser)


def _leave(number, frame):
    """What is written is whole, and finished phases are kept: nothing more to save."""
    del number, frame
    print('stopped by SIGTERM; the same command continues', file=sys.stderr)
    sys.exit(0)


def use_huge_pages():
    """Starts the process anew with malloc on huge pages that it keeps, where glibc can.

    XLA:CPU takes its memory anew at each call; page faults were 30 % of a training step.
    """
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    if sys.platform != 'linux' or 'hugetlb' in tunables:
        return
    keep = 1 << 30  # bytes; glibc gives larger pieces back to the system at once
    ours = ['hugetlb=1', f'mmap_threshold={keep}', f'trim_threshold={keep}']
    values = [tunables, *(f'glibc.malloc.{value}' for value in ours)]
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, values))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def define_flag(default: str | None = None):
    """Defines the absl flag `--config`, with `default` (None: required)."""
    flags.DEFINE_string(
        'config',
        default,
        'Configuration: FILE.py or FILE.py:VARIANT. Single values are changed with '
        '--config.KEY=VALUE, for example --config.search.epochs=3.',
        required=default is None,
    )


def parse(argv: Sequence[str]) -> tuple[list[str], ml_collections.ConfigDict]:
    """Parses a command line for which `define_flag` was called.

    Args:
      argv: program name and arguments.

    Returns:
      The program name, and the configuration with its overrides.

    Raises:
      absl.flags.Error: an unknown flag, a wrong value, a positional argument.
      ConfigError: see `load_config`.
    """
    rest, overrides = _split(list(argv))
    left = flags.FLAGS(rest)
    if len(left) > 1:
        raise flags.Error(f'unexpected argument {left[1]!r}; flags begin with --')
    return left, load_config(flags.FLAGS.config, overrides)


def load_config(source: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads `FILE.py` or `FILE.py:VARIANT` and applies overrides.

    Args:
      source: the file, from the working directory or the repository's root; the variant goes to
        its `get_config`.
      overrides: `--config.KEY=VALUE` each; KEY must exist, VALUE be of the type of what it
        replaces ('none' empties a placeholder).

    Returns:
      A locked ConfigDict.

    Raises:
      ConfigError: no such file, no `get_config` in it, a variant it refuses, an unknown key, a
        wrong value, a required value that is not set.
    """
    name, _, variant = source.partition(':')
    path = _find(name)
    module = import_file(path)
    if not hasattr(module, 'get_config'):
        raise ConfigError(f"{path} has no function get_config(variant='')")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except (ValueError, KeyError) as error:
        raise ConfigError(f'config {source}: {error}') from error
    for override in overrides:
        _override(config, override)
    for key in keys(config):
        if _required(config, key):
            raise ConfigError(f'config {source}: {key} must be set: --{key}=VALUE')
    config.lock()
    return config


def cache_folder(given=None) -> pathlib.Path:
    """Where decoded audio and compiled code are kept: `given`, or the user's own."""
    home = os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))
    return pathlib.Path(given or os.path.join(home, 'kws_jax'))


def import_config(name: str) -> types.ModuleType:
    """The module of a config file, found as `load_config` finds it.

    Raises:
      ConfigError: there is no such file.
    """
    return import_file(_find(name))


def overrides(argv: Sequence[str]) -> list[str]:
    """The `--config.KEY=VALUE` of a command line.

    >>> overrides(['study.py', '--config=a.py', '--config.seed', '3'])
    ['--config.seed=3']
    """
    return _split(list(argv))[1]


def import_file(path) -> types.ModuleType:
    """Runs a Python file, such as a config, and returns it as a module."""
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(config: ml_collections.ConfigDict, prefix: str = 'config') -> list[str]:
    """Names of all single values.

    >>> keys(ml_collections.ConfigDict({'seed': 0, 'search': {'epochs': 3}}))
    ['config.search.epochs', 'config.seed']
    """
    found = []
    for name in sorted(config):
        value, _ = _peek(config, name)
        inner = isinstance(value, ml_collections.ConfigDict) and len(value)
        found += keys(value, f'{prefix}.{name}') if inner else [f'{prefix}.{name}']
    return found


def _find(name: str) -> pathlib.Path:
    for root in (pathlib.Path(), _ROOT):
        if (root / name).is_file():
            return root / name
    folders = [
        pathlib.Path(name).parent,
        pathlib.Path('configs'),
        _ROOT / pathlib.Path(name).parent,
        _ROOT / 'configs',
    ]
    there = {
        path.name: path
        for folder in reversed(folders)
        for path in sorted(folder.glob('*.py'))
        if not path.name.startswith('_')
    }
    near = difflib.get_close_matches(pathlib.Path(name).with_suffix('.py').name, there, 1, 0.5)
    hint = (
        f'did you mean {there[near[0]]}?'
        if near
        else f'there are {", ".join(str(path) for path in there.values())}'
        if there
        else 'there is no configs folder here; run from the root of the repository'
    )
    raise ConfigError(f'--config={name}: no such file; {hint}')


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line."""
    rest, overrides = argv[:1], []
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == '--':
            rest += [argument, *arguments]
        elif argument.startswith(('--config.', '-config.')):
            if '=' not in argument:
                value = next(arguments, None)
                if value is None or value.startswith('--'):
                    raise ConfigError(f'{argument} needs a value: {argument}=VALUE')
                argument = f'{argument}={value}'
            overrides.append(argument)
        else:
            rest.append(argument)
    return rest, overrides


def _override(config: ml_collections.ConfigDict, override: str):
    key, equals, text = override.lstrip('-').partition('=')
    if not key.startswith('config.') or not equals:
        raise ConfigError(f'{override}: an override is --config.KEY=VALUE')
    *groups, last = key.split('.')[1:]
    group = config
    for name in groups:
        group = (
            _peek(group, name)[0]
            if isinstance(group, ml_collections.ConfigDict) and name in group
            else None
        )
    if not isinstance(group, ml_collections.ConfigDict) or last not in group:
        raise ConfigError(f'{override}: there is no {key}; {_nearest(config, key)}')
    old, kind = _peek(group, last)
    if isinstance(old, ml_collections.ConfigDict):
        inside = ', '.join(keys(old, key)) or 'nothing, it is empty'
        raise ConfigError(f'{override}: {key} is a group; set one of {inside}')
    try:
        group[last] = _value(text, old, kind)
    except (ValueError, TypeError, SyntaxError):
        raise ConfigError(
            f'{override}: {key} must be {_expected(old, kind)}, got {text!r}'
        ) from None


def _peek(group: ml_collections.ConfigDict, name: str) -> tuple[Any, type]:
    """Value and type; None for a placeholder that is not set, required or not."""
    try:
        return group[name], group.get_type(name)
    except ml_collections.config_dict.RequiredValueError:
        return None, group.get_ref(name).get_type()


def _required(config: ml_collections.ConfigDict, key: str) -> bool:
    *groups, last = key.split('.')[1:]
    for name in groups:
        config = config[name]
    try:
        config[last]
    except ml_collections.config_dict.RequiredValueError:
        return True
    return False


def _nearest(config: ml_collections.ConfigDict, key: str) -> str:
    # Without the common prefix, which would make everything look alike.
    valid = [name.removeprefix('config.') for name in keys(config)]
    key = key.removeprefix('config.')
    same = [name for name in valid if name.rpartition('.')[2] == key.rpartition('.')[2]]
    # First the right name in a wrong group or none.
    near = same if len(same) == 1 else difflib.get_close_matches(key, valid, 1, 0.6)
    if near:
        return f'did you mean config.{near[0]}?'
    return f'there are {", ".join("config." + name for name in valid)}'


def _value(text: str, old: Any, kind: type) -> Any:
    """Converts `text` to `kind`; containers also to the type that all their elements have."""
    if text.lower() == 'none' and kind is not str and old is None:
        return None
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    if kind is type(None):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    if kind in (tuple, list):
        element = _element(old)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = tuple(text.strip('()[]').split(','))  # words without quotes
        value = value if isinstance(value, tuple | list) else (value,)
        wanted = (int, float) if element is float else element
        if element and not all(
            isinstance(x, wanted) and (element is bool or not isinstance(x, bool)) for x in value
        ):
            raise ValueError(text)
        return kind(float(x) if element is float else x for x in value)
    raise TypeError(kind)


def _element(old: Any) -> type | None:
    kinds = {type(x) for x in old or ()}
    return float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None


def _expected(old: Any, kind: type) -> str:
    element = _element(old) if kind in (tuple, list) else None
    return f'{kind.__name__} of {element.__name__}' if element else f'of type {kind.__name__}'
