"""Noise, silence and room tone: hand-worked values, and frequencies of what is random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.data import backgrounds

KEY = jax.random.key(7)


@pytest.fixture(scope='module')
def speech():
    return 0.3 * jax.random.normal(jax.random.key(1), (64, 1000))


@pytest.fixture(scope='module')
def noise():
    """A ramp: the value of a sample tells where it was cut."""
    return jnp.arange(5000, dtype=jnp.int16)


def test_int16_full_scale_becomes_minus_one_to_just_below_one():
    x = backgrounds.int16_to_float(jnp.array([-32768, -1, 0, 32767], jnp.int16))
    np.testing.assert_array_equal(x, np.array([-1, -(2.0**-15), 0, 1 - 2.0**-15], np.float32))


def test_float_audio_passes_and_other_integers_are_refused():
    np.testing.assert_array_equal(backgrounds.int16_to_float(jnp.array([0.25])), [0.25])
    with pytest.raises(TypeError, match='x must be int16 or floating point, got int32'):
        backgrounds.int16_to_float(jnp.array([1], jnp.int32))


def test_cuts_of_noise_are_contiguous_and_reach_both_ends(noise):
    cuts = np.asarray(backgrounds.cut_noise(KEY, noise[:12], batch=500, samples=10)) * 32768
    np.testing.assert_allclose(np.diff(cuts, axis=1), 1.0)
    assert set(np.rint(cuts[:, 0])) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize('shape', [(9,), (2, 20)])
def test_too_little_noise_raises_with_the_way_out(shape):
    with pytest.raises(ValueError, match='one row of at least 10 samples, got shape'):
        backgrounds.cut_noise(KEY, jnp.zeros(shape), batch=2, samples=10)


def test_noise_of_volume_zero_is_the_identity(speech, noise):
    np.testing.assert_array_equal(
        backgrounds.add_noise(KEY, speech, noise, probability=1.0, max_volume=0.0), speech
    )


def test_noise_replaces_its_share_of_the_sound():
    # Sound 1 and noise -1: 1 * (1 - v) - v, so v = (1 - y) / 2, the same at every sample.
    x, hum = jnp.ones((2000, 4)), -jnp.ones(100)
    mixed = backgrounds.add_noise(KEY, x, hum, probability=1.0, max_volume=0.1)
    volume = (1 - np.asarray(mixed)) / 2
    np.testing.assert_allclose(volume, volume[:, :1] * np.ones((1, 4)), atol=1e-6)
    assert volume.min() > 0 - 1e-6 and volume.max() < 0.1
    # Uniform on [0, 0.1): mean 0.05, standard error 0.0289 / sqrt(2000) = 0.00065.
    assert volume[:, 0].mean() == pytest.approx(0.05, abs=4 * 0.00065)


@pytest.mark.parametrize('probability', [0.0, 0.8, 1.0])
def test_noise_reaches_the_stated_share_of_the_examples(probability):
    x, hum = jnp.ones((4000, 2)), -jnp.ones(100)
    mixed = backgrounds.add_noise(KEY, x, hum, probability=probability, max_volume=0.1)
    share = float(jnp.mean(mixed[:, 0] != 1))
    deviation = np.sqrt(probability * (1 - probability) / 4000)
    assert share == pytest.approx(probability, abs=4 * deviation + 1e-3)


def test_silence_replaces_only_its_rows_and_is_scaled_noise(speech, noise):
    is_silence = jnp.arange(64) % 4 == 0
    x = np.asarray(backgrounds.make_silence(KEY, speech, is_silence, noise, max_volume=0.5))
    np.testing.assert_array_equal(x[~is_silence], speech[~is_silence])
    # The noise is a ramp of step 2 ** -15, so the slope is the volume.
    slope = np.diff(x[is_silence], axis=1) * 32768
    volume = slope.mean(axis=1)
    np.testing.assert_allclose(slope, volume[:, None] * np.ones((1, 999)), atol=0.01)
    assert np.all((volume >= 0) & (volume < 0.5))
    assert len(np.unique(volume.round(4))) == 16


def test_silence_of_volume_zero_is_digital_silence(speech, noise):
    x = backgrounds.make_silence(KEY, speech, jnp.ones(64, bool), noise, max_volume=0.0)
    np.testing.assert_array_equal(x, jnp.zeros_like(speech))


def clips_with_a_quiet_part(quiet):
    """Loud ramps of 100 samples whose samples `quiet` are a fiftieth as loud, signs per row."""
    x = np.linspace(0.5, 0.9, 100)[None] * np.array([[1.0], [-1.0]])
    x[:, quiet] /= 50.0
    return x


def test_room_tone_is_the_quietest_fifth_there_and_back_at_a_gain_within_ten_decibels():
    x = clips_with_a_quiet_part(slice(30, 50))
    tones = np.asarray(backgrounds.room_tone(KEY, jnp.asarray(x, jnp.float32)))
    there = x[:, 30:50]
    want = np.concatenate([there, there[:, ::-1]] * 3, axis=1)[:, :100]
    for tone in tones:
        gains = [tone / row for row in want if tone[0] / row[0] > 0]  # the sign tells the clip
        np.testing.assert_allclose(gains[0], gains[0][0], rtol=1e-5)
        assert 10**-0.5 <= gains[0][0] <= 10**0.5


def test_room_tone_is_not_the_digital_zeros_that_pad_a_recording():
    x = clips_with_a_quiet_part(slice(60, 80))
    x[:, :30] = 0.0
    tones = np.asarray(backgrounds.room_tone(KEY, jnp.asarray(x, jnp.float32)))
    assert np.all(tones != 0) and np.abs(tones).max() < 0.9 / 50 * 10**0.5


def test_the_room_tone_of_digital_silence_is_digital_silence():
    np.testing.assert_array_equal(backgrounds.room_tone(KEY, jnp.zeros((3, 100))), 0.0)
