"""The README's examples run as they are written."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from kws_jax import config as config_lib
from kws_jax import costs, pipeline, quantizers
from kws_jax import model as model_lib
from kws_jax.quantizers.forms import is_signed

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


@pytest.mark.parametrize('block', BLOCKS)
def test_examples_are_under_thirty_lines(block):
    assert len(block.strip().splitlines()) < 30


@pytest.mark.parametrize('variant', ['', ':quickstart'])
def test_search_space_example_is_a_config_that_a_search_accepts(tmp_path, variant):
    (example,) = (block for block in BLOCKS if 'config.space' in block)
    path = tmp_path / 'my_space.py'
    path.write_text(example)
    config = config_lib.load_config(str(path) + variant).to_dict()
    problem = pipeline.make_problem(config, ['yes', 'no', 'silence', 'unknown'])
    assert [layer.name for layer in problem.space.layers] == ['a.0', 'a.1', 'b.0', 'b.1']
    assert problem.space.size == (3 * 4) ** 2  # identity fits the second layer of each stage only
    low, high = problem.macs_table.bounds
    assert low <= problem.macs <= high
    assert costs.parameters_table(problem.space, front_end_parameters=0).bounds[1] < 40_000


def test_quantizer_example_rounds_to_powers_of_two(monkeypatch):
    monkeypatch.setattr(quantizers, 'FORMS', dict(quantizers.FORMS))
    (example,) = (block for block in BLOCKS if 'quantizers.FORMS' in block)
    scope = {}
    exec(compile(example, 'README.md', 'exec'), scope)
    form = quantizers.FORMS['powers']
    sample = np.linspace(-1.0, 1.0, 101)
    params = form.init(sample, bits=3, signed=True, is_weight=True)
    params = form.fix(params | {'log_range': jnp.float32(0.0)}, bits=3, signed=True)
    got = form.apply(params, jnp.array([1.1, 0.9, -0.55, 0.26, 0.1, 0.0]), bits=3, signed=True)
    # three magnitudes: 1, 1/2 and 1/4; what is nearer to zero on the logarithmic scale is zero
    np.testing.assert_allclose(got, [1.0, 1.0, -0.5, 0.25, 0.0, 0.0])


def test_quantizer_example_runs_in_a_saved_model(monkeypatch, tmp_path):
    (example,) = (block for block in BLOCKS if 'quantizers.FORMS' in block)
    path = tmp_path / 'powers.py'
    path.write_text(example)
    config_lib.import_file(path)
    model, form = small.model(), quantizers.get_form('powers')
    bits = {name: {'weight': 3, 'activation': 5} for name in model.bits('activation')}
    bits |= {name: {'weight': 3} | bits.get(name, {}) for name in model.bits('weight')}
    params = jax.tree.map(
        lambda own: form.fix({'log_step': 0.0, 'log_range': jnp.float32(1.0)}, **own),
        {
            name: {k: {'bits': b, 'signed': is_signed(name, k)} for k, b in own.items()}
            for name, own in bits.items()
        },
        is_leaf=lambda tree: 'signed' in tree,
    )
    quant = {'form': 'powers', 'bits': bits, 'params': params}
    model_lib.save(dataclasses.replace(model, quant=quant), tmp_path / 'model')
    audio = small.tones(2)[0]
    logits = model_lib.load(tmp_path / 'model').predictor()(audio)
    assert jnp.isfinite(logits).all() and not np.allclose(logits, model.predictor()(audio))
    # where nobody imported it, the message says what to do
    monkeypatch.delitem(quantizers.FORMS, 'powers')
    with pytest.raises(ValueError, match="no quantizer 'powers', only .*--import=FILE"):
        model_lib.load(tmp_path / 'model').predictor()


def test_programs_and_folders_that_the_readme_names_exist():
    for name in set(re.findall(r'(?:launch|configs)/\w+\.(?:py|sh)', README)):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r'\]\((docs/[\w./-]+)\)', README):
        assert (ROOT / name).is_file(), name
