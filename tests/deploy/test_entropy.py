"""Entropy-coded files: whole again byte for byte, near the entropy, refused when damaged."""

import integer_models
import numpy as np
import pytest

from kws_jax import deploy
from kws_jax.deploy import entropy, packed


@pytest.mark.parametrize('front_end', sorted(integer_models.FRONT_ENDS))
@pytest.mark.parametrize('weight', [1, 2, 3, 8])
def test_it_gives_back_the_packed_file(front_end, weight):
    network = deploy.from_model(integer_models.make(front_end, weight=weight))
    content = packed.pack(network, {'card': {'seed': 3}})
    assert entropy.decode(entropy.encode(content)) == content


def test_a_code_is_as_long_as_its_entropy():
    rng = np.random.default_rng(0)
    symbols = rng.choice(4, 20_000, p=[0.9, 0.06, 0.03, 0.01])
    shares = entropy._frequencies(symbols, 4)
    code = entropy._code(symbols, shares)
    p = np.bincount(symbols) / len(symbols)
    bits = -(p * np.log2(p)).sum() * len(symbols)
    assert bits <= 8 * len(code) <= 1.01 * bits + 64
    np.testing.assert_array_equal(entropy._symbols(code, shares, len(symbols)), symbols)


@pytest.mark.parametrize('symbols', [[], [2], [3] * 1000])
def test_few_symbols_and_one_alone(symbols):
    symbols = np.array(symbols, np.int64)
    shares = entropy._frequencies(symbols, 4)
    assert shares.sum() == 4096
    code = entropy._code(symbols, shares)
    np.testing.assert_array_equal(entropy._symbols(code, shares, len(symbols)), symbols)
    assert len(code) <= 8


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda c: b'KWSI' + c[4:], 'does not begin with KWSE'),
        (lambda c: c[:10], 'does not begin with KWSE'),
        (lambda c: c[:4] + b'\x07' + c[5:], 'version 7; this code reads 1'),
        (lambda c: c[:-30], 'damaged'),
        (lambda c: c[:25] + bytes([c[25] ^ 4]) + c[26:], 'damaged'),
        (lambda c: c[:-9] + bytes([c[-9] ^ 1]) + c[-8:], 'damaged'),
    ],
)
def test_damaged_files_are_refused(damage, message):
    content = entropy.encode(packed.pack(deploy.from_model(integer_models.make())))
    with pytest.raises(ValueError, match=message):
        entropy.decode(damage(content))
