"""Conv1D: free taps, their two starts, and equality with SincConv when the taps are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.frontends import make


@pytest.fixture(scope='module')
def waveform():
    return 0.1 * jax.random.normal(jax.random.key(1), (2, 16000))


def test_raw_response_is_the_inner_product_of_each_frame_with_the_taps(waveform):
    front_end = make('conv', filters=3, compression='none')
    params = front_end.init(jax.random.key(0))
    image = np.asarray(front_end.apply(params, waveform))
    taps, samples = np.asarray(params['taps']), np.asarray(waveform)
    for frame in (0, 1, 50, 97):
        expected = samples[:, frame * 160 : frame * 160 + 400] @ taps
        np.testing.assert_allclose(image[:, frame, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize('quadrature', [False, True])
def test_with_the_taps_of_sinc_conv_gives_the_image_of_sinc(waveform, quadrature):
    options = {'filters': 40, 'compression': 'log', 'quadrature': quadrature}
    sinc = make('sinc', scaling='tap', **options)
    sinc_params = sinc.init(jax.random.key(0))
    conv = make('conv', **options)
    expected = sinc.apply(sinc_params, waveform)
    image = conv.apply({'taps': sinc.taps(sinc_params)}, waveform)
    np.testing.assert_allclose(image, expected, atol=1e-4)


def test_he_start_has_variance_two_over_kernel():
    taps = make('conv', filters=80).init(jax.random.key(0))['taps']
    # 32000 draws: the standard error of the variance is 0.8 %.
    assert float(jnp.var(taps)) == pytest.approx(2 / 400, rel=0.04)


@pytest.mark.parametrize('quadrature', [False, True])
def test_mel_start_has_the_norm_of_the_he_start_and_the_shape_of_sinc(quadrature):
    options = {'filters': 40, 'quadrature': quadrature}
    taps = np.asarray(make('conv', initial='mel', **options).init(jax.random.key(0))['taps'])
    sinc = make('sinc', **options)
    shape = np.asarray(sinc.taps(sinc.init(jax.random.key(0))))
    norms = np.linalg.norm(taps, axis=0)
    np.testing.assert_allclose(norms, np.sqrt(2.0), rtol=1e-5)
    cosine = np.sum(taps * shape, axis=0) / norms / np.linalg.norm(shape, axis=0)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


@pytest.mark.parametrize('initial', ['he', 'mel'])
def test_a_unit_keeps_the_start_and_shortens_steps_by_its_square(initial, waveform):
    whole, tenth = (make('conv', filters=4, initial=initial, unit=unit) for unit in (1.0, 0.1))
    moved = []
    for front_end in (whole, tenth):
        params = front_end.init(jax.random.key(3))
        gradient = jax.grad(lambda p, f=front_end: f.apply(p, waveform).sum())(params)
        after = {'taps': params['taps'] - 1e-4 * gradient['taps']}
        moved.append((front_end.taps(params), front_end.taps(after) - front_end.taps(params)))
    (start, step), (same_start, shorter) = moved
    np.testing.assert_allclose(same_start, start, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(100 * shorter, step, rtol=0.01, atol=0.01 * float(abs(step).max()))


def test_a_unit_is_above_zero():
    with pytest.raises(ValueError, match='unit must be above 0, got 0'):
        make('conv', unit=0)


def test_every_tap_is_learned_and_stored():
    front_end = make('conv', filters=60)
    params = front_end.init(jax.random.key(0))
    assert params['taps'].shape == (400, 60)
    assert front_end.parameters == front_end.stored_weights == 24000


def test_unknown_start_names_the_nearest():
    with pytest.raises(ValueError, match="initial must be 'he' or 'mel', got 'mle'.*'mel'"):
        make('conv', initial='mle')
