"""The suite that every way to round passes, and what it does to a whole network."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from kws_jax import costs, network, quantizers
from kws_jax.data.backgrounds import int16_to_float
from kws_jax.model import quantized_taps
from kws_jax.quantizers.forms import FORMS, MAX_BITS, best_range, is_signed, weight_step
from kws_jax.quantizers.rounding import largest_code

# what is rounded: (signed, is_weight)
KINDS = {'weight': (True, True), 'signed': (True, False), 'unsigned': (False, False)}
BITS = range(1, 9)


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    with small.quick_compilation():
        yield


every_form = pytest.mark.parametrize('name', FORMS)
every_kind = pytest.mark.parametrize('kind', KINDS)


def sample(kind):
    """Typical values of a tensor."""
    x = np.random.default_rng(3).normal(size=500)
    return np.asarray(x if KINDS[kind][0] else np.clip(2 * x, 0, 6), np.float32)


def start(form, kind, bits):
    """Parameters that fit `sample` at `bits`; the width is still learned."""
    signed, is_weight = KINDS[kind]
    return form.init(sample(kind), bits=bits, signed=signed, is_weight=is_weight)


def fixed(form, kind, bits):
    """Parameters that fit `sample`, at the whole width `bits`."""
    return form.fix(start(form, kind, bits), bits=bits, signed=KINDS[kind][0])


@functools.partial(jax.jit, static_argnames=('form', 'kind', 'bits'))
def jitted_apply(form, kind, params, x, bits):
    return form.apply(params, x, bits=bits, signed=KINDS[kind][0])


def apply(form, kind, params, x, bits=None):
    # widths above 1 are data; the static one tells them from 1 only
    return jitted_apply(form, kind, params, x, bits if bits is None else min(bits, 2))


@functools.partial(jax.jit, static_argnames=('form', 'kind'))
def jitted_width(form, kind, params):
    return form.bits(params, signed=KINDS[kind][0])


def width(form, kind, params):
    return float(jitted_width(form, kind, params))


@every_form
@every_kind
def test_rounding_twice_is_rounding_once(name, kind):
    form = FORMS[name]
    for bits in BITS:
        params = fixed(form, kind, bits)
        once = apply(form, kind, params, sample(kind), bits)
        np.testing.assert_allclose(
            apply(form, kind, params, once, bits), once, rtol=1e-6, atol=1e-7, err_msg=str(bits)
        )


@every_form
@every_kind
def test_values_are_on_a_grid_of_as_many_levels_as_the_bits_say(name, kind):
    form, signed = FORMS[name], KINDS[kind][0]
    for bits in BITS:
        params = fixed(form, kind, bits)
        # far beyond the range, so that the last level is met on either side
        x = np.linspace(-20, 20, 5001, dtype=np.float32)
        values = np.unique(apply(form, kind, params, x, bits))
        expected = 2 if signed and bits == 1 else 2**bits - signed
        assert len(values) == expected
        gaps = np.diff(values)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-3)
        if signed:
            np.testing.assert_allclose(values, -values[::-1], rtol=1e-6)
        else:
            assert values[0] == 0
        assert width(form, kind, params) == bits


@every_form
@every_kind
def test_a_learned_width_rounded_up_holds_every_level_in_use(name, kind):
    form = FORMS[name]
    x = np.linspace(-20, 20, 5001, dtype=np.float32)
    for bits in np.random.default_rng(4).uniform(2, 8, 12):
        values = np.unique(apply(form, kind, start(form, kind, float(bits)), x))
        shown = width(form, kind, start(form, kind, float(bits)))
        assert abs(shown - bits) <= (0.5 if name == 'range_bits' else 1e-3)
        assert len(values) <= 2 ** math.ceil(shown - 1e-4)


@every_form
@every_kind
@pytest.mark.parametrize('bits', [None, 1, 4])
def test_gradients_are_finite_wherever_the_values_are(name, kind, bits):
    form = FORMS[name]
    params = start(form, kind, 4) if bits is None else fixed(form, kind, bits)

    @jax.jit
    @jax.grad
    def gradients(both):
        return jnp.sum(apply(form, kind, *both, bits) ** 2)

    for x in (sample(kind), np.zeros(500), np.full(500, 1e4), np.full(500, 1e-12)):
        for leaf in jax.tree.leaves(gradients((params, jnp.asarray(x, jnp.float32)))):
            assert np.isfinite(leaf).all()


@every_form
@every_kind
def test_no_gradient_moves_the_levels_of_a_fixed_width(name, kind):
    form = FORMS[name]
    params = fixed(form, kind, 3)
    loss = lambda p: jnp.sum(apply(form, kind, p, sample(kind), 3) ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert float(gradient['levels']) == 0
    assert 'bits' not in gradient or float(gradient['bits']) == 0
    if 'log_step' in gradient:
        assert float(gradient['log_step']) != 0


def bounds(name, kind):
    low = 2 if KINDS[kind][0] or name == 'range_bits' else 1
    return low, MAX_BITS


def with_bits(form, kind, bits):
    """Learned parameters of exactly this width, in or out of bounds."""
    params = start(form, kind, 4)
    if 'bits' in params:
        return params | {'bits': jnp.float32(bits)}
    levels = largest_code(float(bits), KINDS[kind][0])
    return params | {'log_step': params['log_range'] - np.float32(np.log2(levels))}


@every_form
@every_kind
def test_project_brings_what_is_outside_to_the_bound_and_leaves_the_rest(name, kind):
    form, signed = FORMS[name], KINDS[kind][0]
    low, high = bounds(name, kind)
    for bits, expected in ((low - 0.4, low), (high + 2.0, high)):
        outside = with_bits(form, kind, bits)
        projected = form.project(outside, signed=signed)
        assert width(form, kind, projected) == pytest.approx(expected, abs=1e-4)
        again = form.project(projected, signed=signed)
        assert jax.tree.map(float, again) == jax.tree.map(float, projected)
    for bits in (low + 0.1, 3.3, high - 0.1):
        inside = with_bits(form, kind, bits)
        assert jax.tree.map(float, form.project(inside, signed=signed)) == jax.tree.map(
            float, inside
        )
    kept = fixed(form, kind, 1)
    assert form.project(kept, signed=signed) == kept


@every_form
@every_kind
@pytest.mark.parametrize('end', [0, 1])
def test_a_width_at_its_bound_still_gets_its_gradient_and_leaves_again(name, kind, end):
    form, signed = FORMS[name], KINDS[kind][0]
    bound = bounds(name, kind)[end]
    params = form.project(with_bits(form, kind, bound), signed=signed)
    away = 1.0 if end else -1.0  # price that makes it leave
    gradient = jax.grad(lambda p: away * form.bits(p, signed=signed))(params)
    assert any(float(jnp.abs(g)) > 0.1 for g in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda p, g: p - g, params, gradient)
    left = width(form, kind, form.project(moved, signed=signed))
    assert (bound - left if end else left - bound) > 0.5


OPTIMIZER = optax.adam(0.2)


def values_error(form, kind, params):
    """What a task holds against rounding: the mean squared error of the sample."""
    return jnp.mean((apply(form, kind, params, sample(kind)) - sample(kind)) ** 2)


@functools.partial(jax.jit, static_argnames=('form', 'kind'))
def optimizer_step(form, kind, params, opt, price):
    signed = KINDS[kind][0]

    def loss(params):
        return values_error(form, kind, params) + price * form.bits(params, signed=signed)

    updates, opt = OPTIMIZER.update(jax.grad(loss)(params), opt)
    return form.project(optax.apply_updates(params, updates), signed=signed), opt


def optimized(form, kind, params, *, price, steps):
    opt = OPTIMIZER.init(params)
    for _ in range(steps):
        params, opt = optimizer_step(form, kind, params, opt, jnp.float32(price))
    return params


@every_form
@every_kind
def test_widths_move_under_a_price_in_a_few_optimizer_steps(name, kind):
    form = FORMS[name]
    for price in (1.0, -1.0):
        params = optimized(form, kind, start(form, kind, 5), price=price, steps=8)
        assert (width(form, kind, params) - 5) * price <= -1


@every_form
@every_kind
def test_the_task_alone_asks_for_more_bits(name, kind):
    form = FORMS[name]
    few = start(form, kind, 2)
    more = optimized(form, kind, few, price=0.0, steps=12)
    assert width(form, kind, more) >= 3
    assert float(values_error(form, kind, more)) < 0.5 * float(values_error(form, kind, few))


def test_the_best_range_is_the_best_of_a_fine_search():
    x = np.concatenate([sample('signed'), [12.0]])  # an outlier that is not worth its range
    for signed, bits in ((True, 2), (True, 4), (False, 1), (False, 3)):
        levels = largest_code(bits, signed)

        def error(limit, levels=levels, low=-1.0 if signed else 0.0):
            codes = np.round(np.clip(x / limit, low, 1) * levels)
            return np.square(codes * limit / levels - x).sum()

        least = min(error(limit) for limit in np.linspace(0.2, 12, 2000))
        assert error(best_range(x, bits=bits, signed=signed)) <= 1.02 * least
        assert best_range(x, bits=bits, signed=signed) < 12
    assert best_range(x, bits=1, signed=True) == pytest.approx(np.abs(x).mean())


@pytest.mark.parametrize('signed', [True, False])
def test_a_tensor_without_values_to_fit_still_gets_a_range(signed):
    assert best_range(np.zeros(5), bits=4, signed=signed) == 1.0
    assert best_range(-np.ones(5), bits=4, signed=False) == 1.0


# ---- a whole network


@functools.cache
def model():
    return small.model(('e2k3', 'e1k3'))


def sites():
    m = model()
    return {
        'weight': costs.weight_sites(
            m.architecture, front_end_weights=quantized_taps(m.make_front_end())
        ),
        'activation': costs.activation_sites(m.architecture),
    }


def run(quant, clips):
    """Logits through `quant`."""
    m = model()
    return network.apply(
        m.params,
        m.averages,
        int16_to_float(clips),
        front_end=m.make_front_end(),
        architecture=m.architecture,
        quant=quant,
    )[0]


@functools.cache
def samples():
    return quantizers.collect(run, small.tones(6)[0])


@functools.cache
def recorder(name, one_bit):
    """Jitted `(quant params) -> {site: what the network got}`; widths above 1 are data."""

    def record(quant_params, clips):
        seen = {}
        bits = {n: dict.fromkeys(own, 1 if one_bit else 2) for n, own in quant_params.items()}
        quant = quantizers.make_quant(FORMS[name], quant_params, bits)

        def recording(site, kind, x):
            assert (site, kind) not in seen, f'{site} {kind} is rounded twice'
            seen[site, kind] = quant(site, kind, x)
            return seen[site, kind]

        logits = run(recording, clips)
        return {f'{site}|{kind}': x for (site, kind), x in seen.items()} | {'logits': logits}

    return jax.jit(record)


@every_form
@pytest.mark.parametrize('bits', BITS)
def test_every_tensor_of_a_network_is_rounded_to_at_most_two_to_the_bits_levels(name, bits):
    sizes = sites()
    each = quantizers.uniform_bits(
        sizes['weight'], sizes['activation'], weight=bits, activation=bits
    )
    params = quantizers.fix_bits(
        FORMS[name], quantizers.init_quant_params(FORMS[name], samples(), each), each
    )
    seen = recorder(name, bits == 1)(params, small.tones(6)[0])
    assert np.isfinite(seen.pop('logits')).all()
    expected = {f'{site}|{kind}' for kind, names in sizes.items() for site in names}
    assert set(seen) == expected  # weights and activations, input samples and filters included
    for key, value in seen.items():
        value = np.asarray(value)
        channels = value.reshape(-1, value.shape[-1]).T
        per_channel = FORMS[name].per_channel and key != 'classifier|weight'
        if key == 'frontend|weight' or (per_channel and key.endswith('|weight')):
            levels = max(len(np.unique(channel)) for channel in channels)
        else:
            levels = len(np.unique(value))
        assert 1 < levels <= 2**bits, f'{key} has {levels} levels'
        assert (value < 0).any() == is_signed(*key.split('|')), key


def test_weights_and_activations_may_have_different_widths():
    sizes = sites()
    form = FORMS['step_range']
    each = quantizers.uniform_bits(sizes['weight'], sizes['activation'], weight=2, activation=7)
    params = quantizers.fix_bits(form, quantizers.init_quant_params(form, samples(), each), each)
    seen = recorder('step_range', False)(params, small.tones(6)[0])
    stem = np.asarray(seen['stem|weight'])
    assert max(len(np.unique(stem[..., i])) for i in range(stem.shape[-1])) <= 4
    assert 4 < len(np.unique(seen['input|activation'])) <= 128
    learned = {k: quantizers.learned_bits(form, params, k) for k in ('weight', 'activation')}
    assert set(map(float, learned['weight'].values())) == {2.0}
    assert set(map(float, learned['activation'].values())) == {7.0}


@every_form
def test_two_bits_of_a_weight_are_four_levels_only_where_the_form_says_so(name):
    form = FORMS[name]
    w = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32) * np.geomspace(1, 9, 6)
    w = w.astype(np.float32)
    for layer in ('head', 'frontend', 'classifier'):
        params = quantizers.init_quant_params(form, {(layer, 'weight'): w}, {layer: {'weight': 2}})
        params = quantizers.fix_bits(form, params, {layer: {'weight': 2}})
        seen = np.asarray(
            quantizers.make_quant(form, params, {layer: {'weight': 2}})(layer, 'weight', w)
        )
        step = np.broadcast_to(weight_step(form, params[layer]['weight'], layer, w, 2), w.shape)
        codes = seen / step
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
        expected = {-3, -1, 1, 3} if form.four_levels and layer != 'frontend' else {-1, 0, 1}
        assert set(np.round(codes).ravel()) == expected, layer


def test_a_weight_is_rounded_alike_whatever_its_channels_are_scaled_by():
    # as batch norm behind it undoes any factor of a channel, so does its step
    form, bits = FORMS['step_range'], {'head': {'weight': 3}}
    w = np.random.default_rng(6).normal(size=(30, 5)).astype(np.float32)
    factors = np.array([[1, 2, 0.25, 8, 0.5]], np.float32)
    params = quantizers.init_quant_params(form, {('head', 'weight'): w}, bits)
    quant = quantizers.make_quant(form, quantizers.fix_bits(form, params, bits), bits)
    np.testing.assert_allclose(
        quant('head', 'weight', w * factors), quant('head', 'weight', w) * factors, rtol=1e-5
    )
    # its straight-through gradient is 1 inside of the range, and no factor of the channel enters
    inside = np.asarray(jax.grad(lambda x: quant('head', 'weight', x).sum())(w * factors))
    np.testing.assert_allclose(inside, np.round(inside), atol=1e-5)
    assert set(np.round(inside).ravel()) == {0.0, 1.0} and inside.mean() > 0.5


def test_the_logits_depend_on_every_tensor_that_is_rounded():
    keys = [(name, kind) for kind, names in sites().items() for name in names]

    @jax.jit
    @jax.jacrev
    def slopes(factors):
        def quant(name, kind, x):
            return x * factors[keys.index((name, kind))]

        return run(quant, small.tones(4)[0]).mean(axis=0)

    each = jnp.abs(slopes(jnp.ones(len(keys)))).sum(axis=0)
    assert (each > 1e-6).all(), dict(zip(keys, each.tolist(), strict=True))


@every_form
def test_sixteen_bits_give_the_logits_of_the_float_network_to_a_thousandth(name):
    form, clips = FORMS[name], small.tones(6)[0]
    sizes = sites()
    each = quantizers.uniform_bits(sizes['weight'], sizes['activation'], weight=16, activation=16)
    params = quantizers.fix_bits(form, quantizers.init_quant_params(form, samples(), each), each)
    rounded = recorder(name, False)(params, clips)['logits']
    np.testing.assert_allclose(rounded, model().predictor()(clips), atol=1e-3)


@every_form
def test_project_and_fix_keep_the_shape_of_all_parameters_of_a_network(name):
    form = FORMS[name]
    sizes = sites()
    start_bits = quantizers.uniform_bits(
        sizes['weight'], sizes['activation'], weight=5, activation=5
    )
    params = quantizers.init_quant_params(form, samples(), start_bits)
    projected = quantizers.project(form, params)
    assert jax.tree.structure(projected) == jax.tree.structure(params)
    assert {(n, k) for n, own in params.items() for k in own} == {
        (n, k) for k, names in sizes.items() for n in names
    }
    bits = quantizers.learned_bits(form, params, 'weight')
    assert set(bits) == set(sizes['weight'])
    np.testing.assert_allclose([float(b) for b in bits.values()], 5.0, atol=1e-4)
