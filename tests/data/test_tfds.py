"""Tests with the real `speech_commands` builder of TFDS, fed with small archives of our own.

The archives lie in the builder's download cache under the names of the official ones, so the
download manager takes them for downloaded and needs no network.
"""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import soundfile

tensorflow_datasets = pytest.importorskip(
    'tensorflow_datasets', reason="needs pip install 'kws_jax[tfds]'"
)
from kws_jax.data import noise as noise_lib  # noqa: E402
from kws_jax.data import tfds  # noqa: E402

URL = 'http://download.tensorflow.org/data/'
WORDS_10 = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')


def noise(seed, samples=16000):
    return np.random.default_rng(seed).integers(-3000, 3000, samples).astype(np.int16)


def put_archive(folder, name, files):
    """Writes an archive where the download manager looks for one that it has downloaded."""
    from tensorflow_datasets.core.download import resource

    with tfds.without_tensorflow():
        infos = tensorflow_datasets.builder_cls('speech_commands').url_infos
    path = (
        folder / 'speech_commands' / resource.get_dl_fname(URL + name, infos[URL + name].checksum)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz', compresslevel=1) as archive:
        for member, content in files.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                soundfile.write(file, content, 16000, format='WAV', subtype='PCM_16')
                content = file.getvalue()
            info = tarfile.TarInfo('./' + member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.with_suffix(path.suffix + '.INFO').write_text(json.dumps({'dataset_names': []}))


@pytest.fixture(scope='module')
def recordings():
    """The contents of both archives: {path: samples}."""
    train, test, seed = {}, {}, 0
    for word in (*WORDS_10, 'marvin', 'bed'):
        for split, number in (('tr', 3), ('va', 2), ('te', 1)):
            for i in range(number):
                seed += 1
                train[f'{word}/{split}{i}_nohash_0.wav'] = noise(seed, 16000 if i else 12000)
    for split, name in (('va', 'validation'), ('te', 'testing')):
        train[f'{name}_list.txt'] = '\n'.join(p for p in train if f'/{split}' in p).encode()
    train['_background_noise_/hum.wav'] = noise(10**6, 50000)
    train['_background_noise_/rain.wav'] = noise(10**6 + 1, 33000)
    train['_background_noise_/running_tap.wav'] = noise(10**6 + 2, 49000)
    for word in (*WORDS_10, '_silence_', '_unknown_'):
        for i in range(2):
            seed += 1
            test[f'{word}/{i}_nohash_0.wav'] = noise(seed)
    return train, test


@pytest.fixture(scope='module')
def prepared(recordings, tmp_path_factory):
    """Lets the builder prepare the archives; returns the folder."""
    root = tmp_path_factory.mktemp('tfds')
    put_archive(root / 'downloads', 'speech_commands_v0.02.tar.gz', recordings[0])
    put_archive(root / 'downloads', 'speech_commands_test_set_v0.02.tar.gz', recordings[1])
    tfds.load_tfds(data_dir=root, cache_dir=root / 'cache', progress=False)
    return root


@pytest.fixture
def load(prepared):
    """Returns `load_tfds` of the prepared archives."""

    def load(**options):
        return tfds.load_tfds(
            **{'data_dir': prepared, 'cache_dir': prepared / 'cache', 'progress': False, **options}
        )

    return load


def test_the_real_builder_prepared_the_archives_without_tensorflow(prepared):
    assert 'tensorflow' not in sys.modules
    made = prepared / 'speech_commands'
    assert list(made.glob('*/speech_commands-train.array_record*'))


def test_splits_and_classes_are_those_of_the_builder(load, recordings):
    data = load()
    rows, labels = data.epoch(seed=0, epoch=0)
    assert np.bincount(labels).tolist() == [3] * 10 + [3, 3]
    assert np.bincount(data.evaluation('validation')[1]).tolist() == [2] * 10 + [2, 2]
    audio, labels = data.evaluation('testing')
    assert np.bincount(labels).tolist() == [2] * 12
    # Every example carries the label of the archive's folder.
    truth = {
        np.pad(x, (0, 16000 - len(x))).tobytes(): path.split('/')[0]
        for archive in recordings
        for path, x in archive.items()
        if not isinstance(x, bytes) and len(x) <= 16000
    }
    names = [*WORDS_10, '_silence_', '_unknown_']
    assert [truth[x.tobytes()] for x in audio] == [names[label] for label in labels]
    training = data.batch(rows[rows >= 0])
    for x, label in zip(training, data.epoch(seed=0, epoch=0)[1][rows >= 0], strict=True):
        assert truth[x.tobytes()] == (names[label] if label < 10 else truth[x.tobytes()])
        assert (truth[x.tobytes()] in ('marvin', 'bed')) == (label == 11)


def test_background_noise_is_put_together_again_and_kept_apart(load, recordings):
    data = load()
    # The builder cuts at 0, 8000, ... while a whole second and one more sample remain.
    hum = recordings[0]['_background_noise_/hum.wav'][:48000]
    rain = recordings[0]['_background_noise_/rain.wav'][:32000]
    tap = recordings[0]['_background_noise_/running_tap.wav'][:48000]
    assert len(data.noise) == len(hum) + len(rain)
    assert data.noise.tobytes() in (np.concatenate(p).tobytes() for p in ((hum, rain), (rain, hum)))
    assert data.describe()['noise_seconds'] == {'training': 5.0, 'validation': 3.0, 'testing': 0.0}
    audio, labels = data.evaluation('validation')
    for cut in audio[labels == 10].astype(float):
        # Some second of the tap, at some volume: the correlation is 1 for one start.
        windows = np.lib.stride_tricks.sliding_window_view(tap.astype(float), 16000)
        scores = windows @ cut / (np.linalg.norm(cut) * np.sqrt((windows[:1] ** 2).sum()))
        assert scores.max() > 0.95


def test_noise_in_one_piece_and_in_loops_is_put_together():
    tape = noise(1, 40000)
    seconds = np.stack([tape[s : s + 16000] for s in (16000, 0, 24000, 8000)])
    joined = noise_lib.join(seconds)
    assert len(joined) == 1
    np.testing.assert_array_equal(joined[0], tape)
    assert noise_lib.join(np.zeros((0, 16000), np.int16)) == []
    loop = np.concatenate([tape[:16000], tape[:8000]])
    around = noise_lib.join(np.stack([loop[:16000], loop[8000:]]))
    assert [len(x) for x in around] == [24000]
    # Where all halves are equal there are many ways; each second is used once: n make 8000 (n + 1).
    same = noise_lib.join(np.zeros((3, 16000), np.int16))
    assert sum(len(x) // 8000 - 1 for x in same) == 3


def test_short_clips_are_padded_like_those_of_a_folder(load):
    assert load().describe()['conversions']['padded'] == 12 * 2  # those numbered 0, not testing


def test_own_words_turn_the_other_keywords_into_unknown(load, log):
    data = load(labels='yes,no')
    assert data.labels.names == ('yes', 'no', 'silence', 'unknown')
    assert np.bincount(data.evaluation('testing')[1]).tolist() == [2, 2, 2, 18]
    assert 'down, go, left' in log.text and 'count as unknown' in log.text


@pytest.mark.parametrize('labels', ['35', 'yes,marvin'])
def test_words_that_tfds_does_not_tell_apart_are_refused(load, labels):
    message = 'TFDS turns .*marvin.* into unknown; choose among.*--dataset=folder --data_dir=DIR'
    with pytest.raises(ValueError, match=message):
        load(labels=labels)


def test_the_log_says_which_test_split_it_is(load, log):
    load()
    assert '4,890 clips, not the 11,005 recordings of testing_list.txt' in log.text
    assert '24 clips here' in log.text


def test_opened_again_it_is_the_same_and_not_decoded(load, monkeypatch):
    first = load()
    monkeypatch.setattr(tfds, '_examples', lambda builder: pytest.fail('read again'))
    again = load()
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.epoch(seed=1, epoch=2), first.epoch(seed=1, epoch=2))


def test_data_that_is_not_prepared_is_reported_without_a_download(load, tmp_path):
    with pytest.raises(FileNotFoundError, match='no prepared speech_commands.*download=True'):
        load(data_dir=tmp_path, download=False)


def test_data_prepared_for_tensorflow_is_refused_with_the_way_out(prepared, load, tmp_path):
    source = next((prepared / 'speech_commands').glob('0.*'))
    target = tmp_path / 'speech_commands' / source.name
    target.mkdir(parents=True)
    for path in source.iterdir():
        name = path.name.replace('array_record', 'tfrecord')
        target.joinpath(name).write_bytes(path.read_bytes())
    info = json.loads((target / 'dataset_info.json').read_text())
    info['fileFormat'] = 'tfrecord'
    (target / 'dataset_info.json').write_text(json.dumps(info))
    with pytest.raises(ValueError, match='prepared as tfrecord.*pass another data_dir'):
        load(data_dir=tmp_path)


def test_a_missing_package_is_named_with_the_command_that_installs_it(load, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydub.exceptions', None)
    with pytest.raises(ImportError, match=r"pydub.*pip install 'kws_jax\[tfds\]'"):
        load()
