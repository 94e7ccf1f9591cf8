"""The embedded example: a real dataset, its generator, a datamodule and a model.

Imports ``training`` and the rooms above it; needs the extra ``molecules``.
"""

from ..settings import check_installed

check_installed("the embedded molecules", "molecules", ("e3nn", "numpy", "vesin"))
