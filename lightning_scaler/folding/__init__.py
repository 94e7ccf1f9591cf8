"""Scales and baselines written into the layers of a module, which then needs no scaler.

Imports ``training`` and the rooms above it.
"""

from .fold import fold

__all__ = ["fold"]
