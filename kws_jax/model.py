"""A trained model as a value: what it is made of, how it is saved, what it costs, how it is run."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import costs, frontends, network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.space import Architecture

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its weights, ready to be run, quantized or exported.

    Attributes:
      front_end: keyword arguments of `frontends.make`, with its `name`.
      architecture: the chosen network.
      labels: what each output stands for.
      params, averages: as `network.init` makes them.
      quant: None for a float model, else `{'form': str, 'bits': {...}, 'params': {...}}` with whole
        bit-widths everywhere.
      card: free-form facts: data, recipe, seed.
    """

    front_end: dict
    architecture: Architecture
    labels: tuple[str, ...]
    params: dict
    averages: dict
    quant: dict | None = None
    card: dict = dataclasses.field(default_factory=dict)

    def make_front_end(self) -> frontends.FrontEnd:
        """The front end's functions."""
        return frontends.make(**self.front_end)

    def predictor(self) -> Callable:
        """A jitted `predict(int16 [batch, samples]) -> float32 logits [batch, classes]`.

        Raises:
          ValueError: the model was quantized with a form that is not registered.
        """
        front_end = self.make_front_end()
        quant_params = None if self.quant is None else self.quant['params']
        form = None if self.quant is None else quantizers.get_form(self.quant['form'])

        @jax.jit
        def run(params, averages, quant_params, audio):
            quant = network.no_quant
            if self.quant is not None:
                quant = quantizers.make_quant(form, quant_params, self.quant['bits'])
            logits, _ = network.apply(
                params,
                averages,
                int16_to_float(audio),
                front_end=front_end,
                architecture=self.architecture,
                quant=quant,
            )
            return logits

        return lambda audio: run(self.params, self.averages, quant_params, audio)

    def bits(self, kind: str) -> dict[str, int]:
        """Bit-width of every tensor of one kind ('weight' or 'activation'); 32 in a float model."""
        front_end = self.make_front_end()
        sites = (
            costs.weight_sites(self.architecture, front_end_weights=quantized_taps(front_end))
            if kind == 'weight'
            else costs.activation_sites(self.architecture)
        )
        if self.quant is None:
            return dict.fromkeys(sites, 32)
        return {name: int(self.quant['bits'][name][kind]) for name in sites}

    def costs(self) -> dict:
        """Parameters, MACs, mean bits, flash bytes and peak activation bytes, JSON-ready."""
        front_end = self.make_front_end()
        space, taps = self.architecture.space, quantized_taps(front_end)
        weights = costs.weight_sites(self.architecture, front_end_weights=taps)
        activations = costs.activation_sites(self.architecture)
        weight_bits, activation_bits = self.bits('weight'), self.bits('activation')
        macs = costs.macs_table(space, front_end_macs=front_end.macs).of(self.architecture)
        parameters = costs.parameters_table(space, front_end_parameters=front_end.parameters)
        flash = costs.stored_bits(
            self.architecture,
            weight_bits=weight_bits,
            front_end_weights=taps,
            front_end_filters=tap_columns(front_end),
        )
        return {
            'parameters': int(parameters.of(self.architecture)),
            'macs': int(macs),
            'mean_weight_bits': costs.mean_bits(weight_bits, weights),
            'mean_activation_bits': costs.mean_bits(activation_bits, activations),
            'flash_bytes': -(-flash // 8),
            'peak_activation_bytes': int(
                costs.peak_activation_bytes(self.architecture, activation_bits=activation_bits)
            ),
        }


def quantized_taps(front_end: frontends.FrontEnd) -> int:
    """How many front-end weights are quantized and stored: none for fixed features (MFCC)."""
    return front_end.stored_weights if front_end.taps is not None else 0


def tap_columns(front_end: frontends.FrontEnd) -> int:
    """How many columns of taps have a multiplier of their own: two a filter in quadrature."""
    if front_end.taps is None:
        return 0
    taps = jax.eval_shape(lambda key: front_end.taps(front_end.init(key)), jax.random.key(0))
    return taps.shape[1]


def _flatten(tree, prefix=''):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _flatten(value, f'{prefix}{name}/')
    else:
        yield prefix[:-1], np.asarray(tree)


def _unflatten(arrays, prefix):
    tree = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            *parents, leaf = name[len(prefix) :].split('/')
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jnp.asarray(value)
    return tree


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file beside its place, then moves it there: it is whole or not there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def save(model: Model, directory) -> pathlib.Path:
    """Writes `model.json` and `model.npz` into `directory`, which is made if need be.

    Each file is whole or absent whenever the writing stops, and `load` refuses two that do not
    belong together.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    trees = {'params': model.params, 'averages': model.averages}
    quant = None
    if model.quant is not None:
        trees['quant'] = model.quant['params']
        quant = {'form': model.quant['form'], 'bits': model.quant['bits']}
    packed = io.BytesIO()
    np.savez_compressed(packed, **dict(_flatten(trees)))
    facts = {
        'format': FORMAT,
        'front_end': model.front_end,
        'architecture': model.architecture.to_json(),
        'labels': list(model.labels),
        'quant': quant,
        'costs': model.costs(),
        'card': model.card,
        'arrays': _digest(packed.getvalue()),
    }
    text = json.dumps(facts, indent=1) + '\n'
    _write(directory / 'model.npz', packed.getvalue())
    _write(directory / 'model.json', text.encode())
    return directory


def load(directory) -> Model:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: there is no model; says where one was looked for.
      ValueError: the files are damaged, of two models, or of another format.
    """
    directory = pathlib.Path(directory)
    facts_path, arrays_path = directory / 'model.json', directory / 'model.npz'
    for path in (facts_path, arrays_path):
        if not path.is_file():
            raise FileNotFoundError(
                f'{directory} holds no model: {path.name} is missing; give a folder that holds '
                'model.json and model.npz, such as the model/ of a finished run'
            )
    try:
        facts, packed = json.loads(facts_path.read_text()), arrays_path.read_bytes()
        if facts.get('arrays', _digest(packed)) != _digest(packed):
            raise ValueError('model.npz is not the one that model.json was written with')
        with np.load(io.BytesIO(packed)) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(
            f'the model in {directory} is damaged ({error}); copy it again, or '
            'delete the folder of its phase and run the pipeline once more'
        ) from error
    if facts.get('format') != FORMAT:
        raise ValueError(
            f'the model in {directory} has format {facts.get("format")}, this version reads '
            f'{FORMAT}; load it with the version that saved it'
        )
    quant = facts['quant']
    if quant is not None:
        quant = quant | {'params': _unflatten(arrays, 'quant/')}
    params = _unflatten(arrays, 'params/')
    params.setdefault('frontend', {})
    return Model(
        front_end=facts['front_end'],
        architecture=Architecture.from_json(facts['architecture']),
        labels=tuple(facts['labels']),
        params=params,
        averages=_unflatten(arrays, 'averages/'),
        quant=quant,
        card=facts['card'],
    )
