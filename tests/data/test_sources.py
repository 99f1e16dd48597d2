"""Tests of what the data flags of a program open."""

import pytest

from kws_jax.data import sources


@pytest.fixture
def opened(tmp_path):
    """Opens tmp_path/'DIR' with labels yes and no."""

    def opened(**options):
        options = {'labels': 'yes,no', 'progress': False, **options}
        return sources.open_dataset(
            data_dir=tmp_path / 'DIR', cache_dir=tmp_path / 'cache', **options
        )

    return opened


def test_train_and_test_of_a_folder_are_found(folder, opened, tmp_path):
    folder('DIR/train').words(['yes', 'no'])
    test = folder('DIR/test')
    for i in range(3):
        test.add(f'yes/{i}_nohash_0.wav')
    root = tmp_path / 'DIR'
    found = tuple(map(str, sources.find_folders(root)))
    assert found == (f'{root}/train', f'{root}/test')
    assert opened().describe()['classes']['testing'] == {'yes': 3, 'no': 0}
    other = folder('other')
    other.add('no/a_nohash_0.wav')
    assert sources.find_folders(root, other.root)[1] == other.root
    assert opened(test_dir=other.root).describe()['classes']['testing'] == {'yes': 0, 'no': 1}


def test_a_folder_without_train_is_taken_as_it_is(folder, tmp_path):
    folder('DIR').words(['yes', 'test'])
    assert sources.find_folders(tmp_path / 'DIR') == (tmp_path / 'DIR', None)
    assert sources.find_folders(tmp_path / 'absent') == (tmp_path / 'absent', None)


def test_a_word_called_train_is_a_word_like_any_other(folder, opened, tmp_path):
    folder('DIR').words(['yes', 'no', 'train', 'test'])
    assert sources.find_folders(tmp_path / 'DIR') == (tmp_path / 'DIR', None)
    data = opened(labels='yes,train')
    # 4 recordings of each in training; no and test are other words
    assert data.labels.names == ('yes', 'train', 'unknown')
    classes = data.describe()['classes']['training']
    assert (classes['yes'], classes['train']) == (4, 4)
    # a stray folder beside its recordings changes nothing
    (tmp_path / 'DIR' / 'train' / 'old').mkdir()
    assert sources.find_folders(tmp_path / 'DIR') == (tmp_path / 'DIR', None)


def test_labels_that_do_not_fit_a_test_folder_nobody_gave_name_the_way_out(
    folder, opened, tmp_path
):
    train = folder('DIR/train').words(['yes', 'no'])
    test = folder('DIR/test')
    for label in ('yes', 'no', '_silence_'):
        test.add(f'{label}/a_nohash_0.wav')
    with pytest.raises(ValueError, match="folder '_silence_', but the labels have no") as caught:
        opened()
    assert f'or give --data_dir={train.root} to use the testing split' in str(caught.value)
    assert 'leave test_dir out' not in str(caught.value)
    # what the message says works
    data = sources.open_dataset(
        data_dir=train.root, cache_dir=tmp_path / 'cache', labels='yes,no', progress=False
    )
    assert data.describe()['classes']['testing'] == {'yes': 2, 'no': 2}
    with pytest.raises(ValueError, match='leave test_dir out to use the testing split'):
        opened(test_dir=test.root)


def test_a_test_folder_is_refused_for_tfds(tmp_path):
    with pytest.raises(
        ValueError, match="test_dir='there' cannot be used with dataset=tfds.*--dataset=folder"
    ):
        sources.open_dataset(dataset='tfds', test_dir='there', cache_dir=tmp_path)


def test_an_unknown_source_or_no_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dataset must be 'folder' or 'tfds', got 'web'"):
        sources.open_dataset(dataset='web', data_dir=tmp_path, cache_dir=tmp_path)
    with pytest.raises(ValueError, match='data_dir is missing: give --data_dir=DIR'):
        sources.open_dataset(cache_dir=tmp_path)
