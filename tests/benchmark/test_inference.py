"""Runtimes of a model against each other, on a small one and for a moment."""

import shutil

import integer_models
import numpy as np
import pytest

from kws_jax import deploy
from kws_jax.benchmark import inference
from kws_jax.deploy import export_c, export_litert, packed

pytestmark = pytest.mark.skipif(
    not (shutil.which('make') and shutil.which('cc')), reason='apt install make gcc'
)


def float_of(made):
    """The network before it was quantized."""
    return type(made)(made.front_end, made.architecture, made.labels, made.params, made.averages)


def test_every_runtime_gets_a_row_and_absent_ones_say_what_to_install(monkeypatch):
    model, audio = integer_models.make(weight=2, activation=4), integer_models.clips(8)
    network = deploy.from_model(model)
    trained = np.asarray(model.predictor()(audio)).argmax(axis=1)
    absent = inference.missing
    monkeypatch.setattr(
        inference, 'missing', lambda name: 'some-package' if name == 'jax_float' else absent(name)
    )
    rows = inference.measure(model, float_of(model), audio, trained, rounds=1, seconds=0.01)
    assert [row['name'] for row in rows] == list(inference.RUNTIMES)
    by_name = {row['name']: row for row in rows}
    ours = by_name['c']
    assert ours['peer'] is None and ours['ours'] > 0 and ours['stream_seconds'] > 0
    assert ours['weight_bytes'] == len(packed.stream(network))
    assert ours['file_bytes'] == len(packed.pack(network))
    assert ours['ram_bytes'] == export_c.memory_bytes(network)
    integers = deploy.run(network, audio).argmax(axis=1)
    assert ours['agreement'] == ours['accuracy'] == (integers == trained).mean()
    assert ours['trained_accuracy'] == 1.0
    assert by_name['jax_float']['note'] == 'not installed (pip install some-package)'
    assert by_name['jax_integer']['agreement'] == ours['agreement']
    for name, row in by_name.items():
        if name != 'c' and 'note' not in row:
            assert row['ratio'] == pytest.approx(row['ours'] / row['peer'])
            # what keeps nothing from window to window runs a whole one at every decision
            hops = 16000 / (8 * network.front_end.stride)
            assert row['stream_seconds'] == pytest.approx(row['peer'] * hops)
    if 'note' not in by_name['litert_int8']:
        bits = export_litert.stored_bits(network)
        assert set(bits.values()) == {8, 32} and by_name['litert_int8']['weight_bytes'] > 0
        assert by_name['litert_float']['agreement'] == 1.0
    text = inference.table({'rows': rows})
    assert 'not installed' in text and all(name in text for name in inference.RUNTIMES)


def test_what_fails_in_a_process_is_named(tmp_path):
    with pytest.raises(RuntimeError, match='(?s)c failed.*audio.npy'):
        inference._start('c', tmp_path, seconds=0.01, predict=False)
