"""Files of other projects: scales and baselines fitted by metatrain.

Imports ``scaling`` and the rooms above it; none of the other projects has to be installed.
"""

from .metatrain import read_metatrain
from .metatrain_checkpoint import Source

__all__ = [
    "Source",
    "read_metatrain",
]
