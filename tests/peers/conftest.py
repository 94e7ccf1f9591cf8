"""Runs of other projects by their own commands; collected only where one is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch.utils.data.dataloader

collect_ignore_glob = ["conftest.py", "on_path/*"]
if not any(map(find_spec, ("nequip", "schnetpack", "torchmdnet"))):
    collect_ignore_glob.append("*.py")

sys.path.append(str(Path(__file__).parent / "on_path"))
if find_spec("schnetpack"):  # as in on_path/sitecustomize.py
    torch.utils.data.dataloader.T_co = TypeVar("T_co", covariant=True)
