"""Quantized models as integer networks: what they are, how they run, how they are stored."""

from kws_jax.integer.convert import from_model, snap
from kws_jax.integer.execute import run
from kws_jax.integer.network import Network

__all__ = ['Network', 'from_model', 'run', 'snap']
