"""Trained networks in use: scales frozen in TorchScript, and the export to metatomic.

Imports ``settings`` and the rooms from ``tensors`` to ``scaling``. Works without Lightning.
"""

from .export_model import export
from .physical_model import PhysicalModel

__all__ = ["PhysicalModel", "export"]
