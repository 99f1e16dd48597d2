"""What every front end must hold, and the errors of `make`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.frontends import FACTORIES, make
from kws_jax.frontends.base import frame_product

CASES = {
    'sinc': ('sinc', {'filters': 40}),
    'sinc none': ('sinc', {'filters': 40, 'compression': 'none'}),
    'sinc relu tap': ('sinc', {'filters': 60, 'compression': 'relu', 'scaling': 'tap'}),
    'sinc quadrature': ('sinc', {'filters': 60, 'quadrature': True}),
    'sinc quadrature hops': ('sinc', {'filters': 80, 'quadrature': True, 'hops': 2}),
    'conv': ('conv', {'filters': 40}),
    'conv mel quadrature': ('conv', {'filters': 40, 'initial': 'mel', 'quadrature': True}),
    'mfcc': ('mfcc', {'filters': 10}),
    'log_mel': ('log_mel', {'filters': 40}),
    'log_mel db': ('log_mel', {'filters': 40, 'compression': 'db', 'top_db': 80.0}),
}
every_case = pytest.mark.parametrize('case', CASES)
learned_cases = pytest.mark.parametrize('case', [c for c in CASES if 'm' not in c.split()[0]])


@pytest.fixture(scope='module')
def made():
    """Each case's front end, its parameters, and its jitted `apply`; compiled once."""
    found = {}
    for case, (name, options) in CASES.items():
        front_end = make(name, **options)
        params = front_end.init(jax.random.key(0))
        found[case] = front_end, params, jax.jit(front_end.apply)
    return found


@pytest.fixture(scope='module')
def waveform():
    time = np.arange(16000) / 16000
    hum = 0.2 * np.sin(2 * np.pi * 300 * time) * np.exp(-(((time - 0.5) / 0.2) ** 2))
    noise = 0.01 * np.random.default_rng(0).standard_normal((3, 16000))
    return jnp.asarray(hum + noise, jnp.float32)


def test_every_front_end_has_a_case():
    assert {name for name, _ in CASES.values()} == set(FACTORIES)


@every_case
def test_image_has_the_declared_shape_and_is_finite_float32(made, waveform, case):
    front_end, params, apply = made[case]
    image = apply(params, waveform)
    assert image.shape == (3, *front_end.image_shape, 1)
    assert image.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(image))
    filters = CASES[case][1]['filters']
    assert front_end.image_shape == (51 if case == 'mfcc' else 98, filters)


@every_case
def test_image_varies_with_the_sound(made, waveform, case):
    _, params, apply = made[case]
    assert float(apply(params, waveform).std()) > 1e-4


@every_case
def test_a_clip_gives_the_same_image_alone_as_in_a_batch(made, waveform, case):
    _, params, apply = made[case]
    together, alone = apply(params, waveform), apply(params, waveform[1:2])
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=2e-4)


@every_case
def test_gradients_are_finite_for_silence_a_real_level_and_full_scale(made, waveform, case):
    front_end, params, _ = made[case]
    square = np.sign(np.sin(2 * np.pi * 440 * (np.arange(4000) + 0.5) / 16000))
    levels = {'silence': 0 * square, 'real': np.asarray(waveform[0, 6000:10000]), 'full': square}

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.mean(front_end.apply(p, x) ** 2), argnums=(0, 1))(
            params, x
        )

    for level, x in levels.items():
        for leaf in jax.tree.leaves(gradients(params, jnp.asarray(x, jnp.float32)[None])):
            assert np.all(np.isfinite(leaf)), level
            assert np.any(leaf != 0) or level == 'silence', level


@every_case
def test_parameters_are_counted(made, case):
    front_end, params, _ = made[case]
    assert front_end.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


@learned_cases
def test_macs_are_those_of_a_brute_force_count(made, case):
    front_end, params, _ = made[case]
    taps = jax.eval_shape(front_end.taps, params)
    hop = 160 // CASES[case][1].get('hops', 1)
    positions = sum(1 for start in range(0, 16000, hop) if start + 400 <= 16000)
    assert front_end.macs == positions * taps.size


@learned_cases
def test_quantizers_are_given_the_taps_and_the_waveform_and_their_results_are_used(
    made, waveform, case
):
    front_end, params, apply = made[case]

    @jax.jit
    def run(params, waveform, weight_factor, input_factor):
        seen = {}

        def weight(x):
            seen['weight'] = x
            return weight_factor * x

        def inputs(x):
            seen['input'] = x
            return input_factor * x

        options = {'quantize_weight': weight, 'quantize_input': inputs}
        return front_end.apply(params, waveform, **options), seen

    image, seen = run(params, waveform, 2.0, 0.5)  # doubled taps undo halved samples
    np.testing.assert_array_equal(seen['input'], waveform)
    np.testing.assert_allclose(seen['weight'], jax.jit(front_end.taps)(params), atol=1e-5)
    plain = np.asarray(apply(params, waveform))
    np.testing.assert_allclose(image, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())
    halved, _ = run(params, waveform, 0.5, 1.0)
    assert np.max(np.abs(halved - image)) > 0.01 * np.abs(plain).max()


@pytest.mark.parametrize('case', ['mfcc', 'log_mel'])
def test_fixed_features_quantize_the_waveform_only(made, waveform, case):
    front_end, params, apply = made[case]

    def refuse(taps):
        raise AssertionError('a fixed feature has no taps to quantize')

    hooks = {'quantize_weight': refuse, 'quantize_input': lambda x: 0.5 * x}
    image = jax.jit(lambda x: front_end.apply(params, x, **hooks))(waveform)
    np.testing.assert_allclose(image, apply(params, 0.5 * waveform), rtol=1e-4, atol=1e-4)


@every_case
def test_int16_audio_is_refused_with_the_way_out(made, case):
    front_end, params, _ = made[case]
    with pytest.raises(ValueError, match=r'got int16\[2, 16000\]; int16 audio goes through'):
        front_end.apply(params, jnp.zeros((2, 16000), jnp.int16))


@every_case
def test_a_clip_shorter_than_a_frame_is_refused(made, case):
    front_end, params, _ = made[case]
    with pytest.raises(ValueError, match='waveform must have at least .* got 100'):
        front_end.apply(params, jnp.zeros((2, 100)))


@pytest.mark.parametrize('case', ['sinc', 'conv', 'log_mel'])
def test_samples_sets_the_declared_shape_and_apply_takes_any_length(made, waveform, case):
    name, options = CASES[case]
    front_end = make(name, samples=8000, **options)
    assert front_end.image_shape[0] == 48  # (8000 - 400) // 160 + 1
    _, params, apply = made[case]
    short = apply(params, waveform[:, :8000])
    assert short.shape == (3, *front_end.image_shape, 1)
    whole = np.asarray(apply(params, waveform))
    np.testing.assert_allclose(short, whole[:, :48], rtol=1e-4, atol=1e-4)


def test_averaged_hops_are_the_mean_magnitude_of_shifted_clips(made, waveform):
    front_end = make('sinc', filters=40, compression='abs', hops=2)
    plain = make('sinc', filters=40, compression='abs')
    params = plain.init(jax.random.key(0))
    shifted = jnp.pad(waveform[:, 80:], ((0, 0), (0, 80)))
    expected = (plain.apply(params, waveform) + plain.apply(params, shifted)) / 2
    # The last frame of the shifted clip reads past the end.
    image = front_end.apply(params, waveform)
    np.testing.assert_allclose(image[:, :97], expected[:, :97], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('compression', 'expected'),
    [
        ('none', [-0.5, 0.0, 0.25]),
        ('relu', [0.0, 0.0, 0.25]),
        ('abs', [0.5, 0.0, 0.25]),
        ('log', [np.log(51.0), 0.0, np.log(26.0)]),
        ('log_plain', [np.log(1.5), 0.0, np.log(1.25)]),
    ],
)
def test_compression_of_known_responses(compression, expected):
    front_end = make(
        'conv', filters=1, kernel=2, stride=2, samples=6, compression=compression, log_gain=100.0
    )
    waveform = jnp.array([[-0.5, 9.0, 0.0, 9.0, 0.25, 9.0]])
    image = front_end.apply({'taps': jnp.array([[1.0], [0.0]])}, waveform)
    np.testing.assert_allclose(image[0, :, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ('kernel', 'stride', 'samples'), [(400, 160, 1000), (7, 3, 40), (6, 4, 41), (5, 5, 23)]
)
def test_framing_product_and_its_gradients_are_those_of_sliced_frames(kernel, stride, samples):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, samples))
    w = rng.standard_normal((kernel, 3))
    cuts = [slice(t * stride, t * stride + kernel) for t in range((samples - kernel) // stride + 1)]
    cotangent = rng.standard_normal((2, len(cuts), 3))
    expected = np.stack([x[:, cut] @ w for cut in cuts], axis=1)
    x_gradient, w_gradient = np.zeros_like(x), np.zeros_like(w)
    for t, cut in enumerate(cuts):
        x_gradient[:, cut] += cotangent[:, t] @ w.T
        w_gradient += x[:, cut].T @ cotangent[:, t]

    @jax.jit
    def run(x, w, cotangent):
        product, pull = jax.vjp(lambda x, w: frame_product(x, w, stride=stride), x, w)
        return product, *pull(cotangent)

    found = run(*(jnp.asarray(a, jnp.float32) for a in (x, w, cotangent)))
    for value, wanted in zip(found, (expected, x_gradient, w_gradient), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('sync', {}, "name must be .* got 'sync'; did you mean 'sinc'"),
        ('mfc', {}, "did you mean 'mfcc'"),
        ('sinc', {'filter': 40}, "got 'filter'; did you mean 'filters'"),
        ('conv', {'compression': 'lgo'}, "got 'lgo'; did you mean 'log'"),
        ('sinc', {'filters': 0}, 'filters must be a whole number of at least 1, got 0'),
        ('sinc', {'stride': 0}, 'stride must be a whole number of at least 1, got 0'),
        ('conv', {'kernel': 400.0}, 'kernel must be a whole number of at least 2, got 400.0'),
        ('sinc', {'samples': 399}, 'samples must be a whole number of at least 400, got 399'),
        ('sinc', {'hops': 3}, 'hops must divide stride 160, got 3; the nearest that does is 2'),
        ('sinc', {'log_gain': 0.0}, 'log_gain must be above 0, got 0.0'),
        ('log_mel', {'compression': 'dB'}, "got 'dB'; did you mean 'db'"),
    ],
)
def test_a_bad_name_or_value_raises_with_the_nearest_valid_one(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)
