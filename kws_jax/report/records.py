"""What a run left in its folder, finished or not: the input of every picture."""

import dataclasses
import functools
import json
import pathlib

from kws_jax import model as model_lib
from kws_jax.space import Architecture, SearchSpace
from kws_jax.training.metrics import read_metrics

# in the order of the pipeline; what is not listed comes after, by name
_ORDER = ('search', 'float', 'fixed', 'trained-bits')


@dataclasses.dataclass(frozen=True)
class Log:
    """What one `training.loop.fit` logged.

    Attributes:
      name: folder relative to the workdir, such as `float` or `trained-bits/learn`.
      records: as `metrics.read_metrics` gives them.
      config: of the run; {} where it left none.
      steps_per_epoch: 1 where it left none: then epochs are steps.
      finished: content of `finished.json`, or None.
    """

    name: str
    records: list[dict]
    config: dict
    steps_per_epoch: int
    finished: dict | None

    def series(self, kind: str, key: str) -> tuple[list[float], list[float]]:
        """Epochs (fractions are steps) and values of one number; what is not finite is left out."""
        points = [
            (record['step'] / self.steps_per_epoch, record[key])
            for record in self.records
            if record['kind'] == kind and record.get(key) is not None
        ]
        return [x for x, _ in points], [y for _, y in points]

    def of_kind(self, kind: str) -> list[dict]:
        """The records of one kind, each with its `at`: epochs done, as a fraction."""
        return [
            record | {'at': record['step'] / self.steps_per_epoch}
            for record in self.records
            if record['kind'] == kind
        ]

    @property
    def wall_seconds(self) -> float:
        """Time spent, attempts together."""
        if self.finished is not None:
            return float(self.finished['wall_seconds'])
        return max((record.get('wall_seconds') or 0.0 for record in self.records), default=0.0)

    @property
    def epochs(self) -> float:
        """Epochs done."""
        return max((record['step'] for record in self.records), default=0) / self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Records:
    """A workdir, read.

    Attributes:
      workdir: where from.
      rows: one dict per finished model, as in `results.json`; `test` may be absent.
      results: content of `results.json`, or {}.
      logs: `Log` by name, in the order of the pipeline.
      folders: folder of each finished model, by the name of its phase.
      problems: what could not be read, in words.
    """

    workdir: pathlib.Path
    rows: list[dict]
    results: dict
    logs: dict[str, Log]
    folders: dict[str, pathlib.Path]
    problems: list[str]

    @property
    def summary(self) -> dict:
        """`results` with the rows that are there now: what `tables.table` takes."""
        return self.results | {'rows': self.rows}

    @functools.cached_property
    def models(self) -> dict[str, model_lib.Model]:
        """The finished models that can be loaded; the others are added to `problems`."""
        models = {}
        for name, folder in self.folders.items():
            try:
                models[name] = model_lib.load(folder)
            except (ValueError, FileNotFoundError) as error:
                self.problems.append(str(error))
        return models

    def main_model(self) -> str | None:
        """Name of the model to draw where one is enough: trained bits, else fixed, else float."""
        for start in ('trained', 'fixed', 'float', ''):
            names = [n for n in self.models if n.startswith(start) and n != 'search']
            if names:
                return names[0]
        return 'search' if 'search' in self.models else None

    @functools.cached_property
    def architecture(self) -> Architecture | None:
        """The chosen network, or None before the search has ended."""
        return next((model.architecture for model in self.models.values()), None)

    @functools.cached_property
    def space(self) -> SearchSpace | None:
        """What was searched, or None if it is not known."""
        if self.architecture is not None:
            return self.architecture.space
        described = self.logs['search'].config.get('space') if 'search' in self.logs else None
        return SearchSpace.from_json(described) if described else None

    @property
    def search(self) -> dict:
        """The facts that the search ended with, or {}."""
        if 'search' in self.models:
            return self.models['search'].card
        return self.results.get('search', {})


def read(workdir) -> Records:
    """Reads what is there.

    Raises:
      FileNotFoundError: nothing that a run writes is in `workdir`.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f'workdir does not exist: {str(workdir)!r}')
    problems = []
    results = _json(workdir / 'results.json', problems) or {}
    logs = {}
    for path in [p for depth in ('', '*/', '*/*/') for p in workdir.glob(f'{depth}metrics.jsonl')]:
        name = path.parent.relative_to(workdir).as_posix()
        name = workdir.resolve().name if name == '.' else name
        logs[name] = _log(name, path.parent, problems)
    folders = {
        path.parent.parent.name: path.parent for path in sorted(workdir.glob('*/model/model.json'))
    }
    if (workdir / 'model' / 'model.json').is_file():
        folders[workdir.resolve().name] = workdir / 'model'
    if not (results or logs or folders):
        raise FileNotFoundError(
            f'workdir={str(workdir)!r} holds no run: neither results.json nor metrics.jsonl nor a '
            'model; pass the --workdir of a pipeline'
        )
    logs, folders = (
        dict(sorted(x.items(), key=lambda item: _rank(item[0]))) for x in (logs, folders)
    )
    rows = list(results.get('rows', []))
    known = {row['name'] for row in rows}
    for name, folder in folders.items():
        if name not in known and name != 'search':
            row = _row(name, folder, problems)
            rows += [row] if row else []
    return Records(workdir, rows, results, logs, folders, problems)


def _rank(name):
    known = [i for i, start in enumerate(_ORDER) if name.startswith(start)]
    # a phase that learns comes before the fine-tuning of what it learned
    return (known[0] if known else len(_ORDER), name.endswith('/finetune'), name)


def _json(path, problems):
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        problems.append(f'{path.name} of {path.parent.name} is damaged ({error})')
        return None


def _log(name, folder, problems):
    try:
        records = read_metrics(folder / 'metrics.jsonl')
    except ValueError as error:
        problems.append(str(error))
        records = []
    described = _json(folder / 'config.json', problems) or {}
    return Log(
        name=name,
        records=records,
        config=described.get('config', {}),
        steps_per_epoch=described.get('loop', {}).get('steps_per_epoch', 1),
        finished=_json(folder / 'finished.json', problems),
    )


def _row(name, folder, problems):
    facts = _json(folder / 'model.json', problems)
    if facts is None:
        return None
    test = _json(folder.parent / 'test.json', problems)
    row = {'name': name, **facts['costs'], **facts['card']}
    return row | ({'test': test['scores']} if test else {})
