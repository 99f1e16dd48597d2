"""The run directory: one process at a time, one configuration, files that are whole or absent."""

import contextlib
import fcntl
import json
import os
import pathlib

from absl import logging

from kws_jax.errors import RunError
from kws_jax.training import checkpoints


class ConfigMismatch(RunError):
    """The run directory holds a run with another configuration."""


@contextlib.contextmanager
def only_one(workdir: pathlib.Path):
    """Context in which no other process may enter for the same `workdir`; a kill frees it.

    Raises:
      RuntimeError: another process is in it.
    """
    with open(workdir / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f'another process runs in {workdir}; wait for it, stop it, or use another workdir'
            ) from None
        except OSError:  # a file system without locks
            logging.warning(
                '%s cannot be locked; make sure that no other process runs in it', workdir
            )
        yield


@contextlib.contextmanager
def full_disk_named(saved: checkpoints.Checkpoints):
    """Context that turns any error about a full disk into `checkpoints.DiskFull`."""
    try:
        yield
    except checkpoints.DiskFull:
        raise
    except Exception as error:
        if checkpoints.is_disk_full(error):
            raise saved.disk_full('writing to the run directory') from error
        raise


def settle_config(workdir: pathlib.Path, config: dict) -> dict:
    """Writes `config` to `config.json`, or compares it with what is there.

    Returns:
      `config` as JSON gives it back.

    Raises:
      ConfigMismatch: they differ.
    """
    config = json.loads(
        json.dumps(config, default=lambda x: x.to_dict() if hasattr(x, 'to_dict') else str(x))
    )
    path = workdir / 'config.json'
    if not path.exists():
        write_json(path, config)
        return config
    for key, (there, here) in _differences(json.loads(path.read_text()), config):
        raise ConfigMismatch(
            f'{workdir} holds a run with {key}={there}, but now it is {here}; '
            'use another workdir, or delete this one'
        )
    return config


def _differences(a, b, key=''):
    if isinstance(a, dict) and isinstance(b, dict):
        for name in [*a, *(name for name in b if name not in a)]:
            yield from _differences(
                a.get(name, '(absent)'), b.get(name, '(absent)'), f'{key}.{name}'.lstrip('.')
            )
    elif a != b:
        yield key, (a, b)


def write_json(path: pathlib.Path, value: dict):
    """Writes a JSON file that a kill leaves either absent or whole."""
    new = path.with_name(path.name + '.new')
    new.write_text(json.dumps(value, indent=1) + '\n')
    os.replace(new, path)
