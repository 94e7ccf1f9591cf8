"""Other projects: scales and baselines fitted by metatrain, and settings of other codes.

Imports ``scaling`` and the rooms above it; none of the other projects has to be installed.
"""

from .metatrain import read_metatrain
from .metatrain_checkpoint import Source
from .other_codes import settings_for

__all__ = [
    "Source",
    "read_metatrain",
    "settings_for",
]
