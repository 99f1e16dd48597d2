"""The commands of docs/own_words.md, one after the other, in miniature."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import killing
import pytest

DOCUMENT = (killing.ROOT / 'docs' / 'own_words.md').read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r'```bash\n(.*?)```', DOCUMENT, flags=re.DOTALL)
    for line in block.replace('\\\n', ' ').splitlines()
]
# smaller and shorter, nothing else
MINIATURE = {
    '--clips=6000': '--clips=200',
    '--config=configs/sinc60.py:quickstart': '--config=configs/sinc60.py:mini',
    '--hours=0.5': '--hours=0.01',
}
CACHED = ('launch/inspect_data.py', 'launch/pipeline.py', 'launch/evaluate_stream.py')


def miniature(command, tmp_path):
    """The arguments of one command, with its folders below `tmp_path`."""
    words = [MINIATURE.get(word, word).replace('runs/', f'{tmp_path}/') for word in command]
    if words[0] == '.venv/bin/python':
        words[0] = sys.executable
        if words[1] in CACHED:
            words.append(f'--cache_dir={tmp_path / "cache"}')
        if words[1] == 'launch/pipeline.py':
            words += ['--config.batch=8', '--config.search.batch=8', '--config.fixed_bits.pairs=()']
    return words


@pytest.mark.skipif(
    not (shutil.which('make') and shutil.which('gcc')),
    reason='needs make and gcc: apt install make gcc',
)
def test_the_walk_through_leads_from_words_to_a_program_that_hears_them(tmp_path):
    left = set(MINIATURE)
    for command in COMMANDS:
        left -= set(command)
        done = subprocess.run(
            miniature(command, tmp_path),
            cwd=killing.ROOT,
            env={**killing.environment_of_programs(), 'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f'{shlex.join(command)}\n{done.stdout}\n{done.stderr}'
    assert not left, f'the document no longer has {left}'

    rows = json.loads((tmp_path / 'deutsch' / 'results.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['float', 'trained-bits']
    words = ['licht', 'heizung', 'lauter', 'leiser', 'stopp']
    manifest = json.loads((tmp_path / 'firmware' / 'manifest.json').read_text())
    assert manifest['labels'] == [*words, 'silence', 'unknown']
    points = manifest['operating_points']
    assert set(points) == set(words)
    wav = next(pathlib.Path(tmp_path, 'korpus', 'licht').glob('*.wav'))
    program = tmp_path / 'firmware' / 'kws_wav'
    heard = subprocess.run([program, wav], capture_output=True, text=True, check=True).stdout
    assert any(label in heard for label in manifest['labels']), heard
