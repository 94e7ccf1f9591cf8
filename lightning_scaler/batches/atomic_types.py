"""ScaleKind atomic types there are, and where each is among others."""

import torch
from torch import Tensor

from ..tensors import scripted

# Types below are found in tables, which is several times faster, those above by sorting. (It is
# given as a default of arguments, since TorchScript knows no variables of a module.)
TABLED = 4096

# So many atoms are not worth a table.
FEW = 1024


def occurring(types: Tensor, tabled: int = TABLED) -> tuple[Tensor, int]:
    """The types that occur, sorted, ``(n_kinds,)`` int64, and the smallest; none if negative."""
    if types.numel() == 0 or types.is_meta:
        return types[:0], 0
    smallest, largest = torch.aminmax(types)
    if int(smallest) < 0:
        return types[:0], int(smallest)
    if int(largest) < tabled:
        return torch.bincount(types).nonzero()[:, 0], int(smallest)
    return torch.unique(types), int(smallest)


def index_among(types: Tensor, kinds: Tensor) -> Tensor:
    """Index of every type among the sorted ``kinds``, which hold all that occur, int64."""
    return torch.searchsorted(kinds, types) if types.numel() < FEW else _tabled(types, kinds)


@scripted
def _tabled(types: Tensor, kinds: Tensor, tabled: int = TABLED) -> Tensor:
    largest = int(kinds[-1]) if kinds.numel() > 0 else 0
    if largest >= tabled:
        return torch.searchsorted(kinds, types)
    table = torch.zeros([largest + 1], dtype=torch.int64, device=types.device)
    table[kinds] = torch.arange(kinds.numel(), device=types.device)
    return table.index_select(0, types)


def find_types(types: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Index of every type in the sorted tensor ``among``, and whether it is there at all."""
    if types.shape == among.shape and types.device == among.device and torch.equal(types, among):
        index = torch.arange(len(types), device=types.device)
        return index, torch.ones_like(index, dtype=torch.bool)
    if among.numel() == 0:
        return torch.zeros_like(types), torch.zeros_like(types, dtype=torch.bool)
    index = torch.searchsorted(among, types).clamp(max=among.numel() - 1)
    return index, among[index] == types
