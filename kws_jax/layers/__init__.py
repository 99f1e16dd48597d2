"""Convolutions and batch norm: arithmetic, fast on every backend."""
