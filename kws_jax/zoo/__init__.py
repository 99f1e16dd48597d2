"""Released models, and how to load them or any run's output: `zoo.load(name_or_path)`."""

import difflib
import pathlib

from kws_jax import model as model_lib

_ROOT = pathlib.Path(__file__).parent


def names() -> list[str]:
    """The released models."""
    return sorted(path.parent.name for path in _ROOT.glob('*/model.json'))


def load(name_or_path) -> model_lib.Model:
    """A released model by name, or the model in a folder (or in its `model/`).

    Raises:
      FileNotFoundError: neither; names the nearest released model.
    """
    path = pathlib.Path(name_or_path)
    for folder in (_ROOT / str(name_or_path), path, path / 'model'):
        if (folder / 'model.json').is_file():
            return model_lib.load(folder)
    around = path if path.is_dir() else path.parent
    beside = sorted({str(file.parent) for file in around.glob('*/model/model.json')})
    beside = [folder.removesuffix('/model') for folder in beside]
    if beside:
        hint = f'; there are {", ".join(beside)}'
    elif path.is_dir():
        hint = f'; the folder {path} holds no model.json (a run writes it when it is finished)'
    elif near := difflib.get_close_matches(str(name_or_path), names(), 1):
        hint = f'; did you mean {near[0]}?'
    else:
        hint = f'; released are: {", ".join(names()) or "none"}'
    raise FileNotFoundError(f'no model is called {str(name_or_path)!r}{hint}')
