"""Checkpoints: what is read back, and what happens when it cannot be."""

import collections
import os
import shutil
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl import logging

from kws_jax.training import checkpoints

Moments = collections.namedtuple('Moments', 'mean count')


def a_tree(value=1.0):
    return {
        'params': {'stem': jnp.full((2, 3), value), 'half': jnp.full(3, value, jnp.bfloat16)},
        'opt': (Moments(np.full(2, -value), np.int32(7)), None),
        'key': np.array([1, 2**32 - 1], np.uint32),
        'mask': np.array([True, False]),
        'empty': np.zeros((0, 4), np.float32),
        'bytes': np.array([-1, 2], np.int8),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def warnings_logged(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: seen.append(text % args))
    return seen


def test_everything_comes_back_with_its_bits_and_types(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path)
    assert saved.restore(a_tree()) is None and saved.last() is None
    saved.save(3, a_tree(2.5), {'loss': 0.1, 'config': {'kernels': [3, 5]}})
    step, tree, metadata = checkpoints.Checkpoints(tmp_path).restore(a_tree())
    assert (step, metadata) == (3, {'loss': 0.1, 'config': {'kernels': [3, 5]}})
    same(tree, a_tree(2.5))
    assert tree['params']['half'].dtype == ml_dtypes.bfloat16


def test_the_last_two_stay_and_nothing_else(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path)
    for step in (1, 5, 10, 100):
        saved.save(step, a_tree())
    assert saved.steps() == [10, 100]
    assert sorted(os.listdir(tmp_path)) == ['00000010', '00000100']


def test_a_killed_save_or_removal_leaves_nothing_behind(tmp_path):
    checkpoints.Checkpoints(tmp_path).save(1, a_tree())
    (tmp_path / 'trash-00000000').mkdir()
    (tmp_path / '00000002.orbax-checkpoint-tmp').mkdir()
    assert checkpoints.Checkpoints(tmp_path).restore(a_tree()).step == 1
    assert os.listdir(tmp_path) == ['00000001']


def files_of(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def truncate_all(folder):
    for path in files_of(folder):
        os.truncate(path, path.stat().st_size // 2)


def truncate_largest(folder):
    path = max(files_of(folder), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def flip_in_data(folder):
    path = max((folder / 'leaves').rglob('d/*'), key=lambda p: p.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)


def change_index(folder):
    path = folder / 'index' / 'metadata'
    text = path.read_text()
    assert '"loss": 0.5' in text
    path.write_text(text.replace('"loss": 0.5', '"loss": 0.7'))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without(name):
    def remove(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


DAMAGES = {
    'empty folder': empty,
    'no data': without('leaves'),
    'no index': without('index'),
    'no manifest': without('leaves/manifest.ocdbt'),
    'all files cut': truncate_all,
    'largest file cut': truncate_largest,
    'bytes flipped': flip_in_data,
    'index changed': change_index,
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_last_one_falls_back_to_the_one_before(tmp_path, warnings_logged, damage):
    noise = np.random.default_rng(0).normal(size=3000)
    saved = checkpoints.Checkpoints(tmp_path)
    for step in (1, 2):
        saved.save(step, {'x': noise + step}, {'loss': 0.5})
    damage(saved.path(2))
    saved = checkpoints.Checkpoints(tmp_path)
    step, tree, _ = saved.restore({'x': noise})
    assert step == 1
    np.testing.assert_array_equal(tree['x'], noise + 1)
    assert len(warnings_logged) == 1 and str(saved.path(2)) in warnings_logged[0]
    # The way on: the same step is saved anew.
    saved.save(2, {'x': noise + 2})
    assert checkpoints.Checkpoints(tmp_path).restore({'x': noise}).step == 2


def test_silent_damage_of_one_leaf_is_found_by_its_checksum(tmp_path, warnings_logged, monkeypatch):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, a_tree())
    pack = checkpoints._pack

    def flipped(tree):
        data, index = pack(tree)
        data = data.copy()
        data[next(e['start'] for e in index['leaves'] if e['path'] == 'params/stem')] ^= 1
        return data, index

    monkeypatch.setattr(checkpoints, '_pack', flipped)
    saved.save(2, a_tree())
    assert checkpoints.Checkpoints(tmp_path).restore(a_tree()).step == 1
    assert 'checksum of params/stem' in warnings_logged[0]


def test_a_damaged_one_beyond_the_new_one_is_removed(tmp_path, warnings_logged):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(10, a_tree())
    saved.save(20, a_tree())
    empty(saved.path(20))
    assert saved.restore(a_tree()).step == 10
    saved.save(15, a_tree())
    assert sorted(os.listdir(tmp_path)) == ['00000010', '00000015']
    assert warnings_logged


def test_all_damaged_is_an_error_that_names_the_way_out(tmp_path, warnings_logged):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, a_tree())
    empty(saved.path(1))
    with pytest.raises(checkpoints.CheckpointError, match=f'delete {tmp_path}'):
        saved.restore(a_tree())


@pytest.mark.parametrize(
    'template, message',
    [
        ({'a': np.zeros(3, np.float32), 'b': np.zeros(2)}, 'has no leaf b: .*another workdir'),
        ({'a': np.zeros(4, np.float32)}, r'has a as float32\[3\], but float32\[4\] is needed'),
        ({'a': np.zeros(3, np.int32)}, r'has a as float32\[3\], but int32\[3\] is needed'),
        ({}, 'has a leaf a that is not needed'),
    ],
)
def test_another_structure_is_an_error_that_names_the_first_difference(tmp_path, template, message):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, {'a': np.zeros(3, np.float32)})
    with pytest.raises(checkpoints.CheckpointError, match=message):
        saved.restore(template)


def test_a_full_disk_is_named_and_leaves_what_was_saved(tmp_path, monkeypatch):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, a_tree(1.0))

    def full(self, path, **_):
        (path.parent / (path.name + '.orbax-checkpoint-tmp')).mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.Checkpointer, 'save', full)
        with pytest.raises(checkpoints.DiskFull) as error:
            saved.save(2, a_tree(2.0))
    for part in (str(tmp_path), 'bytes free', str(saved.path(1)), 'step 2'):
        assert part in str(error.value)
    assert os.listdir(tmp_path) == ['00000001']
    same(checkpoints.Checkpoints(tmp_path).restore(a_tree()).tree, a_tree(1.0))
    saved.save(2, a_tree(2.0))


def test_another_error_of_a_save_stays_what_it_is(tmp_path, monkeypatch):
    def refuse(self, path, **_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, 'save', refuse)
    with pytest.raises(PermissionError):
        checkpoints.Checkpoints(tmp_path).save(2, a_tree())


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match='keep must be at least 2'):
        checkpoints.Checkpoints(tmp_path, keep=1)
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, a_tree())
    with pytest.raises(ValueError, match='step 1 has a checkpoint already'):
        saved.save(1, a_tree())
    with pytest.raises(TypeError, match='leaf key must be a numeric array.*key_data'):
        saved.save(2, {'key': jax.random.key(0)})
    with pytest.raises(TypeError, match='leaf name must be'):
        saved.save(2, {'name': 'sinc'})


def test_hundreds_of_small_leaves_are_saved_in_half_a_second(tmp_path):
    rng = np.random.default_rng(0)
    tree = {f'leaf{i}': rng.normal(size=2500).astype(np.float32) for i in range(500)}
    saved = checkpoints.Checkpoints(tmp_path)
    seconds = []
    for step in range(5):
        start = time.perf_counter()
        saved.save(step, tree)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
