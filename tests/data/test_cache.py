"""Tests of the decoded cache."""

import errno
import io
import os
import pathlib
import struct
import time

import numpy as np
import pytest
import scipy.signal
import soundfile

from kws_jax.data import cache


def noise(seed, samples=16000, peak=3000):
    return np.random.default_rng(seed).integers(-peak, peak, samples).astype(np.int16)


def left_over(folder):
    return sorted(p.name for p in pathlib.Path(folder).iterdir())


def wav_bytes(samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format='WAV', subtype='PCM_16', **options)
    return file.getvalue()


def test_rows_follow_the_order_of_the_files_bit_by_bit(folder, tmp_path):
    one, two = folder('train'), folder('test')
    files = [
        two.add('yes/a.wav', noise(1)),
        one.add('no/b.flac', noise(2)),
        one.add('a/c.wav', noise(3)),
    ]
    got = cache.open_cache(files, tmp_path / 'cache')
    np.testing.assert_array_equal(got.audio, [noise(1), noise(2), noise(3)])
    assert got.audio.dtype == np.int16 and isinstance(got.audio, np.memmap)
    assert not got.audio.flags.writeable
    assert got.ok.all() and got.errors == {}


def test_a_short_recording_is_followed_by_zeros(folder, tmp_path):
    path = folder().add('yes/a.wav', noise(1, 4000))
    got = cache.open_cache([path], tmp_path / 'cache')
    np.testing.assert_array_equal(got.audio[0, :4000], noise(1, 4000))
    assert not got.audio[0, 4000:].any()
    assert got.seconds[0] == 0.25
    assert got.conversions() == {
        'resampled': 0,
        'mixed_to_mono': 0,
        'cut': 0,
        'padded': 1,
        'undecodable': 0,
    }


def test_a_long_recording_is_cut_to_its_loudest_second(folder, tmp_path):
    samples = noise(1, 40000, peak=50)
    samples[21000:33000] = noise(2, 12000)
    got = cache.open_cache([folder().add('yes/a.wav', samples)], tmp_path / 'cache')
    power = samples.astype(float) ** 2
    best = max(range(24001), key=lambda s: power[s : s + 16000].sum())  # brute force
    assert best <= 21000 and best + 16000 >= 33000
    np.testing.assert_array_equal(got.audio[0], samples[best : best + 16000])
    assert got.conversions()['cut'] == 1


def test_of_equally_loud_seconds_the_middle_one_is_kept():
    samples = np.zeros(40001, np.int16)
    samples[20000] = 1000  # seconds that start in 4001..20000 hold it
    assert np.flatnonzero(cache.to_one_second(samples)).tolist() == [20000 - 12001]


def test_stereo_at_44100_hz_becomes_mono_at_16000_hz(folder, tmp_path):
    t = np.arange(44100) / 44100
    left = 0.4 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 12000 * t)
    right = 0.2 * np.sin(2 * np.pi * 440 * t)
    path = folder().add('yes/a.wav', np.stack([left, right], 1), 44100, subtype='FLOAT')
    got = cache.open_cache([path], tmp_path / 'cache')
    # 12 kHz is above the new limit of 8 kHz and must vanish; scipy agrees away from the ends.
    want = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    other = scipy.signal.resample_poly((left + right) / 2, 160, 441)
    middle = slice(500, 15500)
    np.testing.assert_allclose(got.audio[0, middle] / 32768, want[middle], atol=1e-3)
    np.testing.assert_allclose(got.audio[0, middle] / 32768, other[middle], atol=1e-3)
    assert (got.rate[0], got.channels[0]) == (44100, 2)
    assert got.conversions() == {
        'resampled': 1,
        'mixed_to_mono': 1,
        'cut': 0,
        'padded': 0,
        'undecodable': 0,
    }


def test_loud_float_audio_is_clipped_not_wrapped(folder, tmp_path):
    audio = np.array([1.5, -1.5, 1.0, -1.0, 0.5] * 3200, np.float32)
    path = folder().add('yes/a.wav', audio, subtype='FLOAT')
    got = cache.open_cache([path], tmp_path / 'cache')
    assert got.audio[0, :5].tolist() == [32767, -32768, 32767, -32768, 16384]


@pytest.mark.parametrize(
    'options',
    [
        {'subtype': 'PCM_24'},
        {'subtype': 'PCM_U8'},
        {'format': 'WAVEX', 'subtype': 'PCM_16'},
        {'format': 'RF64', 'subtype': 'PCM_16'},
        {'format': 'FLAC'},
    ],
)
def test_other_encodings_give_the_same_samples(folder, options):
    samples = noise(1) // 256 * 256  # exact in 8 bits too
    path = folder().add('yes/a.wav', samples, **options)
    np.testing.assert_array_equal(cache.decode_file(path).samples, samples)


def test_the_fast_path_skips_other_chunks(tmp_path):
    plain = wav_bytes(noise(1))
    fmt_end = 36
    extra = plain[:fmt_end] + b'LIST' + struct.pack('<I', 3) + b'abc\0' + plain[fmt_end:]
    path = tmp_path / 'a.wav'
    path.write_bytes(extra + b'id3 ' + struct.pack('<I', 4) + b'tail')
    np.testing.assert_array_equal(cache.decode_file(path).samples, noise(1))


def test_a_recording_from_a_pipe_is_read_to_the_end_of_the_file(tmp_path):
    raw = bytearray(wav_bytes(noise(1)))
    raw[40:44] = b'\xff\xff\xff\xff'
    path = tmp_path / 'a.wav'
    path.write_bytes(raw)
    np.testing.assert_array_equal(cache.decode_file(path).samples, noise(1))


def broken_files(root):
    """Writes one file of every kind of damage: {name: what its error must say}."""
    root = pathlib.Path(root)
    good = wav_bytes(noise(1))
    stereo = wav_bytes(np.stack([noise(1), noise(2)], 1))
    flac = io.BytesIO()
    soundfile.write(flac, noise(1), 16000, format='FLAC')
    contents = {
        'empty.wav': (b'', 'empty file'),
        'text.wav': (b'this is no recording\n' * 100, ''),
        'truncated.wav': (good[:9000], 'truncated: its header states 32000 bytes'),
        'truncated_stereo.wav': (stereo[:9000], 'truncated: its header states 64000 bytes'),
        'truncated.flac': (flac.getvalue()[:9000], ''),
        'header_only.wav': (good[:44], 'truncated'),
        'half_header.wav': (good[:30], ''),
        'no_samples.wav': (wav_bytes(noise(1, 0)), 'no samples'),
    }
    for name, (content, _) in contents.items():
        (root / name).write_bytes(content)
    (root / 'link.wav').symlink_to(root / 'gone.wav')
    nan = np.full(16000, np.nan, np.float32)
    soundfile.write(root / 'nan.wav', nan, 16000, subtype='FLOAT')
    return {
        **{name: why for name, (_, why) in contents.items()},
        'link.wav': 'No such file',
        'nan.wav': 'not finite',
    }


def test_damaged_files_are_left_out_named_and_never_raise(tmp_path, log):
    damaged = broken_files(tmp_path)
    good = tmp_path / 'good.wav'
    good.write_bytes(wav_bytes(noise(5)))
    got = cache.open_cache([good, *(tmp_path / name for name in damaged)], tmp_path / 'cache')
    assert got.ok.tolist() == [True] + [False] * len(damaged)
    np.testing.assert_array_equal(got.audio[0], noise(5))
    assert not got.audio[1:].any()
    for row, (name, why) in enumerate(damaged.items(), 1):
        assert got.errors[row], name
        assert why in got.errors[row], name
        assert name in log.text
    assert f'{len(damaged)} undecodable' in log.text
    log.clear()
    assert (
        cache.open_cache([good, *(tmp_path / n for n in damaged)], tmp_path / 'cache').errors
        == got.errors
    )
    assert 'truncated.flac' in log.text  # said again whenever the cache is opened


def test_long_lists_of_damage_are_cut_short_in_the_log_and_counted(tmp_path, log):
    files = [tmp_path / f'{i}.wav' for i in range(30)]
    for path in files:
        path.write_bytes(b'')
    assert len(cache.open_cache(files, tmp_path / 'cache').errors) == 30
    assert 'undecodable: 10 more' in log.text


def test_the_cache_is_opened_again_without_decoding(folder, tmp_path, monkeypatch):
    path = folder().add('yes/a.wav', noise(1))
    first = cache.open_cache([path], tmp_path / 'cache')
    monkeypatch.setattr(cache, 'decode_file', lambda path: pytest.fail('decoded again'))
    again = cache.open_cache([path], tmp_path / 'cache')
    assert again.key == first.key
    np.testing.assert_array_equal(again.audio, first.audio)
    np.testing.assert_array_equal(again.digest, first.digest)


def test_the_key_changes_with_path_size_and_time_and_with_nothing_else(folder, tmp_path):
    made = folder()
    one, two = made.add('yes/a.wav', noise(1)), made.add('yes/b.wav', noise(2))
    key = cache.file_key([one, two])
    assert cache.file_key([one, two]) == key
    assert cache.file_key([two, one]) != key
    assert cache.file_key([one]) != key
    stat = os.stat(one)
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.file_key([one, two]) != key
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_key([one, two]) == key
    made.add('yes/a.wav', noise(3, 15000))
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_key([one, two]) != key


def test_a_changed_recording_is_decoded_anew(folder, tmp_path):
    made = folder()
    path = made.add('yes/a.wav', noise(1))
    cache.open_cache([path], tmp_path / 'cache')
    made.add('yes/a.wav', noise(2))
    os.utime(path, ns=(0, 10**18))
    np.testing.assert_array_equal(cache.open_cache([path], tmp_path / 'cache').audio[0], noise(2))


def test_equal_audio_has_equal_digests_whatever_its_file(folder, tmp_path):
    made = folder()
    files = [
        made.add('a/a.wav', noise(1)),
        made.add('b/b.flac', noise(1)),
        made.add('c/c.wav', noise(2)),
    ]
    digest = cache.open_cache(files, tmp_path / 'cache').digest
    assert digest[0].tolist() == digest[1].tolist() != digest[2].tolist()


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_and_leaves_nothing(folder, tmp_path, monkeypatch, number):
    files = [folder().add(f'yes/{i}.wav', noise(i)) for i in range(3)]
    folder_of_caches = tmp_path / 'cache'
    real = cache.to_one_second
    calls = []

    def full(samples):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))
        return real(samples)

    monkeypatch.setattr(cache, 'to_one_second', full)
    with pytest.raises(OSError, match='no space left.*needs 96,000 bytes.*another cache_dir') as e:
        cache.open_cache(files, folder_of_caches)
    assert e.value.errno == number
    assert str(folder_of_caches) in str(e.value)
    assert left_over(folder_of_caches) == []
    monkeypatch.setattr(cache, 'to_one_second', real)
    assert cache.open_cache(files, folder_of_caches).ok.all()  # works once there is space


def test_an_interrupted_run_leaves_nothing(folder, tmp_path, monkeypatch):
    path = folder().add('yes/a.wav', noise(1))

    def interrupted(samples):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, 'to_one_second', interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.open_cache([path], tmp_path / 'cache')
    assert left_over(tmp_path / 'cache') == []


def test_what_killed_runs_left_is_removed_after_a_day(folder, tmp_path):
    path = folder().add('yes/a.wav', noise(1))
    for name, age in (('.writing-old', 2), ('.writing-new', 0)):
        made = tmp_path / 'cache' / name
        made.mkdir(parents=True)
        (made / 'audio.npy').write_bytes(b'half')
        os.utime(made, (time.time() - 86400 * age,) * 2)
    key = cache.open_cache([path], tmp_path / 'cache').key
    assert left_over(tmp_path / 'cache') == sorted(['.writing-new', key])


def test_of_two_processes_that_decode_at_once_one_wins_and_both_work(folder, tmp_path, monkeypatch):
    path = folder().add('yes/a.wav', noise(1))
    real = cache.to_one_second

    def slow(samples):
        monkeypatch.setattr(cache, 'to_one_second', real)
        cache.open_cache([path], tmp_path / 'cache')  # the other process, quicker than this one
        return real(samples)

    monkeypatch.setattr(cache, 'to_one_second', slow)
    got = cache.open_cache([path], tmp_path / 'cache')
    np.testing.assert_array_equal(got.audio[0], noise(1))
    assert left_over(tmp_path / 'cache') == [got.key]


def test_no_files_give_an_empty_cache(tmp_path):
    got = cache.open_cache([], tmp_path / 'cache')
    assert got.audio.shape == (0, 16000)


def test_noise_is_kept_whole_and_converted(folder, tmp_path, log):
    made = folder()
    t = np.arange(3 * 8000) / 8000
    files = [
        made.add('n/a.wav', noise(1, 40000)),
        made.add('n/b.wav', 0.5 * np.sin(2 * np.pi * 300 * t), 8000),
        tmp_path / 'c.wav',
    ]
    files[2].write_bytes(b'')
    for _ in range(2):
        got, errors = cache.open_noise(files, tmp_path / 'cache')
        np.testing.assert_array_equal(got[0], noise(1, 40000))
        assert [len(n) for n in got] == [40000, 48000]
        assert errors == {str(files[2]): 'empty file'}
    assert 'undecodable noise' in log.text


def test_conversions_of_noise_are_counted_in_the_log_like_those_of_clips(folder, tmp_path, log):
    made = folder()
    files = [
        made.add('n/a.wav', noise(1, 40000)),
        made.add('n/b.wav', noise(2, 40000), 8000),
        made.add('n/c.wav', np.stack([noise(3, 40000), noise(4, 40000)], 1), 44100),
        made.add('n/d.wav', np.stack([noise(5, 40000), noise(6, 40000)], 1)),
        made.add('n/e.wav', noise(7, 40000), 48000),
        tmp_path / 'f.wav',
    ]
    files[-1].write_bytes(b'')
    for _ in range(2):  # decoded, and opened again
        log.clear()
        cache.open_noise(files, tmp_path / 'cache')
        assert 'of 6 background noises: 3 resampled, 2 mixed_to_mono, 1 undecodable' in log.messages
    log.clear()
    cache.open_noise(files[:1], tmp_path / 'cache')
    assert 'background noises' not in log.text


def test_decoding_is_fast_enough_for_twenty_thousand_recordings_in_twenty_seconds(folder, tmp_path):
    made = folder()
    files = [made.add(f'yes/{i}.wav') for i in range(400)]
    started = time.process_time()  # of all threads, so that other programs do not count
    cache.open_cache(files, tmp_path / 'cache')
    assert time.process_time() - started < 0.4


def test_opening_twenty_thousand_again_takes_a_second_and_one_stat_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'SAMPLES', 1)  # the array is mapped: its size takes no time
    files = [str(tmp_path / f'{i}.wav') for i in range(4000)]
    one_sample = wav_bytes(noise(1, 1))
    for path in files:
        pathlib.Path(path).write_bytes(one_sample)
    cache.open_cache(files, tmp_path / 'cache', progress=False)
    seconds = []
    for _ in range(3):  # the best of three, of this process alone: other programs count little
        started = time.process_time()
        assert cache.open_cache(files, tmp_path / 'cache').ok.all()
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.2  # a fifth of 20,000 in a fifth of a second

    asked, opened = [], []
    stat, open_file = os.stat, open

    def counted_stat(path, *args, **options):
        asked.append(path)
        return stat(path, *args, **options)

    def counted_open(path, *args, **options):
        opened.append(path)
        return open_file(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'stat', counted_stat)
        patch.setattr('builtins.open', counted_open)
        cache.open_cache(files, tmp_path / 'cache')
    assert [path for path in asked if str(path).endswith('.wav')] == files
    assert opened and len(opened) < 10 and not set(opened) & set(files)
