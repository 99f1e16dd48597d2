"""Tables of finished models: what each costs, and what it scores."""

COLUMNS = ('model', 'parameters', 'MACs', 'bits W/A', 'flash bytes', 'test accuracy (95 %)')
NOT_TESTED = '-'


def table(results: dict) -> str:
    """A plain-text table with its caption, for a terminal.

    Args:
      results: what `pipeline.run` returns; rows without `test` are shown as not tested.

    Raises:
      KeyError: a row lacks a cost.

    >>> row = {'name': 'float', 'parameters': 75470, 'macs': 13591000, 'mean_weight_bits': 32.0,
    ...        'mean_activation_bits': 32.0, 'flash_bytes': 330000,
    ...        'test': {'accuracy': 0.95, 'accuracy_interval': [0.9436, 0.9558], 'clips': 4890}}
    >>> print(table({'rows': [row]}))
    model  parameters        MACs     bits W/A  flash bytes   test accuracy (95 %)
    -----  ----------  ----------  -----------  -----------  ---------------------
    float      75,470  13,591,000  32.00/32.00      330,000  95.00 % (94.36-95.58)
    Accuracy on 4,890 test clips.
    """
    rows = [COLUMNS, *(cells(row) for row in results['rows'])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple('-' * width for width in widths))
    lines = [
        '  '.join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return '\n'.join([*lines, caption(results)])


def markdown_table(results: dict) -> str:
    """The same table as Markdown, its caption below.

    Args:
      results: as for `table`.
    """
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|---|' + '---:|' * (len(COLUMNS) - 1)]
    lines += ['| ' + ' | '.join(cells(row)) + ' |' for row in results['rows']]
    return '\n'.join([*lines, '', caption(results)])


def caption(results: dict) -> str:
    """What the accuracies were measured on; says so where the speech is synthetic.

    Args:
      results: as for `table`; what it lacks is left out.

    >>> caption({'rows': [], 'data': {'source': 'corpus', 'synthetic': True, 'labels': ['a', 'b'],
    ...          'examples': {'testing': 20}}})
    'Accuracy on 20 test clips of 2 classes; data: corpus; synthetic speech, not recordings.'
    """
    data = results.get('data') or {}
    tested = [row['test'] for row in results['rows'] if row.get('test')]
    clips = tested[0]['clips'] if tested else (data.get('examples') or {}).get('testing')
    labels = data.get('labels') or (tested[0].get('labels') if tested else None)
    parts = []
    if clips is None or (results['rows'] and not tested):
        parts.append('Not tested yet')
    else:
        classes = f' of {len(labels)} classes' if labels else ''
        parts.append(f'Accuracy on {clips:,} test clips{classes}')
    if data.get('source'):
        parts.append(f'data: {data["source"]}')
    if data.get('fingerprint'):
        parts.append(f'fingerprint {data["fingerprint"]}')
    if data.get('synthetic'):
        parts.append('synthetic speech, not recordings')
    text = '; '.join(parts) + '.'
    zeros = [
        f'{row["name"]} {100 * row["test"]["accuracy_with_zero_silence"]:.2f} %'
        for row in results['rows']
        if (row.get('test') or {}).get('accuracy_with_zero_silence') is not None
    ]
    if zeros:
        text += f'\nWith all zeros as silence: {", ".join(zeros)}.'
    return text


def accuracy_text(test: dict | None) -> str:
    """Accuracy and interval in percent: `95.00 % (94.36-95.58)`."""
    if not test:
        return NOT_TESTED
    low, high = test['accuracy_interval']
    return f'{100 * test["accuracy"]:.2f} % ({100 * low:.2f}-{100 * high:.2f})'


def cells(row: dict) -> tuple[str, ...]:
    """What the table says of one row, a text for each of `COLUMNS`."""
    return (
        row['name'],
        f'{row["parameters"]:,}',
        f'{row["macs"]:,}',
        f'{row["mean_weight_bits"]:.2f}/{row["mean_activation_bits"]:.2f}',
        f'{row["flash_bytes"]:,}',
        accuracy_text(row.get('test')),
    )
