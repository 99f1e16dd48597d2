"""Conv1D: the same framing as SincConv with every tap free."""

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.frontends import base, sinc


def conv(
    *,
    filters: int = 60,
    kernel: int = 400,
    stride: int = 160,
    sample_rate: int = 16000,
    samples: int = 16000,
    compression: str = 'log',
    log_gain: float = 1000.0,
    initial: str = 'he',
    quadrature: bool = False,
    unit: float = 1.0,
    hops: int = 1,
) -> base.FrontEnd:
    """Conv1D front end: free filters on the waveform (compared in Peter et al. 2022, fig. 1).

    Args:
      filters, kernel, stride, sample_rate, samples, compression, log_gain, hops: as for
        `sinc.sinc`.
      initial: `'he'`, normal with variance `2 / kernel`; or `'mel'`, the starting bank of SincConv
        with each filter scaled to the same expected norm, sqrt(2), so that both starts suit one
        learning rate.
      quadrature: the response is the magnitude of pairs of free filters; taps `[kernel, 2 *
        filters]`. With `initial='mel'` the pairs start in quadrature.
      unit: taps are `unit * params['taps']`, so that a step of gradient descent moves them
        `unit^2` times as far as with 1; the start is the same. At the rates that suit the network
        behind it, free taps leave any start at once; see `configs/front_ends.py`.

    Returns:
      A FrontEnd with params `{'taps': float32[kernel, columns]}`.

    Raises:
      ValueError: an argument is out of range; the message says which and what would do.

    >>> front_end = conv(filters=60)
    >>> front_end.image_shape, front_end.macs, front_end.parameters, front_end.stored_weights
    ((98, 60), 2352000, 24000, 24000)
    """
    frames = base.check_filterbank(
        filters=filters,
        kernel=kernel,
        stride=stride,
        sample_rate=sample_rate,
        samples=samples,
        compression=compression,
        log_gain=log_gain,
        hops=hops,
    )
    base.check_choice('initial', initial, ('he', 'mel'))
    if not unit > 0:
        raise ValueError(f'unit must be above 0, got {unit!r}; 1 learns taps as other weights')
    columns = 2 * filters if quadrature else filters

    def init(key: jax.Array) -> dict:
        if initial == 'he':
            size = np.float32(np.sqrt(2.0 / kernel) / unit)
            return {'taps': size * jax.random.normal(key, (kernel, columns))}
        low, high = (
            jnp.asarray(f, jnp.float32)
            for f in sinc.mel_bands(filters, kernel=kernel, sample_rate=sample_rate)
        )
        shape = sinc.band_pass_taps(
            low, high, kernel=kernel, sample_rate=sample_rate, quadrature=quadrature
        )
        size = np.float32(np.sqrt(2.0) / unit)
        return {'taps': size * shape / jnp.linalg.norm(shape, axis=0, keepdims=True)}

    def taps(params: dict) -> jax.Array:
        return unit * params['taps']

    def apply(params, waveform, *, quantize_weight=base.identity, quantize_input=base.identity):
        base.check_waveform(waveform, kernel)
        return base.filterbank_image(
            quantize_input(waveform),
            quantize_weight(taps(params)),
            None,
            stride=stride,
            compression=compression,
            log_gain=log_gain,
            quadrature=quadrature,
            hops=hops,
        )

    return base.FrontEnd(
        name='conv',
        init=init,
        apply=apply,
        image_shape=(frames, filters),
        macs=kernel * columns * frames * hops,
        parameters=kernel * columns,
        stored_weights=kernel * columns,
        taps=taps,
        gains=lambda params: jnp.ones(columns),
    )
