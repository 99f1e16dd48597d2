"""Tests of the label sets."""

import pytest

from kws_jax.data import labels


def test_the_twelve_classes_are_those_of_the_paper_in_its_order():
    got = labels.label_set('12')
    assert got.names == (
        'yes',
        'no',
        'up',
        'down',
        'left',
        'right',
        'on',
        'off',
        'stop',
        'go',
        'silence',
        'unknown',
    )
    assert (got.silence, got.unknown, len(got)) == (10, 11, 12)
    assert labels.label_set(12) == got


def test_the_thirty_five_classes_are_words_alone():
    got = labels.label_set('35')
    assert len(got) == len(set(got.names)) == 35
    assert (got.silence, got.unknown) == (None, None)
    assert set(labels.KEYWORDS_10) < set(got.keywords)


def test_own_words_get_silence_and_unknown_only_where_there_is_data_for_them():
    assert labels.label_set('lamp,heater').names == ('lamp', 'heater', 'silence', 'unknown')
    assert labels.label_set(['lamp', 'heater'], noise=False).names == ('lamp', 'heater', 'unknown')
    assert labels.label_set(('lamp', 'heater'), noise=False, other_words=False).names == (
        'lamp',
        'heater',
    )
    assert labels.label_set('marvin').names == ('marvin', 'silence', 'unknown')


def test_own_words_may_place_silence_and_unknown_themselves():
    got = labels.label_set('_silence_,_unknown_,lamp')
    assert got.names == ('silence', 'unknown', 'lamp')
    assert (got.silence, got.unknown, got.keywords) == (0, 1, ('lamp',))


def test_words_and_folder_names_find_their_class():
    got = labels.label_set('12')
    assert [got.index(w) for w in ('yes', 'marvin', '_unknown_', '_silence_', '_yes_')] == [
        0,
        11,
        11,
        10,
        11,
    ]
    assert labels.label_set('35').index('lamp') is None
    assert labels.label_set('lamp', noise=False).index('_silence_') is None


@pytest.mark.parametrize(
    'given, message',
    [
        ('yes,no,yes', 'names yes more than once'),
        ('yes,,no', 'an empty word'),
        ('', 'an empty word'),
        (3.5, "must be '12', '35', or words"),
        (['yes', 3], "must be '12', '35', or words"),
        ('silence,unknown', 'at least one word'),
    ],
)
def test_bad_labels_are_refused_with_the_value(given, message):
    with pytest.raises(ValueError, match=message):
        labels.label_set(given)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match='two classes'):
        labels.label_set('marvin', other_words=False, noise=False)
