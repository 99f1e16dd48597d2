"""Augmentation: hand-worked values, bounds, and frequencies of what is random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.data import augment, backgrounds

KEY = jax.random.key(7)
RATE = 16000


@pytest.fixture(scope='module')
def speech():
    return 0.3 * jax.random.normal(jax.random.key(1), (64, 1000))


@pytest.fixture(scope='module')
def noise():
    """A ramp: the value of a sample tells where it was cut."""
    return jnp.arange(5000, dtype=jnp.int16)


def test_shift_moves_each_row_by_its_offset_and_fills_zeros():
    rows = jnp.tile(jnp.arange(1.0, 6.0), (4, 1))
    shifted = augment.shift(rows, jnp.array([0, 2, -1, 5]), max_shift=5)
    expected = [[1, 2, 3, 4, 5], [0, 0, 1, 2, 3], [2, 3, 4, 5, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(shifted, expected)


def test_time_shift_is_uniform_on_the_half_open_range():
    impulse = jnp.zeros((4000, 21)).at[:, 10].set(1.0)
    moved = np.asarray(augment.time_shift(KEY, impulse, max_shift=4))
    offsets = moved.argmax(axis=1) - 10
    values, counts = np.unique(offsets, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-4, 4))
    # 500 expected of each, standard deviation 21.
    assert np.all(np.abs(counts - 500) < 4 * 21)


@pytest.mark.parametrize('dtype', [jnp.int16, jnp.float32])
def test_time_shift_keeps_type_and_shape_and_is_off_at_zero(dtype):
    x = jnp.ones((2, 30), dtype)
    assert augment.time_shift(KEY, x, max_shift=3).dtype == dtype
    np.testing.assert_array_equal(augment.time_shift(KEY, x, max_shift=0), x)


def test_gain_is_uniform_in_decibels_within_its_bounds():
    x = jnp.full((2000, 2), 0.1)
    decibel = 20 * np.log10(np.asarray(augment.gain(KEY, x, low_db=-10, high_db=6)) / 0.1)
    np.testing.assert_allclose(decibel[:, 0], decibel[:, 1], atol=1e-5)
    assert decibel.min() >= -10.001 and decibel.max() <= 6.001
    # 16 dB wide: mean -2, standard error 16 / sqrt(12 * 2000) = 0.103.
    assert decibel[:, 0].mean() == pytest.approx(-2, abs=4 * 0.103)


def test_gain_of_20_db_is_a_factor_of_ten_clipped_at_full_scale():
    x = jnp.array([[0.05, -0.05, 0.5, -0.5]])
    loud = augment.gain(KEY, x, low_db=20.0, high_db=20.0)
    np.testing.assert_allclose(loud, [[0.5, -0.5, 1.0, -1.0]], rtol=1e-6)


@pytest.mark.parametrize('speed', [0.5, 0.8, 1.25])
def test_speed_scales_the_frequency_of_a_tone(speed):
    time = np.arange(RATE) / RATE
    tone = jnp.asarray(np.sin(2 * np.pi * 400 * time), jnp.float32)[None]
    played = np.asarray(augment.change_speed(tone, jnp.array([speed])))[0]
    spectrum = np.abs(np.fft.rfft(played * np.hanning(RATE)))
    assert spectrum.argmax() == round(400 * speed)  # one bin is 1 Hz


def test_speed_one_is_the_identity_and_two_leaves_a_quarter_empty_at_each_end():
    x = jnp.tile(jnp.arange(1.0, 9.0), (2, 1))
    played = augment.change_speed(x, jnp.array([1.0, 2.0]))
    # At speed 2 sample n reads 3.5 + 2 (n - 3.5): -3.5, -1.5, 0.5, 2.5, ... and outside is 0.
    expected = [[1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1.5, 3.5, 5.5, 7.5, 0, 0]]
    np.testing.assert_allclose(played, expected, atol=1e-6)


def test_speed_agrees_with_linear_interpolation_of_numpy(speech):
    speed = np.linspace(0.7, 1.3, 64).astype(np.float32)
    played = np.asarray(augment.change_speed(speech, jnp.asarray(speed)))
    for row, factor, result in zip(np.asarray(speech), speed, played, strict=True):
        where = 499.5 + (np.arange(1000) - 499.5) * factor
        expected = np.interp(where, np.arange(-1, 1001), np.pad(row, 1), left=0.0, right=0.0)
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_random_speeds_stay_in_their_range_and_zero_change_is_off():
    # A line through the middle: the slope at the middle is the speed.
    line = jnp.tile(jnp.arange(101.0) - 50, (2000, 1))
    played = np.asarray(augment.resample_speed(KEY, line, max_change=0.2))
    speed = played[:, 51] - played[:, 50]
    assert speed.min() >= 0.8 - 1e-4 and speed.max() < 1.2 + 1e-4
    assert speed.mean() == pytest.approx(1.0, abs=4 * 0.4 / np.sqrt(12 * 2000))
    assert augment.resample_speed(KEY, line, max_change=0.0) is line


def test_spec_augment_masks_whole_bands_with_the_mean_of_the_example():
    image = jax.random.normal(KEY, (200, 30, 20, 1))
    run = functools.partial(
        augment.spec_augment, time_masks=1, time_width=6, frequency_masks=1, frequency_width=4
    )
    masked = np.asarray(jax.jit(run)(KEY, image))
    changed = (masked != np.asarray(image))[..., 0]
    mean = np.asarray(image).mean(axis=(1, 2, 3))
    for example in range(200):
        frames = np.flatnonzero(changed[example].all(axis=1))
        filters = np.flatnonzero(changed[example].all(axis=0))
        assert len(frames) <= 6 and len(filters) <= 4
        for band in (frames, filters):
            assert len(band) == 0 or band[-1] - band[0] == len(band) - 1
        rectangle = np.zeros((30, 20), bool)
        rectangle[frames] = True
        rectangle[:, filters] = True
        np.testing.assert_array_equal(changed[example], rectangle)
        np.testing.assert_allclose(
            masked[example, ..., 0][rectangle], mean[example] * np.ones(rectangle.sum()), atol=1e-6
        )
    widths = changed.all(axis=2).sum(axis=1)
    assert set(widths) == set(range(7))
    assert changed[:, 0].all(axis=1).any() and changed[:, -1].all(axis=1).any()


@pytest.mark.parametrize('off', [{'time_width': 0, 'frequency_width': 0}, {
    'time_masks': 0, 'frequency_masks': 0}])  # fmt: skip
def test_spec_augment_without_masks_is_the_identity(off):
    image = jax.random.normal(KEY, (2, 30, 20, 1))
    run = jax.jit(functools.partial(augment.spec_augment, **off))
    np.testing.assert_array_equal(run(KEY, image), image)


def test_mixup_is_the_same_convex_combination_of_sounds_and_labels():
    # The sound of class c is the constant c, so the sound tells the mixed label and back.
    classes = 10
    label = jnp.arange(200) % classes
    x = jnp.tile(label[:, None].astype(jnp.float32), (1, 5))
    mix = jax.jit(functools.partial(augment.mixup, alpha=0.5))
    mixed, labels = mix(KEY, x, jax.nn.one_hot(label, classes))
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
    assert jnp.all(labels >= 0) and jnp.all(jnp.sum(labels > 0, axis=1) <= 2)
    np.testing.assert_allclose(mixed[:, 0], labels @ jnp.arange(10.0), atol=1e-5)
    assert jnp.all(labels[jnp.arange(200), label] > 0)
    assert float(jnp.mean(jnp.max(labels, axis=1) < 0.99)) > 0.3


def test_mixup_of_alpha_zero_is_the_identity(speech):
    labels = jnp.eye(64)
    x, y = augment.mixup(KEY, speech, labels, alpha=0.0)
    assert x is speech and y is labels


def test_equalizer_gives_a_tone_at_an_octave_the_gain_of_its_point():
    hertz, max_db, clips = 1000, 12.0, 200  # the sixth of nine points from 31.25 Hz to 8 kHz
    tone = jnp.tile(0.1 * jnp.sin(2 * jnp.pi * hertz * jnp.arange(RATE) / RATE)[None], (clips, 1))
    heard = augment.equalize(KEY, tone, max_db=max_db)
    drawn = jax.random.uniform(KEY, (clips, 9), minval=-max_db, maxval=max_db)[:, 5]
    got = 20 * jnp.log10(jnp.std(heard, axis=1) / jnp.std(tone, axis=1))
    np.testing.assert_allclose(got, drawn, atol=1e-2)
    assert got.min() < -10 and got.max() > 10


def test_equalizer_is_linear_keeps_time_and_is_off_at_zero_decibels(speech):
    equalize = functools.partial(augment.equalize, KEY)
    np.testing.assert_allclose(equalize(speech, max_db=0.0), speech, atol=1e-6)
    once, twice = equalize(speech, max_db=6.0), equalize(2 * speech, max_db=6.0)
    np.testing.assert_allclose(twice, 2 * once, atol=1e-5)
    # zero phase: a click stays where it is
    click = jnp.zeros((4, 1000)).at[:, 300].set(1.0)
    np.testing.assert_array_equal(jnp.argmax(equalize(click, max_db=6.0), axis=1), 300)


def test_splice_joins_two_clips_of_the_batch_in_the_rows_of_other_words_alone():
    # every row is a constant of its own, so a sample tells which clip it came from
    x = jnp.tile(jnp.arange(1.0, 9.0)[:, None], (1, 4000))
    unknown = jnp.arange(8) % 2 == 0
    spliced = augment.splice(KEY, x, unknown, probability=1.0)
    np.testing.assert_array_equal(spliced[~unknown], x[~unknown])
    ends = np.asarray(spliced[unknown][:, [0, -1]])
    assert set(ends.ravel()) <= set(range(1, 9)) and (ends[:, 0] != ends[:, 1]).any()
    joins = np.argmax(np.asarray(spliced[unknown]) != ends[:, :1], axis=1)
    joins = joins[ends[:, 0] != ends[:, 1]]
    assert (joins >= 1500 - 40).all() and (joins <= 2500).all()
    np.testing.assert_array_equal(augment.splice(KEY, x, unknown, probability=0.0), x)


def test_a_splice_is_made_in_its_share_of_the_rows():
    x = jnp.tile(jnp.arange(2000.0)[:, None], (1, 16))
    spliced = augment.splice(KEY, x, jnp.ones(2000, bool), probability=0.3)
    share = float(jnp.mean(jnp.any(spliced != x, axis=1)))
    assert share == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 2000))


def test_paper_recipe_is_shift_then_noise_and_silence_is_zeros_with_noise(noise):
    audio = jnp.full((300, 500), 16384, jnp.int16)
    is_silence = jnp.arange(300) < 150
    run = jax.jit(functools.partial(augment.augment, max_shift=100))
    x = np.asarray(run(KEY, audio, is_silence, noise[:1000] * 0))
    # No noise to hear, so a shifted 0.5 times (1 - v) remains, and silence is zero.
    np.testing.assert_array_equal(x[:150], 0)
    peak = x[150:].max(axis=1)
    assert peak.min() > 0.45 - 1e-6 and peak.max() == 0.5
    assert np.mean(peak == 0.5) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 150))
    zeros = (x[150:] == 0).sum(axis=1)
    assert 50 < zeros.max() <= 100


def test_with_everything_off_augment_only_scales_the_samples(noise):
    audio = jax.random.randint(KEY, (3, 500), -32768, 32767).astype(jnp.int16)
    is_silence = jnp.array([False, True, False])
    x = augment.augment(
        KEY, audio, is_silence, noise, max_shift=0, noise_probability=0.0
    )  # fmt: skip
    expected = audio.astype(jnp.float32) / 32768 * ~is_silence[:, None]
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    'options',
    [{}, {'max_speed_change': 0.1, 'low_db': -10.0, 'high_db': 6.0, 'silence_volume': 1.0}],
    ids=['paper', 'strong'],
)
def test_augment_is_a_pure_function_of_the_key_inside_jit(noise, options):
    audio = jax.random.randint(KEY, (8, 2000), -8000, 8000).astype(jnp.int16)
    is_silence = jnp.arange(8) == 3
    run = jax.jit(lambda key: augment.augment(key, audio, is_silence, noise, **options))
    first, again = run(KEY), run(KEY)
    other = run(jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (8, 2000) and first.dtype == jnp.float32
    assert jnp.all(jnp.abs(first) <= 1) and jnp.all(jnp.any(first != other, axis=1))
    if options:  # silence is a scaled ramp from the noise, to its last sample
        slope = np.diff(np.asarray(first[3])) * 32768
        np.testing.assert_allclose(slope, slope.mean(), atol=0.01)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda x, n: augment.time_shift(KEY, x, max_shift=-1), 'max_shift must be .* got -1'),
        (
            lambda x, n: backgrounds.add_noise(KEY, x, n, probability=1.5),
            'probability must be in 0..1, got 1.5',
        ),
        (
            lambda x, n: backgrounds.add_noise(KEY, x, n, max_volume=-0.1),
            'max_volume must be in 0..1, got -0.1',
        ),
        (
            lambda x, n: backgrounds.make_silence(KEY, x, jnp.ones(64, bool), n, max_volume=-1.0),
            'max_volume must be .* got -1.0',
        ),
        (lambda x, n: augment.gain(KEY, x, low_db=3, high_db=1), 'low_db must be at most high_db'),
        (lambda x, n: augment.resample_speed(KEY, x, max_change=1.0), 'max_change .* got 1.0'),
        (
            lambda x, n: augment.spec_augment(KEY, x[:, :20, None, None], time_width=21),
            'time_width must be in 0..20, got 21',
        ),
        (
            lambda x, n: augment.spec_augment(
                KEY, x[:, :, None, None], frequency_width=0, time_masks=-1
            ),
            'time_masks must be .* got -1',
        ),
        (lambda x, n: augment.mixup(KEY, x, jnp.eye(64), alpha=-1.0), 'alpha must be .* got -1.0'),
    ],
)
def test_a_value_out_of_range_is_named(speech, noise, call, message):
    with pytest.raises(ValueError, match=message):
        call(speech, noise)


def test_room_tone_takes_its_share_of_the_rows_of_silence_and_no_other(noise):
    audio = jnp.full((1000, 400), 10, jnp.int16)
    is_silence = jnp.arange(1000) % 2 == 0
    off = {'max_shift': 0, 'noise_probability': 0.0, 'silence_volume': 0.0}
    x = np.asarray(augment.augment(KEY, audio, is_silence, noise, room_tone_share=0.4, **off))
    np.testing.assert_array_equal(x[1::2], np.float32(10 / 32768))
    # half of the other clips are silence themselves, which is zeros: 0.4 * 0.5 of 500 rows
    share = np.mean(x[::2, 0] != 0)
    assert share == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 500))
    with pytest.raises(ValueError, match='room_tone_share must be in 0..1, got 2'):
        augment.augment(KEY, audio, is_silence, noise, room_tone_share=2)
