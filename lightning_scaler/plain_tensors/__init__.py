"""Plain tensors: declared targets, found in a user's own batches and in the output of a network.

Finds the atoms of such a batch, turns its tensors into TensorMaps and puts converted ones back into
copies. Imports ``batches``, ``tensors`` and ``settings``.
"""

from .addresses import describe_address
from .declaration import Declaration
from .declared_batch import DeclaredBatch
from .declared_targets import STRESS, GradientTensor, PerAtom, PerStructure
from .joined_batches import declared_batch, read_batch
from .places import signed_path

__all__ = [
    "STRESS",
    "Declaration",
    "DeclaredBatch",
    "GradientTensor",
    "PerAtom",
    "PerStructure",
    "declared_batch",
    "describe_address",
    "read_batch",
    "signed_path",
]
