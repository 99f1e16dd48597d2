"""What scoring a test folder says of classes that it has no recordings of."""

import types

import numpy as np

from kws_jax import evaluate


def test_every_class_without_recordings_is_named(folder, tmp_path, log):
    names = ('yes', 'no', 'up', 'silence', 'unknown')
    model = types.SimpleNamespace(
        labels=names,
        predictor=lambda: lambda audio: np.zeros((len(audio), 5), np.float32),
        costs=dict,
    )
    test = folder('test')
    test.add('yes/a_nohash_0.wav')
    test.add('no/a_nohash_0.wav').write_bytes(b'')
    (test.root / '_silence_').mkdir()
    evaluate.evaluate_folder(model, test.root, cache_dir=tmp_path / 'cache')
    assert f'{test.root} has no recordings of no, up, silence, unknown' in log.messages
    for label in ('no', 'up', '_silence_', '_unknown_'):
        test.add(f'{label}/b_nohash_0.wav')
    log.clear()
    evaluate.evaluate_folder(model, test.root, cache_dir=tmp_path / 'cache')
    assert 'no recordings of' not in log.text
