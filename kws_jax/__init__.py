"""Keyword spotting from raw audio: search, training, quantization and deployment in JAX."""

__version__ = '0.1.0'
