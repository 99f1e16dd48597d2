"""The whole pipeline on tones, as a program, so that tests can kill it. Usage:
small_pipeline.py FOLDER WORKDIR [SECONDS], the last to pause before each chunk of steps."""

import functools
import hashlib
import json
import pathlib
import sys
import tempfile
import time
from typing import NamedTuple

import killing
import numpy as np
import small
import small_config
import soundfile

from kws_jax import pipeline
from kws_jax.data.sources import open_dataset
from kws_jax.training.metrics import read_metrics

HERTZ = {'low': 300, 'middle': 900, 'high': 2700, 'rising': None}


def make_folder(root) -> pathlib.Path:
    """A folder of recordings in the Speech Commands layout: words are tones, one is unknown."""
    rng = np.random.default_rng(0)
    time_ = np.arange(16000) / 16000
    lists = {'validation': [], 'testing': []}
    for word, hertz in HERTZ.items():
        (root / word).mkdir(parents=True)
        for split, count in (('training', 8), ('validation', 4), ('testing', 4)):
            for i in range(count):
                pitch = 200 + 2000 * time_ if hertz is None else hertz * rng.uniform(0.9, 1.1)
                audio = 0.2 * np.sin(2 * np.pi * pitch * time_) + 0.02 * rng.normal(size=16000)
                name = f'{word}/{split[:2]}{i}_nohash_0.wav'
                soundfile.write(root / name, audio, 16000)
                if split in lists:
                    lists[split].append(name)
    for split, names in lists.items():
        (root / f'{split}_list.txt').write_text('\n'.join(names) + '\n')
    (root / '_background_noise_').mkdir()
    hum = 0.1 * rng.normal(size=10 * 16000)
    soundfile.write(root / '_background_noise_' / 'hum.wav', hum, 16000)
    return root


def open_folder(folder):
    """The data set of the small configuration."""
    options = small_config.get_config().data.to_dict()
    cache = pathlib.Path(folder).with_name('audio')
    return open_dataset(data_dir=folder, cache_dir=cache, progress=False, **options)


def run(folder, workdir, *, pause=0.0) -> dict:
    """`pipeline.run` with the small configuration."""
    data = open_folder(folder)
    batch = data.batch

    def slow(rows):
        time.sleep(pause)
        return batch(rows)

    data.batch = slow
    return pipeline.run(small_config.get_config().to_dict(), data, workdir)


def results(workdir) -> dict:
    """What two runs of the same program share to the bit: models, metrics, scores; not clocks."""
    workdir = pathlib.Path(workdir)
    found = {}
    for path in sorted(workdir.glob('*/model/model.npz')):
        found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(workdir.glob('*/model/model.json')):
        facts = json.loads(path.read_text())
        found[str(path.relative_to(workdir))] = [facts[k] for k in ('architecture', 'quant')]
    for path in sorted(workdir.rglob('metrics.jsonl')):
        found[str(path.relative_to(workdir))] = read_metrics(path, clock=False)
    for row in json.loads((workdir / 'results.json').read_text())['rows']:
        found[f'{row["name"]}/scores'] = row['test']
    return found


class Reference(NamedTuple):
    """A run that nothing interrupted: its data, its folder, and the programs that it compiled."""

    folder: pathlib.Path
    workdir: pathlib.Path
    compiled: pathlib.Path

    def start(self, workdir, *, pause=0.0):
        """Starts the same program for another `workdir`."""
        return killing.start([__file__, self.folder, workdir, pause], cache=self.compiled)


_temporary = tempfile.TemporaryDirectory(prefix='small_pipeline-')


@functools.cache
def reference() -> Reference:
    """Runs the pipeline once in this process's life."""
    root = pathlib.Path(_temporary.name)
    made = Reference(make_folder(root / 'words'), root / 'run', root / 'compiled')
    killing.finish(made.start(made.workdir))
    return made


if __name__ == '__main__':
    with small.quick_compilation():
        run(*sys.argv[1:3], pause=float((sys.argv[3:] or [0])[0]))
