"""Trained networks in use: scales frozen in TorchScript, and the export to metatomic.

Imports ``settings`` and the rooms from ``tensors`` to ``scaling``. Works without Lightning.
"""

from .export_model import export
from .physical_model import PhysicalModel, find_wrapped

__all__ = ["PhysicalModel", "export", "find_wrapped"]
