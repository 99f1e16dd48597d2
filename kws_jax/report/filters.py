"""Pictures of learned filters: pass bands and frequency responses."""

import numpy as np

from kws_jax.report import style
from kws_jax.report.records import Records
from kws_jax.report.style import Missing, Picture

RATE = 16000


def responses(taps, gains, *, sample_rate: int, points: int = 4096):
    """Frequency responses of filters in dB.

    Args:
      taps: float `[kernel, filters]`.
      gains: float `[filters]` or None, a factor each.
      sample_rate: in Hz.
      points: of the discrete Fourier transform.

    Returns:
      Hz float64 `[points // 2 + 1]` and dB float64 `[points // 2 + 1, filters]`; 0 dB passes a sine
      at its amplitude.
    """
    taps = np.asarray(taps, np.float64)
    if gains is not None:
        taps = taps * np.asarray(gains, np.float64)[None, :]
    spectrum = np.abs(np.fft.rfft(taps, points, axis=0))
    return np.fft.rfftfreq(points, 1 / sample_rate), 20 * np.log10(np.maximum(spectrum, 1e-6))


def front_end(records: Records) -> list[Picture]:
    """Where the learned filters pass, against where they started."""
    name = 'float' if 'float' in records.models else records.main_model()
    if name is None:
        raise Missing('no model is finished, so there are no learned filters')
    model = records.models[name]
    made = model.make_front_end()
    if made.taps is None:
        raise Missing(f'the front end {made.name} is fixed: it has no learned filters')
    params, filters = model.params['frontend'], made.image_shape[1]
    rate = model.front_end.get('sample_rate', RATE)
    gains = made.gains(params)[:filters] if made.gains else None
    hertz, level = responses(made.taps(params)[:, :filters], gains, sample_rate=rate)
    if made.name != 'sinc':  # scaled as it was learned: only the shape says something
        level = level - level.max(axis=0)[None, :]
    level = np.maximum(level, -80)
    sinc = made.name == 'sinc'
    fig = style.figure(style.WIDTH, 6.8)
    axes = fig.subplot_mosaic('AB\nCC' if sinc else 'BB\nCC')
    if sinc:
        _bands(axes['A'], model.front_end, params, rate)
    _map(fig, axes['B'], hertz, level, filters)
    _lines(axes['C'], hertz, level, filters)
    text = (
        'Pass bands of the filters, grey where they started (mel spacing); their responses; some '
        'of them as curves. 0 dB is a gain of 1.'
        if sinc
        else 'Responses of the learned filters, each relative to its own maximum.'
    )
    return [Picture('filters', f'Front end: the filters of {name}', text, fig)]


def _bands(ax, options, params, rate):
    from kws_jax.frontends.sinc import cut_offs, mel_bands

    kernel = options.get('kernel', 400)
    low, high = (np.asarray(x) for x in cut_offs(params, kernel=kernel, sample_rate=rate))
    start_low, start_high = mel_bands(len(low), kernel=kernel, sample_rate=rate)
    at = np.arange(len(low))
    ax.bar(
        at,
        start_high - start_low,
        bottom=start_low,
        width=0.9,
        color='#D5D5D5',
        label='start (mel)',
    )
    ax.bar(at, high - low, bottom=low, width=0.4, color=style.BLUE, label='learned')
    _mel_scale(ax.yaxis, ax.set_yscale, rate)
    ax.set_ylim(0, rate / 2)
    ax.set_xlim(-1, len(low))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel('filter')
    ax.set_ylabel('pass band [Hz]')
    moved = np.abs(low - start_low) + np.abs(high - start_high)
    ax.set_title(f'Pass bands: edges moved by {moved.mean() / 2:.0f} Hz on average')
    ax.legend(loc='upper left')


def _mel_scale(axis, set_scale, rate):
    set_scale(
        'function',
        functions=(
            lambda f: 2595 * np.log10(1 + np.maximum(f, 0) / 700),
            lambda m: 700 * (10 ** (m / 2595) - 1),
        ),
    )
    axis.set_ticks([t for t in (0, 250, 500, 1000, 2000, 4000, 8000) if t <= rate / 2])


def _map(fig, ax, hertz, level, filters):
    image = ax.pcolormesh(
        np.arange(filters + 1) - 0.5,
        hertz[::8],
        level[::8][:-1],
        cmap='cividis',
        vmin=-60,
        vmax=max(float(level.max()), 0.0),
        rasterized=True,
    )
    ax.grid(False)
    _mel_scale(ax.yaxis, ax.set_yscale, 2 * hertz[-1])
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel('filter')
    ax.set_ylabel('frequency [Hz]')
    ax.set_title('Responses of all filters')
    bar = fig.colorbar(image, ax=ax)
    bar.set_label('gain [dB]')
    bar.outline.set_visible(False)


def _lines(ax, hertz, level, filters):
    import matplotlib

    chosen = np.unique(np.linspace(0, filters - 1, min(filters, 9)).round().astype(int))
    colors = matplotlib.colormaps['viridis'](np.linspace(0, 0.88, len(chosen)))
    for color, i in zip(colors, chosen, strict=True):
        ax.plot(
            hertz,
            level[:, i],
            color=color,
            linewidth=1.4,
            label=f'filter {i}' if i == 0 else f'{i}',
        )
    _mel_scale(ax.xaxis, ax.set_xscale, 2 * hertz[-1])
    ax.set_xlim(0, hertz[-1])
    ax.set_ylim(-60, max(float(level.max()), 0) + 3)
    ax.set_xlabel('frequency [Hz], mel spacing')
    ax.set_ylabel('gain [dB]')
    ax.set_title(f'Responses of {len(chosen)} of the {filters} filters')
    ax.legend(
        loc='lower right',
        bbox_to_anchor=(1.0, 0.99),
        ncols=len(chosen),
        fontsize=8.5,
        columnspacing=1.2,
        handlelength=1.4,
    )
