"""Costs of architectures: exact, exact in expectation, and as published."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax import costs, frontends, network
from kws_jax.layers import basic
from kws_jax.space import SearchSpace, Stage, Stem, mbconvs, mfcc_space, table1_space

FRONT_END = frontends.make('conv', filters=8, stride=800)  # image 20 x 8
SPACE = SearchSpace(
    image_shape=(20, 8),
    classes=3,
    stem=Stem(channels=4, kernel=(3, 3), stride=(2, 2)),
    stages=(
        Stage('a', channels=6, layers=2, stride=2, candidates=mbconvs((1, 2, 5), (3, 5))),
        Stage('b', channels=6, layers=2, stride=1, candidates=mbconvs((3,), (3,))),
    ),
    head_channels=5,
)
PATHS = list(itertools.product(*(range(len(layer.choices)) for layer in SPACE.layers)))
ARCHITECTURES = [SPACE.architecture(path) for path in PATHS]
EXAMPLE = ('e3k3', 'e3k7', 'e4k3', 'e5k7', 'e5k7', 'e5k5')


def random_logits(seed):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=len(x.choices)), jnp.float32) for x in SPACE.layers]


def enumerated_mean(values, logits):
    """Mean of one value per architecture, summed over all of them."""
    rows = [jax.nn.softmax(row) for row in logits]
    joint = rows[0]
    for row in rows[1:]:
        joint = joint[..., None] * row.reshape((1,) * joint.ndim + (-1,))
    return jnp.vdot(joint.ravel(), jnp.asarray(values, jnp.float32))


COSTS = {
    'macs': (
        lambda a: costs.macs_table(SPACE, front_end_macs=FRONT_END.macs).of(a),
        lambda p: costs.macs_table(SPACE, front_end_macs=FRONT_END.macs).expected(p),
    ),
    'parameters': (
        lambda a: costs.parameters_table(SPACE, front_end_parameters=120).of(a),
        lambda p: costs.parameters_table(SPACE, front_end_parameters=120).expected(p),
    ),
    'stored bits': (
        lambda a: costs.stored_bits(a, weight_bits=3, front_end_weights=77, front_end_filters=8),
        lambda p: costs.stored_bits_table(
            SPACE, weight_bits=3, front_end_weights=77, front_end_filters=8
        ).expected(p),
    ),
    'peak activation bytes': (
        lambda a: costs.peak_activation_bytes(a, activation_bits=4, samples=50),
        lambda p: costs.expected_peak_activation_bytes(SPACE, p, activation_bits=4, samples=50),
    ),
}


@pytest.mark.parametrize('cost', COSTS)
def test_expected_cost_and_its_gradient_equal_the_sum_over_all_architectures(cost):
    exact, expected = COSTS[cost]
    values = [exact(architecture) for architecture in ARCHITECTURES]
    assert len(set(values)) > 3
    for seed in range(2):
        logits = random_logits(seed)
        got = jax.value_and_grad(lambda rows: expected([jax.nn.softmax(r) for r in rows]))(logits)
        wanted = jax.value_and_grad(lambda rows: enumerated_mean(values, rows))(logits)
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
        scale = max(float(jnp.abs(g).max()) for g in wanted[1])
        for a, b in zip(got[1], wanted[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * scale)


@pytest.mark.parametrize('cost', COSTS)
def test_expected_cost_at_certainty_is_the_cost_of_the_architecture(cost):
    exact, expected = COSTS[cost]
    for architecture in ARCHITECTURES[:: len(ARCHITECTURES) // 7]:
        certain = [
            jnp.zeros(len(layer.choices)).at[i].set(1.0)
            for layer, i in zip(SPACE.layers, architecture.path, strict=True)
        ]
        np.testing.assert_allclose(expected(certain), exact(architecture), rtol=1e-6)


def test_bounds_are_those_of_all_architectures():
    table = costs.macs_table(SPACE, front_end_macs=FRONT_END.macs)
    values = [table.of(architecture) for architecture in ARCHITECTURES]
    assert table.bounds == (min(values), max(values))


# ---------------------------------------------------------------------------------- by hand


def test_macs_of_a_small_network_by_hand():
    # image 20 x 8, stem to 10 x 4, stage a to 5 x 2
    architecture = SPACE.architecture(['e2k5', 'identity', 'e3k3', 'identity'])
    stem = 10 * 4 * 9 * 4
    a0 = 10 * 4 * (4 * 8) + 5 * 2 * (8 * 25 + 8 * 6)
    b0 = 5 * 2 * (6 * 18 + 18 * 9 + 18 * 6)
    head, classifier = 5 * 2 * 6 * 5, 5 * 3
    table = costs.macs_table(SPACE, front_end_macs=1000)
    assert table.of(architecture) == 1000 + stem + a0 + b0 + head + classifier


def test_stored_bits_of_a_small_network_by_hand():
    architecture = SPACE.architecture(['e1k3', 'identity', 'identity', 'identity'])
    weights = {'stem': 36, 'a.0.depthwise': 4 * 9, 'a.0.project': 24, 'head': 30, 'classifier': 15}
    channels = 4 + 4 + 6 + 5 + 3
    assert costs.weight_sites(architecture, front_end_weights=0) == weights
    got = costs.stored_bits(architecture, weight_bits=2, front_end_weights=0, front_end_filters=0)
    assert got == 2 * sum(weights.values()) + 32 * channels + 32 * len(weights)
    # one width for each, and a front end of 8 columns with 100 stored weights, for 8 filters
    bits = dict.fromkeys(weights, 2) | {'head': 5, 'frontend': 8}
    got = costs.stored_bits(
        architecture, weight_bits=bits, front_end_weights=100, front_end_filters=8
    )
    expected = 8 * 100 + 5 * 30 + 2 * (sum(weights.values()) - 30)
    assert got == expected + 32 * channels + (32 + 32) * 8 + 32 * (len(weights) + 1)


def simulated_peak(architecture, bits, samples):
    """Peak bytes by a simulation: at each operation every tensor that is still needed is live."""
    space = architecture.space
    sizes = {'input': samples, 'frontend': 20 * 8, 'stem': 10 * 4 * 4}
    operations = [(['input'], 'frontend'), (['frontend'], 'stem')]
    last = 'stem'
    for layer, choice in zip(space.layers, architecture.choices, strict=True):
        if choice.is_identity:
            continue
        before, width = last, layer.in_channels * choice.expansion
        if choice.expansion > 1:
            sizes[f'{layer.name}.expand'] = np.prod(layer.in_shape) * width
            operations.append(([last], f'{layer.name}.expand'))
            last = f'{layer.name}.expand'
        sizes[f'{layer.name}.depthwise'] = np.prod(layer.image_shape) * width
        operations.append(([last], f'{layer.name}.depthwise'))
        sizes[f'{layer.name}.project'] = np.prod(layer.image_shape) * layer.channels
        residual = [before] if layer.stride == 1 and layer.in_channels == layer.channels else []
        operations.append(([f'{layer.name}.depthwise', *residual], f'{layer.name}.project'))
        last = f'{layer.name}.project'
    sizes['head'] = np.prod(space.final_shape) * space.head_channels
    operations.append(([last], 'head'))
    assert sizes == costs.activation_sites(architecture, samples=samples)
    peak = 0
    for i, (inputs, output) in enumerate(operations):
        made = {'input'} | {name for _, name in operations[:i]}
        needed = {name for later, _ in operations[i:] for name in later}
        live = (made & needed) | set(inputs) | {output}
        peak = max(peak, sum(sizes[name] * bits[name] for name in live))
    return peak / 8


@pytest.mark.parametrize('samples', [16000, 50])
def test_peak_activation_bytes_equals_a_simulation_of_what_is_live(samples):
    rng = np.random.default_rng(0)
    for architecture in ARCHITECTURES:
        sites = costs.activation_sites(architecture, samples=samples)
        bits = {name: int(rng.integers(1, 9)) for name in sites}
        got = costs.peak_activation_bytes(architecture, activation_bits=bits, samples=samples)
        assert got == simulated_peak(architecture, bits, samples)
        got = costs.peak_activation_bytes(architecture, activation_bits=4, samples=samples)
        assert got == simulated_peak(architecture, dict.fromkeys(sites, 4), samples)


def test_mean_bits_weighs_by_size():
    # 3 of 4 values at 2 bits, 1 at 6
    assert costs.mean_bits({'a': 2, 'b': 6, 'c': 9}, {'a': 30, 'b': 10}) == 3.0


# -------------------------------------------------------------------------- against the network


def abstract_network(architecture, front_end=FRONT_END):
    """Weights of the network, and the shape of everything that it would quantize."""
    seen = {'weight': {}, 'activation': {}}

    def quant(name, kind, x):
        seen[kind][name] = x.size
        return x

    def run(key):
        params, state = network.init(key, front_end, architecture)
        audio = jnp.zeros((1, 16000))
        network.apply(
            params, state, audio, front_end=front_end, architecture=architecture, quant=quant
        )
        return params

    return jax.eval_shape(run, jax.random.key(0)), seen


def test_parameters_and_quantized_tensors_are_those_of_the_network():
    table = costs.parameters_table(SPACE, front_end_parameters=FRONT_END.parameters)
    for architecture in ARCHITECTURES[::5]:
        params, seen = abstract_network(architecture)
        assert table.of(architecture) == sum(leaf.size for leaf in jax.tree.leaves(params))
        assert seen['weight'] == costs.weight_sites(
            architecture, front_end_weights=FRONT_END.stored_weights
        )
        assert seen['activation'] == costs.activation_sites(architecture, samples=16000)


def count_macs(jaxpr):
    """Multiply-accumulates of every product and convolution in a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        size = np.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == 'dot_general':
            contracted = equation.params['dimension_numbers'][0][0]
            total += size * np.prod([shapes[0][i] for i in contracted])
        elif equation.primitive.name == 'conv_general_dilated':
            numbers = equation.params['dimension_numbers']
            total += size * np.prod(shapes[1]) / shapes[1][numbers.rhs_spec[0]]
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, 'jaxpr', value)
            total += count_macs(inner) if hasattr(inner, 'eqns') else 0
    return total


@pytest.mark.parametrize(
    ('space', 'front_end', 'choices'),
    [
        (SPACE, FRONT_END, ('e2k5', 'e1k3', 'e3k3', 'identity')),
        (table1_space((98, 60)), frontends.make('conv', filters=60), EXAMPLE),
    ],
)
def test_macs_are_those_of_the_traced_network(monkeypatch, space, front_end, choices):
    # one convolution and one product, which can be counted
    monkeypatch.setenv('KWS_JAX_DEPTHWISE', 'platform')
    monkeypatch.setattr(basic, '_small_conv', basic._product_of_patches)
    architecture = space.architecture(choices)
    params, state = jax.eval_shape(
        lambda key: network.init(key, front_end, architecture), jax.random.key(0)
    )
    traced = jax.make_jaxpr(
        lambda params, state, audio: network.apply(
            params, state, audio, front_end=front_end, architecture=architecture
        )[0]
    )(params, state, jax.ShapeDtypeStruct((1, 16000), jnp.float32))
    table = costs.macs_table(space, front_end_macs=front_end.macs)
    assert count_macs(traced.jaxpr) == table.of(architecture)


# ---------------------------------------------------------------------------------- as published


@pytest.mark.parametrize(('filters', 'published'), [(40, 14.15), (60, 21.7), (80, 28.3)])
def test_the_largest_network_of_table_1_has_the_published_macs(filters, published):
    # derived from table 1 of Peter et al. 2021: all layers e6k7, the front end included
    space = table1_space((98, filters))
    front_end = frontends.make('sinc', filters=filters)
    table = costs.macs_table(space, front_end_macs=front_end.macs)
    assert table.of(space.largest()) / 1e6 == pytest.approx(published, abs=0.03)
    assert table.bounds[1] == table.of(space.largest())


def test_the_largest_networks_of_table_1_have_the_published_parameters():
    # 109.6k with a SincConv (2 parameters per filter), 141.5k with a Conv1D of 80 filters
    space = table1_space((98, 80))
    sinc = costs.parameters_table(table1_space((98, 60)), front_end_parameters=2 * 60)
    conv = costs.parameters_table(space, front_end_parameters=400 * 80)
    assert sinc.of(space.largest()) == pytest.approx(109.6e3, abs=50)
    assert conv.of(space.largest()) == pytest.approx(141.5e3, abs=50)


def test_the_example_network_has_75_7_thousand_parameters_and_13_6_million_macs():
    space, front_end = table1_space((98, 60)), frontends.make('sinc', filters=60)
    architecture = space.architecture(EXAMPLE)
    parameters = costs.parameters_table(space, front_end_parameters=front_end.parameters)
    macs = costs.macs_table(space, front_end_macs=front_end.macs)
    assert parameters.of(architecture) == pytest.approx(75.7e3, abs=50)
    assert macs.of(architecture) == pytest.approx(13.6e6, abs=0.05e6)


def test_759_architectures_have_the_published_size():
    # all 42 million of them: half the network by brute force, the halves joined by bisection
    space, front_end = table1_space((98, 60)), frontends.make('sinc', filters=60)
    macs = costs.macs_table(space, front_end_macs=front_end.macs)
    parameters = costs.parameters_table(space, front_end_parameters=front_end.parameters)

    def sums(table, layers):
        return np.array([sum(row) for row in itertools.product(*(table.layers[i] for i in layers))])

    first, last = (0, 1, 2), (3, 4, 5)
    order = np.argsort(sums(parameters, last), kind='stable')
    last_parameters = sums(parameters, last)[order] + parameters.fixed
    last_macs = sums(macs, last)[order] + macs.fixed
    found = 0
    for own_parameters, own_macs in zip(sums(parameters, first), sums(macs, first), strict=True):
        low, high = np.searchsorted(last_parameters, np.array([75650, 75750]) - own_parameters)
        total = last_macs[low:high] + own_macs
        found += int(((total >= 13.55e6) & (total < 13.65e6)).sum())
    assert found == 759


# Peter et al. 2020, one search per beta: weights in thousands, MACs in millions
SIBLING = {
    (0.75, 10): ('597 375 315 159 112 44', '42.3 27.9 24.0 12.0 9.0 4.6'),
    (1.0, 10): ('891 695 365 273 127 42', '63.6 51.9 30.4 23.4 10.9 3.4'),
    (1.25, 10): ('1231 926 593 244 173 68', '89.8 67.0 48.4 19.65 15.0 5.2'),
    (1.0, 20): ('850 614 466 190 168 70', '124 93 74 32 27.1 14.4'),
    (1.0, 30): ('897 694 463 275 172 93', '195 155 110 71 41 26'),
    (1.0, 40): ('888 643 400 296 170 101', '258 194 127 96 55 37'),
}


@pytest.mark.parametrize(('width', 'coefficients'), SIBLING)
def test_the_published_mfcc_networks_fit_the_mfcc_space(width, coefficients):
    """Weights fix the MACs up to the first expansion; each published pair must agree with one.

    All layers see the same number of pixels, but for the stem and the first layer's expansion.
    """
    space = mfcc_space((51, coefficients), width=width)
    table = costs.macs_table(space, front_end_macs=0)
    pixels = np.prod(space.final_shape)

    def counts(architecture):
        weights = sum(costs.weight_sites(architecture, front_end_weights=0).values())
        return weights, table.of(architecture)

    def starts(expansion):
        return counts(space.architecture([f'e{expansion}k3'] + ['identity'] * 11))

    rng = np.random.default_rng(0)
    for _ in range(5):
        architecture = space.sample(rng)
        weights, macs = starts(architecture.choices[0].expansion)
        more = counts(architecture)
        assert more[1] - macs == pixels * (more[0] - weights)

    for thousands, millions in zip(*map(str.split, SIBLING[width, coefficients]), strict=True):
        digits = len(millions.partition('.')[2])
        tolerance = 0.5e3 * pixels + 0.5e6 / 10**digits
        predicted = [
            macs + pixels * (1e3 * float(thousands) - weights)
            for weights, macs in (starts(e) for e in range(1, 7))
        ]
        error = min(abs(p - 1e6 * float(millions)) for p in predicted)
        assert error <= tolerance, (thousands, millions)
