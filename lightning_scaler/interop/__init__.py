"""Files of other projects: scales and baselines fitted by metatrain.

Imports ``scaling`` and the rooms below it; needs no other project installed.
"""

from .metatrain import read_metatrain
from .metatrain_checkpoint import Source

__all__ = [
    "Source",
    "read_metatrain",
]
