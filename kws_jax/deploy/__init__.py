"""Quantized models as integer networks: what they are, how they run, how they are stored."""

from kws_jax.deploy.convert import from_model, snap
from kws_jax.deploy.execute import run
from kws_jax.deploy.network import Network

__all__ = ['Network', 'from_model', 'run', 'snap']
