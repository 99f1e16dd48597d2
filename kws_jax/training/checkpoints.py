"""Checkpoints that survive: checksummed, two kept, a damaged one falls back to the one before it.

A state of a search has hundreds of small leaves, and Orbax pays about a millisecond for each. So
the leaves are packed into one byte array, with an index (path, dtype, shape, place, CRC-32) beside
it, and Orbax writes those two. It writes to a temporary folder and renames it, hence a killed
process leaves no half checkpoint under a valid name.
"""

import contextlib
import errno
import json
import pathlib
import shutil
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from kws_jax.errors import RunError

_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ('No space left on device', 'ENOSPC', 'Disk quota exceeded', 'EDQUOT')
_TRASH = 'trash-'


class CheckpointError(RunError):
    """No checkpoint can be read, or the saved one does not fit the program that asks for it."""


class DiskFull(RunError):
    """The disk has no space left; what was saved before is intact."""


class Restored(NamedTuple):
    """What a checkpoint holds: the step, the tree with numpy leaves, the metadata."""

    step: int
    tree: Any
    metadata: dict


def is_disk_full(error: BaseException | None) -> bool:
    """Says whether `error`, or an error that caused it, comes from a disk or quota without space.

    >>> is_disk_full(OSError(errno.ENOSPC, 'No space left on device'))
    True
    >>> is_disk_full(ValueError('shape'))
    False
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in _FULL_ERRNOS:
                return True
        elif any(word in str(error) for word in _FULL_WORDS):  # as tensorstore's ValueError
            return True
        error = error.__cause__ or error.__context__
    return False


class Checkpoints:
    """The checkpoints of one run, in `directory/<step>/`; the newest `keep` stay.

    Args:
      directory: folder, made if absent; nothing else may live in it.
      keep: how many checkpoints stay, >= 2 so that there is one to fall back to.

    Raises:
      ValueError: if `keep` < 2.
    """

    def __init__(self, directory, *, keep: int = 2):
        if keep < 2:
            raise ValueError(
                f'keep must be at least 2, or nothing is left to fall back to, got {keep}'
            )
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._damaged: set[int] = set()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def steps(self) -> list[int]:
        """Steps of the checkpoints there, ascending, the damaged ones that were found left out."""
        found = (int(p.name) for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir())
        return sorted(step for step in found if step not in self._damaged)

    def path(self, step: int) -> pathlib.Path:
        """Folder of the checkpoint of `step`."""
        return self.directory / f'{step:08d}'

    def last(self) -> pathlib.Path | None:
        """Folder of the newest checkpoint not known to be damaged, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(self, step: int, tree: Any, metadata: dict | None = None) -> pathlib.Path:
        """Writes `tree` as the checkpoint of `step`, then removes all but the newest `keep`.

        Args:
          step: optimizer steps done, >= 0.
          tree: any pytree of numeric arrays and scalars; random keys as raw uint32
            (`jax.random.key_data`).
          metadata: what JSON can hold.

        Returns:
          The folder written.

        Raises:
          DiskFull: no space; earlier checkpoints stay as they were.
          TypeError: a leaf is not a numeric array.
          ValueError: there is a good checkpoint of `step` already.
        """
        target = self.path(step)
        if target.exists():
            if step not in self._damaged:
                raise ValueError(f'step {step} has a checkpoint already: {target}')
            self._discard(target)
        data, index = _pack(tree)
        # Through JSON once, so that the checksum is that of what will be read back (tuples become
        # lists).
        index = json.loads(json.dumps({**index, 'step': step, 'metadata': metadata or {}}))
        try:
            with _quiet():
                _checkpointer().save(
                    target,
                    args=ocp.args.Composite(
                        leaves=ocp.args.PyTreeSave({'bytes': data}),
                        index=ocp.args.JsonSave({'crc': _json_crc(index), **index}),
                    ),
                )
        except Exception as error:
            self._sweep()
            if is_disk_full(error):
                raise self.disk_full(f'saving step {step} ({data.nbytes} bytes)') from error
            raise
        self._damaged.discard(step)
        good = [s for s in self.steps() if s <= step][-self._keep :]
        for path in self.directory.iterdir():
            # A checkpoint beyond `step` is one that a restart fell back from.
            if path.name.isdecimal() and int(path.name) not in good:
                self._discard(path)
        return target

    def restore(self, template: Any) -> Restored | None:
        """Reads the newest whole checkpoint, and warns of each damaged one that it passes over.

        Args:
          template: pytree with the structure, shapes and dtypes wanted; its values do not matter.

        Returns:
          `(step, tree, metadata)` with numpy leaves in the structure of `template`, or None if
          nothing was ever saved.

        Raises:
          CheckpointError: all are damaged, or a whole one has other leaves than `template`.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                index, leaves = self._read(step)
            except Exception as error:  # damage has no class of its own in Orbax and tensorstore
                reason = str(error).strip().splitlines() or [type(error).__name__]
                problems.append(f'{self.path(step)}: {reason[0]}')
                self._damaged.add(step)
                logging.warning(
                    'checkpoint %s is damaged (%s); falling back to the one before it',
                    self.path(step),
                    reason[0],
                )
                continue
            tree = _unpack(index, leaves, template, self.path(step))
            return Restored(step, tree, index['metadata'])
        if problems:
            raise CheckpointError(
                'every checkpoint is damaged:\n  '
                + '\n  '.join(problems)
                + f'\nTo start from the beginning, delete {self.directory}.'
            )
        return None

    def disk_full(self, doing: str) -> DiskFull:
        """The error that says that the disk is full while `doing`, and what is safe."""
        steps = self.steps()
        safe = (
            f'The last good checkpoint is {self.path(steps[-1])} (step {steps[-1]}).'
            if steps
            else 'Nothing was saved before.'
        )
        free = shutil.disk_usage(self.directory).free
        return DiskFull(
            f'no space left for {self.directory} ({free} bytes free) while {doing}. {safe} '
            'Free some space and start the same command again: it continues from there.'
        )

    def _read(self, step: int) -> tuple[dict, list[np.ndarray]]:
        with _quiet():
            item = _checkpointer().restore(
                self.path(step),
                args=ocp.args.Composite(
                    leaves=ocp.args.PyTreeRestore(), index=ocp.args.JsonRestore()
                ),
            )
        index, data = dict(item.index), np.asarray(item.leaves['bytes'])
        if index.pop('crc') != _json_crc(index):
            raise CheckpointError('checksum of the index is wrong')
        if index['step'] != step:
            raise CheckpointError(f'it holds step {index["step"]}')
        leaves = []
        for entry in index['leaves']:
            raw = data[entry['start'] : entry['start'] + entry['bytes']]
            if raw.nbytes != entry['bytes'] or zlib.crc32(raw) != entry['crc']:
                raise CheckpointError(f'checksum of {entry["path"]} is wrong')
            leaves.append(
                np.frombuffer(raw.tobytes(), np.dtype(entry['dtype'])).reshape(entry['shape'])
            )
        return index, leaves

    def _discard(self, path: pathlib.Path):
        # Renamed first: a kill during the removal must not leave half a folder under a valid name.
        trash = path.with_name(_TRASH + path.name)
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _sweep(self):
        """Removes what a killed or failed save left."""
        for path in self.directory.iterdir():
            if path.name.startswith(_TRASH) or 'orbax-checkpoint-tmp' in path.name:
                shutil.rmtree(path, ignore_errors=True)


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler('leaves', 'index'))


@contextlib.contextmanager
def _quiet():
    """Hides what Orbax logs: a dozen lines a save, and errors that it raises as well."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.FATAL))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _json_crc(value: dict) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of `tree` with their paths.

    >>> named_leaves({'stem': {'w': 1.0}})
    [('stem/w', 1.0)]
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in flat]


def to_host(tree: Any) -> Any:
    """Leaves of `tree` as numpy arrays of the dtypes that JAX would give them (int32 for 3, unless
    x64 is on).

    Raises:
      TypeError: a leaf is not a numeric array.

    >>> to_host({'step': 3})
    {'step': array(3, dtype=int32)}
    """
    leaves = []
    for path, leaf in named_leaves(jax.device_get(tree)):
        array = _numeric(path, leaf)
        leaves.append(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _pack(tree: Any) -> tuple[np.ndarray, dict]:
    entries, chunks, start = [], [], 0
    for path, leaf in named_leaves(jax.device_get(tree)):
        array = _numeric(path, leaf)
        raw = array.tobytes()
        entries.append({
            'path': path,
            'dtype': array.dtype.name,
            'shape': list(array.shape),
            'start': start,
            'bytes': len(raw),
            'crc': zlib.crc32(raw),
        })
        chunks.append(raw)
        start += len(raw)
    # A byte more than needed, as Orbax refuses an array without elements.
    return np.frombuffer(b''.join(chunks) + b'\0', np.uint8), {'leaves': entries}


def _numeric(path: str, leaf: Any) -> np.ndarray:
    try:
        array = np.asarray(leaf)
    except TypeError:
        array = np.asarray(None)
    if array.dtype.kind in 'OSUMm':
        raise TypeError(
            f'leaf {path} must be a numeric array, got {type(leaf).__name__}; save a random key as '
            'raw uint32 (jax.random.key_data), and what is no number as metadata'
        )
    return array


def _unpack(index: dict, leaves: list[np.ndarray], template: Any, path: pathlib.Path) -> Any:
    saved = {entry['path']: leaf for entry, leaf in zip(index['leaves'], leaves)}
    wanted = named_leaves(template)
    way_out = 'the configuration or the program changed; use another workdir, or delete this one'
    for name, leaf in wanted:
        if name not in saved:
            raise CheckpointError(f'{path} has no leaf {name}: {way_out}')
        have, want = saved[name], _describe(leaf)
        if (have.shape, have.dtype.name) != want:
            raise CheckpointError(
                f'{path} has {name} as {have.dtype.name}{list(have.shape)}, but '
                f'{want[1]}{list(want[0])} is needed: {way_out}'
            )
    extra = [name for name in saved if name not in dict(wanted)]
    if extra:
        raise CheckpointError(f'{path} has a leaf {extra[0]} that is not needed: {way_out}')
    return jax.tree.unflatten(jax.tree.structure(template), [saved[name] for name, _ in wanted])


def _describe(leaf: Any) -> tuple[tuple[int, ...], str]:
    if not hasattr(leaf, 'shape'):
        leaf = np.asarray(leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype).name
