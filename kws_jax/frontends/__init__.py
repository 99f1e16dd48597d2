"""Front ends: waveform `[batch, samples]` in, image `[batch, frames, filters, 1]` out."""

import inspect

from kws_jax.frontends import base, conv, mel, sinc
from kws_jax.frontends.base import FrontEnd

__all__ = ['FACTORIES', 'FrontEnd', 'make', 'settings']

FACTORIES = {'sinc': sinc.sinc, 'conv': conv.conv, 'mfcc': mel.mfcc, 'log_mel': mel.log_mel}


def make(name: str, *, normalize: bool = True, **options) -> FrontEnd:
    """Makes a front end by name.

    Args:
      name: `'sinc'`, `'conv'`, `'mfcc'` or `'log_mel'`.
      normalize: whether the network normalizes the image; see `FrontEnd`.
      **options: keyword arguments of the factory of that name; what is left out keeps its default
        there.

    Raises:
      ValueError: an unknown name or option, or a value out of range; the message names the nearest
        valid one.

    >>> make('sinc', filters=40).image_shape
    (98, 40)
    >>> make('sync')
    Traceback (most recent call last):
    ValueError: name must be 'sinc', 'conv', 'mfcc' or 'log_mel', got 'sync'; did you mean 'sinc'?
    """
    base.check_choice('name', name, FACTORIES)
    known = inspect.signature(FACTORIES[name]).parameters
    for option in options:
        base.check_choice(f'option of front end {name!r}', option, known)
    return FACTORIES[name](**options)._replace(normalize=normalize)


def settings(name: str, *, normalize: bool = True, **options) -> dict:
    """The factory's options with the defaults of those that are left out; arguments as `make`.

    >>> settings('sinc', filters=40)['kernel']
    400
    """
    del normalize
    bound = inspect.signature(FACTORIES[name]).bind_partial(**options)
    bound.apply_defaults()
    return dict(bound.arguments)
