"""The table of a run: numbers, alignment, caption."""

import pytest

from kws_jax import report

ROWS = [
    {
        'name': 'float',
        'parameters': 75470,
        'macs': 13591000,
        'mean_weight_bits': 32.0,
        'mean_activation_bits': 32.0,
        'flash_bytes': 330120,
        'test': {
            'accuracy': 0.95123,
            'accuracy_interval': [0.9436, 0.95711],
            'clips': 4890,
            'accuracy_with_zero_silence': 0.96,
        },
    },
    {
        'name': 'trained-bits',
        'parameters': 75470,
        'macs': 13591000,
        'mean_weight_bits': 2.995,
        'mean_activation_bits': 2.5,
        'flash_bytes': 38123,
    },
]
DATA = {'labels': ['yes', 'no'], 'examples': {'testing': 4890}, 'fingerprint': 'ab12'}


def test_a_row_shows_costs_and_accuracy_with_its_interval():
    line = report.table({'rows': ROWS}).splitlines()[2]
    assert line.split() == [
        'float', '75,470', '13,591,000', '32.00/32.00', '330,120', '95.12', '%', '(94.36-95.71)',
    ]  # fmt: skip


def test_a_row_that_was_not_tested_says_so():
    line = report.table({'rows': ROWS}).splitlines()[3]
    assert line.split()[-2:] == ['38,123', '-']
    assert report.caption({'rows': ROWS[1:]}) == 'Not tested yet.'


def test_columns_are_aligned():
    head, rule, *rows = report.table({'rows': ROWS}).splitlines()[:4]
    ends = [i for i, c in enumerate(rule + ' ') if c == ' ' and rule[i - 1] == '-']
    assert len(ends) == len(report.tables.COLUMNS)
    for line in (head, *rows):
        assert len(line) == len(rule)
        # numbers end where their column ends, names begin where it begins
        assert all(line[end - 1] != ' ' for end in ends[1:])
        assert line[0] != ' '


def test_the_caption_names_what_accuracy_was_measured_on():
    text = report.caption({'rows': ROWS, 'data': DATA | {'source': 'Speech Commands v0.02'}})
    first, second = text.splitlines()
    assert first == (
        'Accuracy on 4,890 test clips of 2 classes; data: Speech Commands v0.02; fingerprint ab12.'
    )
    assert second == 'With all zeros as silence: float 96.00 %.'


@pytest.mark.parametrize('make', [report.table, report.markdown_table])
def test_synthetic_speech_is_called_synthetic(make):
    assert 'synthetic speech' in make({'rows': ROWS, 'data': DATA | {'synthetic': True}})
    assert 'synthetic' not in make({'rows': ROWS, 'data': DATA})


def test_markdown_has_a_cell_for_every_column():
    lines = report.markdown_table({'rows': ROWS, 'data': DATA}).splitlines()
    cells = [line.strip('|').split('|') for line in lines[:4]]
    assert [len(c) for c in cells] == [6, 6, 6, 6]
    assert cells[2][0].strip() == 'float' and cells[2][5].strip() == '95.12 % (94.36-95.71)'
    assert lines[4] == '' and lines[5].startswith('Accuracy on 4,890')


def test_a_table_without_rows_is_its_head():
    assert report.table({'rows': []}).splitlines()[0].startswith('model')
