"""SincConv: the formed filters, their frequency response, and the bounds of the learned bands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from kws_jax.frontends import make, sinc

RATE = 16000


def low_pass(cut_off, kernel):
    """Windowed ideal low-pass in float64: an independent form of half a band-pass."""
    time = np.arange(kernel) - (kernel - 1) / 2
    return 2 * cut_off / RATE * np.sinc(2 * cut_off / RATE * time) * np.hamming(kernel)


def form(low, high, kernel=400, **options):
    low, high = jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
    return np.asarray(sinc.band_pass_taps(low, high, kernel=kernel, sample_rate=RATE, **options))


@pytest.mark.parametrize('kernel', [400, 401, 33])
def test_taps_are_the_scaled_difference_of_two_low_pass_filters(kernel):
    low, high = np.array([30.0, 300.0, 3000.0]), np.array([110.0, 700.0, 3400.0])
    taps = form(low, high, kernel)
    for column, (f1, f2) in enumerate(zip(low, high, strict=True)):
        expected = (low_pass(f2, kernel) - low_pass(f1, kernel)) / (2 * (f2 - f1) / RATE)
        np.testing.assert_allclose(taps[:, column], expected, atol=5e-5)


@pytest.mark.parametrize('kernel', [400, 401])
def test_taps_agree_with_scipy_firwin(kernel):
    taps = form([500.0], [1500.0], kernel)[:, 0] * 2 * 1000 / RATE
    expected = scipy.signal.firwin(
        kernel, [500.0, 1500.0], window='hamming', pass_zero=False, scale=False, fs=RATE
    )
    np.testing.assert_allclose(taps, expected, atol=1e-5)


@pytest.mark.parametrize('kernel', [400, 401])
def test_cosine_taps_are_symmetric_and_sine_taps_antisymmetric(kernel):
    taps = form([100.0, 2000.0], [300.0, 2500.0], kernel, quadrature=True)
    cosine, sine = taps[:, :2], taps[:, 2:]
    np.testing.assert_array_equal(cosine, cosine[::-1])
    np.testing.assert_array_equal(sine, -sine[::-1])


@pytest.mark.parametrize(('low', 'high'), [(400.0, 800.0), (2000.0, 2500.0), (6000.0, 7000.0)])
@pytest.mark.parametrize('phase', [0, 1])
def test_frequency_response_is_one_inside_the_band_and_50_db_down_outside(low, high, phase):
    taps = form([low], [high], quadrature=True)[:, phase] * 2 * (high - low) / RATE
    hertz, response = scipy.signal.freqz(taps, worN=8192, fs=RATE)
    magnitude = np.abs(response)
    transition = 2 * RATE / 400  # the main lobe of a Hamming window reaches this far
    inside = (hertz > low + transition) & (hertz < high - transition)
    outside = (hertz < low - transition) | (hertz > high + transition)
    assert inside.any()
    np.testing.assert_allclose(magnitude[inside], 1.0, atol=0.01)
    assert 20 * np.log10(magnitude[outside].max()) < -50
    edge = np.interp([low, high], hertz, magnitude)
    np.testing.assert_allclose(edge, 0.5, atol=0.02)


@pytest.mark.parametrize('filters', [40, 60, 80])
def test_every_filter_of_the_starting_bank_peaks_within_its_band(filters):
    front_end = make('sinc', filters=filters)
    params = front_end.init(jax.random.key(0))
    taps = np.asarray(front_end.taps(params) * front_end.gains(params)[None, :])
    low, high = sinc.cut_offs(params)
    for column in range(filters):
        hertz, response = scipy.signal.freqz(taps[:, column], worN=4096, fs=RATE)
        magnitude = np.abs(response)
        assert low[column] <= hertz[magnitude.argmax()] <= high[column]
        # The narrowest start, 80 Hz, is about as wide as the window's own lobe: a little is lost.
        assert 0.7 < magnitude.max() < 1.05


def test_the_pair_in_quadrature_has_equal_magnitude_and_opposite_quarter_turn():
    taps = form([1000.0], [1600.0], quadrature=True)
    hertz = [1200.0, 1300.0, 1400.0]
    _, cosine = scipy.signal.freqz(taps[:, 0], worN=hertz, fs=RATE)
    _, sine = scipy.signal.freqz(taps[:, 1], worN=hertz, fs=RATE)
    np.testing.assert_allclose(sine / cosine, [-1j, -1j, -1j], atol=0.01)


def test_magnitude_of_the_pair_does_not_depend_on_the_phase_of_a_tone():
    time = np.arange(RATE) / RATE
    phases = np.linspace(0, np.pi, 8, endpoint=False)
    tones = jnp.asarray(0.5 * np.sin(2 * np.pi * 1000 * time + phases[:, None]), jnp.float32)

    def response(**options):
        front_end = make('sinc', filters=40, compression='abs', **options)
        params = front_end.init(jax.random.key(0))
        low, high = sinc.cut_offs(params)
        column = int(np.argmax((np.asarray(low) < 1000) & (np.asarray(high) > 1000)))
        return np.asarray(front_end.apply(params, tones))[:, :, column, 0]

    pair = response(quadrature=True)
    assert pair.std() / pair.mean() < 0.01
    single = response()
    assert single.std() / single.mean() > 0.2


@pytest.mark.parametrize('filters', [1, 40, 60, 80, 128])
def test_zero_parameters_are_the_mel_bank(filters):
    low, high = sinc.cut_offs({'low': jnp.zeros(filters), 'band': jnp.zeros(filters)})
    expected_low, expected_high = sinc.mel_bands(filters)
    np.testing.assert_allclose(low, expected_low, atol=0.01)
    np.testing.assert_allclose(high, expected_high, atol=0.01)


def test_mel_bank_starts_at_equal_steps_in_mel():
    low, high = sinc.mel_bands(60)
    mel = 2595 * np.log10(1 + low / 700)
    steps = np.diff(mel)
    np.testing.assert_allclose(steps, steps[0])
    assert low[0] == pytest.approx(30)
    wide = (high - low) > 80.001
    np.testing.assert_allclose(high[:-1][wide[:-1]], low[1:][wide[:-1]])


@pytest.mark.parametrize('scale', [0.5, 5.0, 500.0])
def test_bands_stay_valid_whatever_the_parameters(scale):
    low_key, band_key = jax.random.split(jax.random.key(3))
    params = {
        'low': scale * jax.random.normal(low_key, (80,)),
        'band': scale * jax.random.normal(band_key, (80,)),
    }
    low, high = (np.asarray(f) for f in sinc.cut_offs(params))
    rounding = 0.01
    assert np.all(low >= 10 - rounding)
    assert np.all(high - low >= 40 - rounding)
    assert np.all(high <= 7990 + rounding)


def test_a_unit_step_moves_a_band_by_its_starting_width():
    low, high = sinc.mel_bands(40)
    zeros = jnp.zeros(40)
    moved, _ = sinc.cut_offs({'low': zeros + 1.0, 'band': zeros})
    wider = sinc.cut_offs({'low': zeros, 'band': zeros + 1.0})
    middle = slice(4, 36)  # far from the bounds of the low cut-off
    np.testing.assert_allclose(moved[middle], high[middle], rtol=1e-3)
    width = np.asarray(wider[1] - wider[0])[middle]
    # The narrowest bands start 40 Hz above their bound, where its tail takes 2 % of the step.
    np.testing.assert_allclose(width, 2 * (high - low)[middle], rtol=0.02)


def test_a_band_near_its_bound_keeps_a_gradient():
    params = {'low': jnp.array([-2.0] + [0.0] * 39), 'band': jnp.array([-1.5] + [0.0] * 39)}

    def first_edges(params):
        low, high = sinc.cut_offs(params)
        return low[0], high[0] - low[0]

    low, width = first_edges(params)
    assert low < 11 and width < 45  # both are at their bounds
    assert jax.grad(lambda p: first_edges(p)[0])(params)['low'][0] > 1e-3
    assert jax.grad(lambda p: first_edges(p)[1])(params)['band'][0] > 1e-3


def test_gradient_ascent_moves_a_band_onto_a_tone():
    front_end = make('sinc', filters=40, compression='log', quadrature=True)
    params = front_end.init(jax.random.key(0))
    tone = jnp.asarray(0.1 * np.sin(2 * np.pi * 1000 * np.arange(4000) / RATE), jnp.float32)[None]
    column = 14  # the first band above the tone
    low, high = sinc.cut_offs(params)
    assert 1000 < low[column] < 1100

    def energy(params):
        return front_end.apply(params, tone)[:, :, column].mean()

    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x + 0.1 * g, p, jax.grad(energy)(p)))
    for _ in range(60):
        params = step(params)
    low, high = sinc.cut_offs(params)
    assert low[column] < 1000 < high[column]


def test_scaling_by_the_tap_amplifies_a_band_by_the_inverse_of_its_width():
    waveform = 0.1 * jax.random.normal(jax.random.key(1), (1, RATE))
    by_gain, by_tap = (
        make('sinc', filters=40, compression='none', scaling=scaling) for scaling in ('gain', 'tap')
    )
    params = by_gain.init(jax.random.key(0))
    low, high = sinc.mel_bands(40)
    ratio = by_tap.apply(params, waveform) / by_gain.apply(params, waveform)
    expected = RATE / (2 * (high - low))
    np.testing.assert_allclose(np.asarray(ratio)[0, 50, :, 0], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ('quadrature', 'kernel', 'stored'),
    [(False, 400, 200), (True, 400, 400), (False, 401, 201), (True, 401, 401)],
)
def test_stored_weights_count_a_symmetric_pair_of_taps_once(quadrature, kernel, stored):
    front_end = make('sinc', filters=3, kernel=kernel, quadrature=quadrature)
    assert front_end.stored_weights == 3 * stored


def test_more_bands_than_the_kernel_can_resolve_raise():
    with pytest.raises(ValueError, match='take a longer kernel or fewer filters'):
        make('sinc', filters=60, kernel=32)


def test_unknown_scaling_names_the_nearest():
    with pytest.raises(ValueError, match="got 'gian'; did you mean 'gain'"):
        make('sinc', scaling='gian')
