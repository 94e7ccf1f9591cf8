"""The embedded example: a real dataset, its generator, a datamodule and a model.

Imports ``training`` and the rooms above it; needs the extra ``molecules``.
"""

from importlib.util import find_spec

for _package in ("e3nn", "numpy", "vesin"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"No module named '{_package}'; the embedded molecules need the extra 'molecules': "
            "pip install 'lightning-scaler[molecules]'",
            name=_package,
        )
