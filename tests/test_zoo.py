"""Released models by name, runs by folder, and errors that name the nearest."""

import os
import pathlib

import numpy as np
import pytest
import small

from kws_jax import deploy, evaluate, zoo
from kws_jax import model as model_lib
from kws_jax.data.dataset import load_dataset
from kws_jax.deploy import execute
from kws_jax.training import evaluation

REAL = os.environ.get('KWS_JAX_SPEECH_COMMANDS')


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A zoo that holds sinc60-float and sinc60-trained-bits."""
    for name in ('sinc60-trained-bits', 'sinc60-float'):
        model_lib.save(small.model(), tmp_path / 'zoo' / name)
    (tmp_path / 'zoo' / 'unfinished').mkdir()
    monkeypatch.setattr(zoo, '_ROOT', tmp_path / 'zoo')
    return tmp_path


def test_released_models_are_listed_by_name_and_loaded(released):
    assert zoo.names() == ['sinc60-float', 'sinc60-trained-bits']
    assert zoo.load('sinc60-float').labels == small.NAMES


def test_every_model_that_is_released_loads():
    for name in zoo.names():
        assert zoo.load(name).labels


def test_a_run_is_loaded_by_its_folder_or_its_model_folder(released, tmp_path):
    model_lib.save(small.model(), tmp_path / 'run' / 'float' / 'model')
    for path in (tmp_path / 'run' / 'float', str(tmp_path / 'run' / 'float' / 'model')):
        assert zoo.load(path).architecture == small.model().architecture


def test_a_misspelt_name_names_the_nearest(released):
    with pytest.raises(FileNotFoundError, match="'sinc60-flot'; did you mean sinc60-float"):
        zoo.load('sinc60-flot')


def test_a_name_like_no_other_lists_all(released):
    with pytest.raises(FileNotFoundError, match='released are: sinc60-float, sinc60-trained-bits'):
        zoo.load('zzz')


def test_the_folder_of_a_run_lists_the_models_in_it(released, tmp_path):
    for name in ('float', 'trained-bits'):
        model_lib.save(small.model(), tmp_path / 'run' / name / 'model')
    for wrong in ('run', 'run/trained-bit'):
        with pytest.raises(FileNotFoundError, match='there are .*/run/float, .*/run/trained-bits$'):
            zoo.load(tmp_path / wrong)


def test_an_empty_zoo_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, '_ROOT', tmp_path)
    with pytest.raises(FileNotFoundError, match='released are: none'):
        zoo.load('anything')


def test_a_folder_without_a_model_is_told_from_a_wrong_name(released, tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no model.json .a run writes it'):
        zoo.load(tmp_path / 'zoo' / 'unfinished')


BUDGETS = {  # parameters, MACs, bits of a weight and of an activation; None: as they come
    'sinc60-float': (75_700, 13.6e6, None, None),
    'sinc60-trained-bits': (75_700, 13.6e6, 2.51, 2.91),
    'sinc48-float': (75_700, 13.6e6, None, None),
    'sinc48-trained-bits': (75_700, 13.6e6, 2.51, 2.91),
    'sinc-small': (20_000, 5e6, None, None),
}


@pytest.mark.parametrize('name', zoo.names())
def test_a_released_model_keeps_its_budget_and_its_card_says_what_it_scored(name):
    model = zoo.load(name)
    costs = model.costs()
    wanted = ('parameters', 'macs', 'mean_weight_bits', 'mean_activation_bits')
    for key, most in zip(wanted, BUDGETS[name], strict=True):
        assert most is None or costs[key] <= most
    assert model.card['test']['clips'] == 2591 and 'what' in model.card['test']
    assert {'data', 'recipe', 'validation_accuracy'} <= set(model.card)


@pytest.mark.skipif(
    not REAL, reason='needs KWS_JAX_SPEECH_COMMANDS, a folder with train/ and test/ in it'
)
@pytest.mark.parametrize('name', zoo.names())
def test_a_released_model_scores_what_its_card_says_and_its_integers_the_same(name, tmp_path):
    model, real = zoo.load(name), pathlib.Path(REAL)
    on_test = evaluate.evaluate_folder(model, real / 'test', cache_dir=tmp_path)
    assert on_test['accuracy'] == pytest.approx(model.card['test']['accuracy'], abs=0.001)
    if model.quant is None:
        return
    data = load_dataset(data_dir=real / 'train', test_dir=real / 'test', cache_dir=tmp_path)
    integers = execute.jitted(deploy.from_model(model))
    same = []
    for split in ('validation', 'testing'):
        audio, labels = data.evaluation(split)
        trained = evaluation.predict_all(model.predictor(), audio).argmax(axis=1)
        found = evaluation.predict_all(integers, audio).argmax(axis=1)
        assert abs((found == labels).mean() - (trained == labels).mean()) <= 0.001
        same.append(found == trained)
    assert np.concatenate(same).mean() >= 0.999
