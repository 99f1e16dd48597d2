"""Every form of the depthwise convolution against a sum over taps in float64."""

import functools
import itertools
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.layers import depthwise, ffi_build
from kws_jax.layers.depthwise import Clip, depthwise_conv, depthwise_conv_dynamic

HAS_FFI = not depthwise.ffi_problem()
needs_ffi = pytest.mark.skipif(not HAS_FFI, reason='no C++ compiler')
BACKENDS = [
    pytest.param('ffi', marks=needs_ffi),
    'jax',
    'platform',
]

# Images and channels of the search space, then widths that leave a vector or a strip half full,
# then images smaller than the kernel: (height, width, channels, kernel, stride).
SPACE = [
    (30, 49, 30, (5, 5), 2),
    (15, 25, 40, (3, 3), 1),
    (15, 25, 100, (7, 7), 2),
    (8, 13, 60, (7, 7), 1),
]
ODD = [
    (6, 9, 1, (3, 3), 1),
    (7, 4, 1, (7, 7), 2),
    (5, 26, 19, (5, 5), 1),
    (3, 2, 33, (7, 7), 1),
    (1, 1, 7, (5, 5), 2),
    (20, 1, 12, (9, 1), 1),
    (1, 30, 17, (1, 7), 2),
    (6, 5, 3, (1, 1), 2),
]


def example(height, width, channels, kernel, stride, batch=2, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    out = (batch, -(-height // stride), -(-width // stride), channels)
    shapes = ((batch, height, width, channels), (*kernel, channels), out)
    return [draw(shape).astype(np.float32) for shape in shapes]


def reference(x, w, g, stride):
    """Output and both gradients, in float64, tap by tap."""
    kh, kw, _ = w.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0)))
    d_padded, dw, y = np.zeros_like(padded), np.zeros(w.shape), np.zeros(g.shape)
    rows, columns = g.shape[1:3]
    for ky, kx in itertools.product(range(kh), range(kw)):
        under = (
            slice(None),
            slice(ky, ky + (rows - 1) * stride + 1, stride),
            slice(kx, kx + (columns - 1) * stride + 1, stride),
        )
        y += padded[under] * w[ky, kx]
        d_padded[under] += g * w[ky, kx]
        dw[ky, kx] = (padded[under] * g).sum((0, 1, 2))
    dx = d_padded[:, kh // 2 : kh // 2 + x.shape[1], kw // 2 : kw // 2 + x.shape[2]]
    return y, dx, dw


def run(function, x, w, g):
    @jax.jit
    def all_three(x, w, g):
        y, pull = jax.vjp(function, x, w)
        return y, *pull(g)

    return all_three(x, w, g)


def assert_close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * (1 + np.abs(b).max()))


@pytest.mark.parametrize('case', SPACE + ODD, ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
def test_every_backend_gives_the_sum_over_taps_and_its_gradients(backend, case):
    x, w, g = example(*case)
    got = run(lambda x, w: depthwise_conv(x, w, stride=case[-1], backend=backend), x, w, g)
    assert_close(got, reference(x, w, g, case[-1]))


@needs_ffi
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel', [3, 5, 7])
def test_the_cpu_kernel_is_right_at_every_width_of_image_and_vector(kernel, stride):
    # Widths on both sides of each strip of columns, channels on both sides of each vector.
    for width, channels in [(3, 4), (7, 8), (8, 9), (13, 16), (15, 17), (27, 25)]:
        x, w, g = example(4, width, channels, (kernel, kernel), stride)
        got = run(lambda x, w: depthwise_conv(x, w, stride=stride, backend='ffi'), x, w, g)
        assert_close(got, reference(x, w, g, stride))


@needs_ffi
def test_the_cpu_kernel_handles_more_images_than_partial_sums_and_none_at_all():
    x, w, g = example(5, 6, 11, (3, 3), 1, batch=37)
    assert_close(run(lambda x, w: depthwise_conv(x, w, backend='ffi'), x, w, g),
                 reference(x, w, g, 1))
    y, dx, dw = run(lambda x, w: depthwise_conv(x, w, backend='ffi'), x[:0], w, g[:0])
    assert y.shape == dx.shape == (0, 5, 6, 11)
    np.testing.assert_array_equal(dw, np.zeros_like(w))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('backend', BACKENDS)
def test_dynamic_form_equals_the_static_one_with_sliced_weights(backend, stride):
    x, w, g = example(6, 15, 37, (7, 7), stride)

    @jax.jit
    def all_three(x, w, g, kernel, channels):
        def function(x, w):
            return depthwise_conv_dynamic(x, w, kernel, channels, stride=stride, backend=backend)

        y, pull = jax.vjp(function, x, w)
        return y, *pull(g)

    for kernel, channels in [(7, 37), (5, 20), (3, 5), (1, 17), (7, 0)]:
        edge = (7 - kernel) // 2
        taps = (slice(edge, 7 - edge), slice(edge, 7 - edge), slice(channels))
        # The weights outside are not zero here: they must not matter.
        got = all_three(x, w, g, kernel, channels)
        wanted = [np.zeros(a.shape) for a in (g, x, w)]
        if channels:
            active = reference(x[..., :channels], w[taps], g[..., :channels], stride)
            wanted[0][..., :channels], wanted[1][..., :channels], wanted[2][taps] = active
        assert_close(got, wanted)
        for a, b in zip(got, wanted):
            assert not np.any(np.asarray(a)[b == 0.0]), 'inactive parts must be exactly zero'


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('channels', [5, 9, 16, 37])
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_clip_of_the_input_equals_clipping_it_before(backend, channels, stride):
    x, w, g = example(6, 15, channels, (5, 5), stride, batch=3)
    offset = np.linspace(-1, 1, channels, dtype=np.float32)

    def joined(x, w, offset):
        clip = Clip(offset, -0.5, 0.8)
        return depthwise_conv(x, w, stride=stride, clip=clip, backend=backend)

    def apart(x, w, offset):
        return depthwise_conv(
            jnp.clip(x + offset[None, None, None], -0.5, 0.8), w, stride=stride, backend='platform'
        )

    results = []
    for function in (joined, apart):
        y, pull = jax.vjp(jax.jit(function), x, w, offset)
        results.append((y, *pull(g)))
    assert_close(*results)


def causal_reference(x, w, g, stride):
    """`reference` with all padding of rows above: the same on an image moved down by half a
    kernel."""
    down = w.shape[0] // 2
    longer = np.pad(x, ((0, 0), (down, 0), (0, 0), (0, 0)))
    more = -(-longer.shape[1] // stride) - g.shape[1]
    y, dx, dw = reference(longer, w, np.pad(g, ((0, 0), (0, more), (0, 0), (0, 0))), stride)
    return y[:, : g.shape[1]], dx[:, down:], dw


@pytest.mark.parametrize('case', SPACE + ODD, ids=str)
@pytest.mark.parametrize('backend', BACKENDS[:2])  # 'platform' is one of the two
def test_the_causal_form_has_its_padding_above(backend, case):
    x, w, g = example(*case)
    causal = functools.partial(depthwise_conv, stride=case[-1], causal=True, backend=backend)
    assert_close(run(causal, x, w, g), causal_reference(x, w, g, case[-1]))
    # what comes later changes nothing
    t = min(2, g.shape[1] - 1)
    later = x.copy()
    later[:, t * case[-1] + 1 :] += 1
    np.testing.assert_array_equal(causal(x, w)[:, : t + 1], causal(later, w)[:, : t + 1])


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('backend', BACKENDS)
def test_the_causal_form_takes_clips_and_kernels_in_use(backend, stride):
    x, w, g = example(9, 6, 12, (7, 7), stride)
    offset = np.linspace(-1, 1, 12, dtype=np.float32)

    @functools.partial(jax.jit, static_argnums=6)
    def all_four(x, w, g, offset, kernel, bounds, dynamic):
        def function(x, w, offset):
            clip = Clip(offset, *bounds)
            options = {'stride': stride, 'clip': clip, 'causal': True, 'backend': backend}
            if dynamic:
                return depthwise_conv_dynamic(x, w, kernel, 12, **options)
            return depthwise_conv(x, w, **options)

        y, pull = jax.vjp(function, x, w, offset)
        return y, *pull(g)

    for kernel, bounds in [(7, (0.0, 0.6)), (5, (0.0, 0.6)), (3, (-np.inf, np.inf))]:
        edge = (7 - kernel) // 2
        inner = slice(edge, 7 - edge)
        shifted = x + offset
        y, dx, dw = causal_reference(
            np.clip(shifted, *bounds), w[inner, inner].astype(np.float64), g, stride
        )
        dx = np.where((shifted > bounds[0]) & (shifted < bounds[1]), dx, 0)
        wanted = y, dx, dw, dx.sum((0, 1, 2))
        y, dx, dw, d_offset = all_four(x, w, g, offset, kernel, bounds, True)
        assert_close((y, dx, dw[inner, inner], d_offset), wanted)
        if kernel == 7:
            assert_close(all_four(x, w, g, offset, kernel, bounds, False), wanted)


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_dynamic_form_takes_a_clip_whose_bounds_are_traced(backend):
    x, w, g = example(6, 15, 20, (7, 7), 1)
    offset = np.linspace(-1, 1, 20, dtype=np.float32)

    @jax.jit
    def joined(x, w, offset, low, high):
        def function(x, w, offset):
            clip = Clip(offset, low, high)
            return depthwise_conv_dynamic(x, w, 5, 12, clip=clip, backend=backend)

        y, pull = jax.vjp(function, x, w, offset)
        return y, *pull(g)

    for low, high in [(0.0, 0.6), (-np.inf, np.inf)]:
        active = x[..., :12], w[1:6, 1:6, :12], offset[:12]
        apart = lambda x, w, o: depthwise_conv(jnp.clip(x + o[None, None, None], low, high), w)  # noqa: E731, B023
        y, pull = jax.vjp(apart, *active)
        got = joined(x, w, offset, low, high)
        for whole, part in zip(got, (y, *pull(g[..., :12])), strict=True):
            if whole.shape == w.shape:
                whole = whole[1:6, 1:6]
            assert not np.any(np.asarray(whole)[..., 12:])
            assert_close([whole[..., :12]], [part])


@needs_ffi
@pytest.mark.parametrize('stride', [1, 2])
def test_the_cpu_kernel_gives_the_same_bits_twice(stride):
    x, w, g = example(8, 13, 30, (5, 5), stride, batch=50)
    function = jax.jit(
        lambda x, w, g: jax.vjp(
            lambda x, w: depthwise_conv(x, w, stride=stride, backend='ffi'), x, w
        )[1](g)
    )
    first = function(x, w, g)
    for _ in range(3):
        for a, b in zip(first, function(x, w, g)):
            np.testing.assert_array_equal(a, b)


@needs_ffi
def test_infinities_in_one_channel_stay_in_it():
    x, w, _ = example(4, 5, 18, (3, 3), 1)
    clean = depthwise_conv(x, w, backend='ffi')
    x[..., 3] = np.inf
    dirty = np.array(depthwise_conv(x, w, backend='ffi'))
    np.testing.assert_array_equal(np.delete(dirty, 3, -1), np.delete(clean, 3, -1))


@pytest.mark.parametrize('backend', ['auto', *BACKENDS])
def test_gradient_inside_jit_scan_and_checkpoint_equals_that_of_plain_calls(backend):
    x, w, _ = example(6, 7, 5, (3, 3), 1)
    w = np.stack([w, w[::-1]])

    def looped(x, w):
        @jax.checkpoint
        def body(h, w):
            return jnp.tanh(depthwise_conv(h, w, backend=backend)), None

        return jnp.sum(jax.lax.scan(body, x, w)[0])

    def plain(x, w):
        for tap in w:
            x = jnp.tanh(depthwise_conv(x, tap, backend='platform'))
        return jnp.sum(x)

    assert_close(jax.jit(jax.grad(looped, (0, 1)))(x, w), jax.grad(plain, (0, 1))(x, w))


def test_a_batch_of_problems_by_vmap_equals_one_after_the_other():
    x, w, _ = example(4, 5, 3, (3, 3), 1, batch=6)
    w = np.stack([w, 2 * w])
    got = jax.vmap(depthwise_conv)(x.reshape(2, 3, 4, 5, 3), w)
    wanted = [depthwise_conv(a, b) for a, b in zip(x.reshape(2, 3, 4, 5, 3), w)]
    assert_close(got, wanted)


def test_strides_kernels_and_types_without_a_cpu_kernel_take_the_jax_form():
    x, w, g = example(7, 10, 3, (3, 9), 3)
    assert_close(run(lambda x, w: depthwise_conv(x, w, stride=3), x, w, g), reference(x, w, g, 3))
    half = depthwise_conv(jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"backend='ffi' has float32 kernels of width .* stride 3"):
        depthwise_conv(x, w, stride=3, backend='ffi')


@pytest.mark.parametrize(
    ('variables', 'reason'),
    [
        ({'PATH': '', 'CXX': ''}, 'no C++ compiler'),
        ({'CXX': 'no-such-compiler'}, "CXX='no-such-compiler' was not found"),
        ({'CXX': 'false'}, 'false --version failed'),
    ],
)
def test_without_a_compiler_the_jax_form_takes_over_and_says_so_once(
    variables, reason, monkeypatch, caplog
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    depthwise.ffi_problem.cache_clear()
    try:
        x, w, _ = example(3, 4, 2, (3, 3), 1)
        with caplog.at_level(logging.WARNING, logger=depthwise.__name__):
            text = jax.jit(depthwise_conv).lower(x, w).as_text()
            jax.jit(lambda x, w: depthwise_conv(x, w, stride=2)).lower(x, w)
        assert 'KwsDepthwise' not in text
        assert [reason in r.getMessage() for r in caplog.records] == [True]
        with pytest.raises(RuntimeError, match="backend='ffi' can't be built"):
            depthwise_conv(x, w, backend='ffi')
    finally:
        monkeypatch.undo()
        depthwise.ffi_problem.cache_clear()


@pytest.mark.skipif(os.name != 'posix', reason='needs a shell script')
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    compiler = tmp_path / 'broken'
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho first worst >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    with pytest.raises(ffi_build.BuildError, match='broken failed: first worst'):
        ffi_build.load_library(pathlib.Path(depthwise.__file__).with_name('depthwise.cc'))
    assert not list((tmp_path / 'cache' / 'kws_jax').iterdir())


@needs_ffi
def test_a_source_is_built_once_and_again_when_it_changes_even_by_many_at_once(
    monkeypatch, tmp_path
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    source = tmp_path / 'answer.cc'
    source.write_text('extern "C" int answer() { return 42; }\n')
    program = (
        'import pathlib, sys; from kws_jax.layers import ffi_build; '
        'sys.exit(ffi_build.load_library(pathlib.Path(sys.argv[1])).answer() != 42)'
    )
    others = [subprocess.Popen([sys.executable, '-c', program, str(source)], env=dict(
        os.environ, PYTHONPATH=os.pathsep.join(sys.path))) for _ in range(2)]
    assert ffi_build.load_library(source).answer() == 42
    assert [process.wait() for process in others] == [0, 0]
    libraries = list((tmp_path / 'cache' / 'kws_jax').iterdir())
    assert [library.suffix for library in libraries] == ['.so']
    stamp = libraries[0].stat().st_mtime_ns
    ffi_build.load_library(source)
    assert libraries[0].stat().st_mtime_ns == stamp
    source.write_text('extern "C" int answer() { return 43; }\n')
    assert ffi_build.load_library(source).answer() == 43


def test_a_cache_that_cannot_be_written_is_replaced_by_a_fresh_folder(monkeypatch, tmp_path):
    blocked = tmp_path / 'file'
    blocked.write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(blocked))
    first, second = ffi_build.cache_directory(), ffi_build.cache_directory()
    assert first.is_dir() and first != second
    first.rmdir()
    second.rmdir()


def test_environment_variable_chooses_the_backend(monkeypatch):
    x, w, _ = example(3, 4, 2, (3, 3), 1)

    def lowered():
        return jax.jit(lambda x, w: depthwise_conv(x, w)).lower(x, w).as_text()

    assert ('KwsDepthwiseForward' in lowered()) == HAS_FFI
    monkeypatch.setenv('KWS_JAX_DEPTHWISE', 'jax')
    assert 'KwsDepthwise' not in lowered() and 'stablehlo.convolution' not in lowered()
    monkeypatch.setenv('KWS_JAX_DEPTHWISE', 'platform')
    assert 'feature_group_count = 2' in lowered()
    monkeypatch.setenv('KWS_JAX_DEPTHWISE', 'cuda')
    with pytest.raises(ValueError, match=r"must be one of auto, ffi, jax, platform, got 'cuda'"):
        lowered()


def test_accelerators_get_the_grouped_convolution():
    x, w, _ = example(3, 4, 2, (3, 3), 1)
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(depthwise_conv(x, w)), (0, 1)))
    text = gradient.trace(x, w).lower(lowering_platforms=('tpu',)).as_text()
    assert 'KwsDepthwise' not in text and 'group_count = 2' in text


@pytest.mark.parametrize(
    ('x_shape', 'w_shape', 'stride', 'message'),
    [
        ((2, 3, 4, 5), (3, 3, 6), 1, 'with the same channels'),
        ((3, 4, 5), (3, 3, 5), 1, r'x must be \[batch'),
        ((2, 3, 4, 5), (4, 3, 5), 1, r'odd kernel extents, got shape \(4, 3, 5\)'),
        ((2, 3, 4, 5), (3, 3, 5), 0, 'stride must be at least 1, got 0'),
    ],
)
def test_wrong_arguments_are_named(x_shape, w_shape, stride, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.zeros(x_shape), jnp.zeros(w_shape), stride=stride)


def test_types_that_differ_and_dynamic_kernels_that_are_not_square_are_named():
    with pytest.raises(ValueError, match='one dtype, got float32 and bfloat16'):
        depthwise_conv(jnp.zeros((1, 2, 2, 1)), jnp.zeros((3, 3, 1), jnp.bfloat16))
    with pytest.raises(ValueError, match=r'square kernel, got shape \(3, 5, 1\)'):
        depthwise_conv_dynamic(jnp.zeros((1, 2, 2, 1)), jnp.zeros((3, 5, 1)), 3, 1)


@needs_ffi
@pytest.mark.parametrize(('kernel', 'channels'), [(4, 2), (0, 2), (9, 2), (3, 3), (3, -1)])
def test_active_extents_that_do_not_fit_are_refused_traced_or_not(kernel, channels):
    x, w = jnp.zeros((1, 2, 2, 2)), jnp.zeros((7, 7, 2))
    with pytest.raises(ValueError, match='active_(kernel must be odd, in 1..7|channels .* 0..2)'):
        depthwise_conv_dynamic(x, w, kernel, channels)
    kernel, channels = jnp.int32(kernel), jnp.int32(channels)
    with pytest.raises(jax.errors.JaxRuntimeError, match='active_(kernel|channels)'):
        depthwise_conv_dynamic(x, w, kernel, channels, backend='ffi').block_until_ready()
