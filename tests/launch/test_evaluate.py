"""Testing a model on a folder: accuracy, JSON, errors."""

import json
import logging
import pathlib
import subprocess
import sys

import integer_models
import jax
import numpy as np
import pytest
import soundfile

from kws_jax import deploy, evaluate, frontends, network
from kws_jax import model as model_lib
from kws_jax.model import Model
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs

PROGRAM = pathlib.Path(__file__).parents[2] / 'launch' / 'evaluate.py'
LABELS = ('yes', 'no', 'silence', 'unknown')
FOLDERS = {'yes': 0, 'no': 1, '_silence_': 2, '_unknown_': 3}
KEYS = {
    'accuracy', 'accuracy_interval', 'clips', 'parameters', 'macs', 'mean_weight_bits',
    'mean_activation_bits', 'flash_bytes', 'peak_activation_bytes', 'recall', 'confusion',
    'labels', 'model', 'test_dir', 'undecodable',
}  # fmt: skip


def small_model(labels=LABELS):
    options = {'name': 'sinc', 'filters': 8}
    front_end = frontends.make(**options)
    space = SearchSpace(
        image_shape=front_end.image_shape,
        classes=len(labels),
        stem=Stem(channels=4, kernel=(3, 3), stride=(2, 2)),
        stages=(Stage('iii', channels=6, layers=1, stride=2, candidates=mbconvs((1,), (3,))),),
        head_channels=8,
    )
    architecture = space.architecture(['e1k3'])
    # Shapes alone from `init`, whose draws would take seconds to compile.
    init = lambda key: network.init(key, front_end, architecture)  # noqa: E731
    rng, (params, averages) = np.random.default_rng(6), jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    averages = jax.tree.map(lambda x: rng.uniform(0.5, 2, x.shape).astype(np.float32), averages)
    return Model(options, architecture, labels, params, averages)


@pytest.fixture(scope='module')
def model():
    return small_model()


@pytest.fixture
def test_dir(tmp_path):
    """Seven clips of noise of different colour and loudness per folder."""
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (tmp_path / 'test' / folder).mkdir(parents=True)
        for i in range(7):
            white = rng.normal(size=16000 + i)
            samples = np.convolve(white, rng.normal(size=3 + i), 'same') * 10.0 ** rng.uniform(1, 3)
            clip = np.clip(samples, -32768, 32767).astype(np.int16)[:16000]
            soundfile.write(tmp_path / 'test' / folder / f's{i}_nohash_0.wav', clip, 16000)
    return tmp_path / 'test'


def expected_confusion(model, test_dir, *, zeros=False, folders=FOLDERS):
    """Counted clip by clip, with the network called directly."""
    front_end = model.make_front_end()
    confusion = np.zeros((len(model.labels),) * 2, int)
    audio, truth = [], []
    for folder, label in folders.items():
        for path in sorted((test_dir / folder).glob('s*.wav')):
            samples, _ = soundfile.read(path, dtype='int16')
            audio.append(samples * (0 if zeros and folder == '_silence_' else 1) / 32768.0)
            truth.append(label)
    logits, _ = jax.jit(
        lambda x: network.apply(
            model.params, model.averages, x, front_end=front_end, architecture=model.architecture
        )
    )(np.array(audio, np.float32))
    for label, row in zip(truth, np.asarray(logits), strict=True):
        confusion[label, max(range(len(row)), key=row.__getitem__)] += 1
    return confusion


def run(model, test_dir, **options):
    return evaluate.evaluate_folder(model, test_dir, cache_dir=test_dir.parent / 'cache', **options)


@pytest.mark.parametrize('batch', [5, 250])
def test_accuracy_is_an_independent_count(model, test_dir, batch):
    confusion = expected_confusion(model, test_dir)
    assert np.count_nonzero(confusion.sum(axis=0)) > 1  # not one class for everything
    found = run(model, test_dir, batch=batch)
    np.testing.assert_array_equal(found['confusion'], confusion)
    assert found['clips'] == 28
    assert found['accuracy'] == np.trace(confusion) / 28
    assert found['recall']['silence'] == confusion[2, 2] / 7
    low, high = found['accuracy_interval']
    assert low <= found['accuracy'] <= high
    assert found['flash_bytes'] == model.costs()['flash_bytes']


def test_silence_of_zeros_replaces_recorded_silence_alone(model, test_dir):
    found = run(model, test_dir, silence='zeros')
    np.testing.assert_array_equal(
        found['confusion'], expected_confusion(model, test_dir, zeros=True)
    )
    assert sorted(found['confusion'][2]) == [0, 0, 0, 7]  # equal clips, one answer


def test_in_integers_a_quantized_model_scores_what_the_numpy_reference_does(tmp_path):
    model, clips = integer_models.make(), integer_models.clips()
    truth = [i % len(model.labels) for i in range(len(clips))]
    for i, (label, clip) in enumerate(zip(truth, clips, strict=True)):
        folder = tmp_path / 'test' / model.labels[label]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f's{i}_nohash_0.wav', clip, 16000)
    found = run(model, tmp_path / 'test', integers=True)
    expected = np.zeros((len(model.labels),) * 2, int)
    network = deploy.from_model(model)
    logits = deploy.run(network, clips)
    np.add.at(expected, (truth, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(found['confusion'], expected)
    logits = logits * network.logit_step
    likely = logits[np.arange(len(clips)), truth] - np.log(np.exp(logits).sum(axis=1))
    assert found['cross_entropy'] == pytest.approx(-likely.mean(), rel=1e-5)
    assert found['integers']


def test_a_float_model_has_no_integers(model, test_dir):
    with pytest.raises(ValueError, match='float'):
        run(model, test_dir, integers=True)


def test_corrupt_files_are_left_out_and_counted(model, test_dir):
    (test_dir / 'yes' / 'broken_nohash_0.wav').write_bytes(b'RIFF')
    (test_dir / 'no' / 'empty_nohash_0.wav').write_bytes(b'')
    found = run(model, test_dir)
    assert (found['undecodable'], found['clips']) == (2, 28)
    assert [f['path'] for f in found['undecodable_files']] == [
        'no/empty_nohash_0.wav',
        'yes/broken_nohash_0.wav',
    ]
    np.testing.assert_array_equal(found['confusion'], expected_confusion(model, test_dir))
    text = evaluate.format_evaluation(found | {'model': 'small', 'test_dir': 'test'})
    assert '2 undecodable; the first is no/empty_nohash_0.wav' in text


def test_nothing_to_decode_is_an_error(model, tmp_path):
    (tmp_path / 'test' / 'yes').mkdir(parents=True)
    (tmp_path / 'test' / 'yes' / 'a_nohash_0.wav').write_bytes(b'')
    with pytest.raises(ValueError, match='none of the 1 recordings.*empty file'):
        run(model, tmp_path / 'test')


def test_another_word_counts_as_unknown_with_a_warning(model, test_dir, caplog):
    (test_dir / '_unknown_').rename(test_dir / 'marvin')
    with caplog.at_level(logging.WARNING):
        found = run(model, test_dir)
    assert 'marvin is no class of the model and counts as unknown' in caplog.text
    folders = {'yes': 0, 'no': 1, '_silence_': 2, 'marvin': 3}
    np.testing.assert_array_equal(
        found['confusion'], expected_confusion(model, test_dir, folders=folders)
    )


@pytest.mark.parametrize(
    'folder, names',
    [
        ('marvin', ('yes', 'no')),
        ('_unknown_', ('yes', 'no', 'silence')),
        ('_silence_', ('yes', 'no', 'unknown')),
        ('silence', ('yes', 'no', 'unknown')),
        ('_extra_', LABELS),
        ('_yes_', LABELS),
    ],
)
def test_a_folder_that_is_no_class_is_named(folder, names):
    with pytest.raises(ValueError, match=f"folder '{folder}', which is no class of the model"):
        evaluate.folder_labels(['yes', folder], names)


def test_a_class_without_recordings_has_no_recall(model, test_dir):
    (test_dir / 'no').rename(test_dir.parent / 'elsewhere')
    found = run(model, test_dir)
    assert found['recall']['no'] is None and found['clips'] == 21
    line = next(x for x in evaluate.confusion_lines(found) if x.startswith('no '))
    assert line.split() == ['no', '.', '.', '.', '.', '-']


def test_a_wrong_argument_or_folder_is_named(model, test_dir, tmp_path):
    with pytest.raises(ValueError, match="silence must be 'noise' or 'zeros', got 'none'"):
        run(model, test_dir, silence='none')
    with pytest.raises(FileNotFoundError, match='test_dir does not exist'):
        run(model, tmp_path / 'nowhere')
    (tmp_path / 'void').mkdir()
    with pytest.raises(ValueError, match='holds no recordings'):
        run(model, tmp_path / 'void')


def launch(*arguments):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_program_prints_and_writes_json(model, test_dir, tmp_path):
    model_lib.save(model, tmp_path / 'run' / 'model')
    file = tmp_path / 'out' / 'result.json'
    done = launch(
        f'--model={tmp_path / "run"}',
        f'--test_dir={test_dir}',
        f'--json={file}',
        f'--cache_dir={tmp_path / "cache"}',
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert KEYS <= set(result)
    np.testing.assert_array_equal(result['confusion'], expected_confusion(model, test_dir))
    assert f'accuracy         {100 * result["accuracy"]:.2f} %' in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert [row[0] for row in rows] == list(LABELS)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (('--model=nowhere',), 'no model is called'),
        (('--model=MODEL', '--test_dir=nowhere'), 'test_dir does not exist'),
        (('--model=MODEL', '--silence=hum'), 'silence'),
        ((), 'model'),
    ],
)
def test_the_program_ends_with_a_message(model, test_dir, tmp_path, arguments, words):
    folder = model_lib.save(model, tmp_path / 'model')
    arguments = [a.replace('MODEL', str(folder)) for a in arguments]
    if not any(a.startswith('--test_dir') for a in arguments):
        arguments.append(f'--test_dir={test_dir}')
    done = launch(*arguments, f'--cache_dir={tmp_path / "cache"}')
    assert done.returncode != 0
    assert words in done.stderr + done.stdout and 'Traceback' not in done.stderr


def test_help_imports_no_jax():
    code = f"""
import runpy, sys
sys.argv = ['evaluate.py', '--help']
try:
    runpy.run_path({str(PROGRAM)!r}, run_name='__main__')
except SystemExit:
    pass
assert 'jax' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '--test_dir' in done.stdout
