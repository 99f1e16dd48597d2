"""MFCC and log-mel against librosa in float64."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.fft

from kws_jax.frontends import make, mel

RATE = 16000


@pytest.fixture(scope='module')
def clips():
    """Two voice-like buzzes that glide, with pauses and some noise; float64 [2, 16000]."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    rows = []
    for pitch in (110.0, 190.0):
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.2 * np.sin(2 * np.pi * 1.5 * time))) / RATE
        buzz = sum(np.sin(n * phase) / n for n in range(1, 30))
        rows.append(0.1 * buzz * (np.sin(2 * np.pi * 2 * time) > -0.5))
    rows = np.stack(rows) + 0.003 * rng.standard_normal((2, RATE))
    return rows.astype(np.float32).astype(np.float64)


def librosa_power(clip, *, kernel, stride, n_fft, center, pad_mode, mels, htk, area_norm):
    return librosa.feature.melspectrogram(
        y=clip,
        sr=RATE,
        n_fft=n_fft,
        hop_length=stride,
        win_length=kernel,
        center=center,
        pad_mode=pad_mode,
        n_mels=mels,
        htk=htk,
        norm='slaney' if area_norm else None,
        dtype=np.float64,
    )


@pytest.mark.parametrize('filters', [10, 40])
def test_default_mfcc_are_those_of_librosa(clips, filters):
    image = make('mfcc', filters=filters).apply({}, jnp.asarray(clips, jnp.float32))
    for clip, row in zip(clips, np.asarray(image), strict=True):
        power = librosa_power(
            clip, kernel=640, stride=320, n_fft=640, center=True, pad_mode='reflect', mels=128,
            htk=True, area_norm=False,
        )  # fmt: skip
        decibel = librosa.power_to_db(power, top_db=80.0)
        expected = librosa.feature.mfcc(S=decibel, n_mfcc=filters).T
        assert expected.shape == (51, filters)
        # Coefficients reach hundreds; 1e-4 of the largest.
        np.testing.assert_allclose(row[..., 0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('framing', ['center', 'fft'])
@pytest.mark.parametrize(
    ('kernel', 'stride', 'n_fft', 'pad_mode'),
    [(400, 160, 512, 'constant'), (480, 160, 512, 'reflect'), (321, 100, 400, 'constant')],
)
@pytest.mark.parametrize(('mel_scale', 'area_norm'), [('slaney', True), ('htk', False)])
def test_log_mel_is_that_of_librosa_for_any_framing(
    clips, framing, kernel, stride, n_fft, pad_mode, mel_scale, area_norm
):
    front_end = make(
        'log_mel', filters=40, kernel=kernel, stride=stride, n_fft=n_fft, framing=framing,
        pad_mode=pad_mode, mel_scale=mel_scale, area_norm=area_norm, log_floor=1e-7,
    )  # fmt: skip
    image = np.asarray(front_end.apply({}, jnp.asarray(clips, jnp.float32)))
    for clip, row in zip(clips, image, strict=True):
        power = librosa_power(
            clip, kernel=kernel, stride=stride, n_fft=n_fft, center=framing == 'center',
            pad_mode=pad_mode, mels=40, htk=mel_scale == 'htk', area_norm=area_norm,
        )  # fmt: skip
        expected = np.log(power + 1e-7).T
        assert expected.shape == front_end.image_shape
        np.testing.assert_allclose(row[..., 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kernel', [400, 480])
def test_valid_framing_is_librosa_on_the_clip_padded_by_half_the_excess_of_n_fft(clips, kernel):
    front_end = make('log_mel', kernel=kernel)
    row = np.asarray(front_end.apply({}, jnp.asarray(clips[:1], jnp.float32)))[0, ..., 0]
    power = librosa_power(
        np.pad(clips[0], (512 - kernel) // 2), kernel=kernel, stride=160, n_fft=512, center=False,
        pad_mode='constant', mels=40, htk=False, area_norm=True,
    )  # fmt: skip
    np.testing.assert_allclose(row, np.log(power + 1e-6).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('top_db', [None, 30.0])
def test_decibels_are_those_of_librosa_clip_by_clip(clips, top_db):
    loud_and_soft = clips * np.array([[1.0], [0.01]])
    front_end = make('log_mel', compression='db', top_db=top_db, framing='fft', n_fft=512)
    image = np.asarray(front_end.apply({}, jnp.asarray(loud_and_soft, jnp.float32)))
    for clip, row in zip(loud_and_soft, image, strict=True):
        power = librosa_power(
            clip, kernel=400, stride=160, n_fft=512, center=False, pad_mode='constant', mels=40,
            htk=False, area_norm=True,
        )  # fmt: skip
        expected = librosa.power_to_db(power, top_db=top_db).T
        np.testing.assert_allclose(row[..., 0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(('htk', 'norm'), [(False, 'slaney'), (True, None)])
@pytest.mark.parametrize(('low', 'high'), [(0.0, None), (60.0, 7600.0)])
def test_mel_weights_are_those_of_librosa(htk, norm, low, high):
    weights = mel.mel_weights(
        mels=40, n_fft=512, low=low, high=high, mel_scale='htk' if htk else 'slaney',
        area_norm=norm is not None,
    )  # fmt: skip
    expected = librosa.filters.mel(
        sr=RATE, n_fft=512, n_mels=40, fmin=low, fmax=high, htk=htk, norm=norm
    )
    np.testing.assert_allclose(weights, expected.T, atol=1e-6)


def test_cosine_transform_is_the_orthonormal_dct_of_scipy():
    expected = scipy.fft.dct(np.eye(128), type=2, norm='ortho', axis=1)[:, :40]
    np.testing.assert_allclose(mel.cosine_transform(128, 40), expected, atol=1e-6)


def test_macs_add_window_transform_power_triangles_and_cosines():
    # By hand: 640 log2(640) + 640 = 6606.04 -> 6607; 321 bins twice.
    triangles = np.count_nonzero(
        librosa.filters.mel(sr=RATE, n_fft=640, n_mels=128, htk=True, norm=None)
    )
    frame = 640 + 6607 + 642 + triangles + 128 * 20
    assert make('mfcc', filters=20).macs == 51 * frame


def test_gradient_to_the_waveform_is_that_of_finite_differences(clips):
    front_end = make('log_mel')
    x = jnp.asarray(clips[:1, :2000], jnp.float32)
    direction = jax.random.normal(jax.random.key(0), x.shape)

    @jax.jit
    def mean(x):
        return front_end.apply({}, x).mean()

    slope = jnp.vdot(jax.jit(jax.grad(mean))(x), direction)
    step = 1e-4
    numerical = (mean(x + step * direction) - mean(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, numerical, rtol=0.02)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('mfcc', {'filters': 129}, 'mels must be a whole number of at least 129, got 128'),
        ('mfcc', {'n_fft': 512}, 'n_fft must be a whole number of at least 640, got 512'),
        ('log_mel', {'framing': 'centre'}, "got 'centre'; did you mean 'center'"),
        ('log_mel', {'mel_scale': 'slany'}, "did you mean 'slaney'"),
        ('log_mel', {'pad_mode': 'reflekt'}, "did you mean 'reflect'"),
        ('log_mel', {'high': 9000.0}, '0 <= low < high <= 8000 Hz'),
        ('log_mel', {'log_floor': 0.0}, 'log_floor must be above 0, got 0.0'),
    ],
)
def test_a_bad_value_is_named_with_the_way_out(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)
