"""Plain tensors: declared targets, found in a user's own batches and in the output of a network.

Finds the atoms of such a batch, turns its tensors into TensorMaps and puts converted ones back into
copies. Imports ``batches``, ``tensors`` and ``settings``.
"""

from .addresses import describe_address
from .declaration import Declaration
from .declared_batch import DeclaredBatch, read_batch
from .declared_targets import STRESS, GradientTensor, PerAtom, PerStructure
from .places import signed_path

__all__ = [
    "STRESS",
    "Declaration",
    "DeclaredBatch",
    "GradientTensor",
    "PerAtom",
    "PerStructure",
    "describe_address",
    "read_batch",
    "signed_path",
]
