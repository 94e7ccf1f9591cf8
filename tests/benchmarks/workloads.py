"""The data that are timed: metatomic systems and their targets, float64."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

# The first calls of a TorchScript function profile and optimise it.
WARM_UP = 4


class Workload(NamedTuple):
    """One batch, and whether it is large enough that memory traffic should rule."""

    systems: list[System]
    targets: dict[str, TensorMap]
    masks: dict[str, TensorMap]
    large: bool


def systems_of(n_systems: int, n_atoms: int, n_types: int, seed: int = 0) -> list[System]:
    """Systems of equal size, their types drawn from 1 to ``n_types``."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(1, n_types + 1, (n_systems, n_atoms), generator=generator)
    return [
        System(
            of_one.to(torch.int32),
            torch.zeros(n_atoms, 3, dtype=torch.float64),
            torch.zeros(3, 3, dtype=torch.float64),
            torch.tensor([False] * 3),
        )
        for of_one in types
    ]


def _labels(names: str | Sequence[str], values: torch.Tensor) -> Labels:
    names = [names] if isinstance(names, str) else list(names)
    return Labels(names, values.reshape(-1, len(names)))


def _structures(systems: list[System]) -> Labels:
    return _labels("system", torch.arange(len(systems)))


def _atoms(systems: list[System]) -> Labels:
    counts = torch.tensor([len(system) for system in systems])
    owner = torch.arange(len(systems)).repeat_interleave(counts)
    atom = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return _labels(["system", "atom"], torch.stack([owner, atom], 1))


def _block(samples: Labels, components: list[Labels], n_properties: int) -> TensorBlock:
    shape = (len(samples), *(len(labels) for labels in components), n_properties)
    generator = torch.Generator().manual_seed(len(samples))
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    properties = _labels("property", torch.arange(n_properties))
    return TensorBlock(values, samples, components, properties)


def _cartesian(samples: Labels, axes: Sequence[str]) -> TensorMap:
    components = [_labels(axis, torch.arange(3)) for axis in axes]
    return TensorMap(_labels("_", torch.tensor([0])), [_block(samples, components, 1)])


def _spherical(samples: Labels, angular: Sequence[int], n_properties: int) -> TensorMap:
    blocks = [
        _block(samples, [_labels("o3_mu", torch.arange(-o3, o3 + 1))], n_properties)
        for o3 in angular
    ]
    keys = torch.tensor([[o3_lambda, 1] for o3_lambda in angular])
    return TensorMap(_labels(["o3_lambda", "o3_sigma"], keys), blocks)


TARGETS: dict[str, Callable[[list[System]], TensorMap]] = {
    "energy": lambda systems: _cartesian(_structures(systems), []),
    "forces": lambda systems: _cartesian(_atoms(systems), ["xyz"]),
    "dipole": lambda systems: _cartesian(_structures(systems), ["xyz"]),
    "polarizability": lambda systems: _spherical(_structures(systems), (0, 2), 1),
    "charges": lambda systems: _cartesian(_atoms(systems), []),
    "density": lambda systems: _spherical(_atoms(systems), range(5), 8),
}


def _mapped(tensor: TensorMap, function: Callable[[torch.Tensor], torch.Tensor]) -> TensorMap:
    blocks = [
        TensorBlock(function(block.values), block.samples, block.components, block.properties)
        for block in tensor.blocks()
    ]
    return TensorMap(tensor.keys, blocks)


def without_rows(tensor: TensorMap) -> TensorMap:
    """The same blocks without any sample."""
    blocks = [
        TensorBlock(
            block.values[:0],
            Labels(block.samples.names, block.samples.values[:0]),
            block.components,
            block.properties,
        )
        for block in tensor.blocks()
    ]
    return TensorMap(tensor.keys, blocks)


def _lost(values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(values.shape, generator=generator) < 0.3


def workload(
    names: Sequence[str],
    n_systems: int,
    n_atoms: int,
    n_types: int,
    missing: str = "",
    large: bool = False,
) -> Workload:
    """A batch of some targets; 30 % of the values may be missing, by ``"nan"`` or ``"mask"``."""
    systems = systems_of(n_systems, n_atoms, n_types)
    targets, masks = {name: TARGETS[name](systems) for name in names}, {}
    if missing == "nan":
        targets = {
            name: _mapped(tensor, lambda v: torch.where(_lost(v), torch.nan, v))
            for name, tensor in targets.items()
        }
    elif missing == "mask":
        masks = {name: _mapped(tensor, lambda v: ~_lost(v)) for name, tensor in targets.items()}
    return Workload(systems, targets, masks, large)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "training-batch": lambda: workload(list(TARGETS), 32, 20, 10),
    "training-batch-256": lambda: workload(list(TARGETS), 256, 50, 10),
    "batch-forces": lambda: workload(["forces"], 32, 20, 10),
    "batch-density": lambda: workload(["density"], 32, 20, 10),
    "batch-polarizability": lambda: workload(["polarizability"], 32, 20, 10),
    "forces-10": lambda: workload(["forces"], 2000, 100, 10, large=True),
    "forces-89": lambda: workload(["forces"], 2000, 100, 89, large=True),
    "density-10": lambda: workload(["density"], 200, 100, 10, large=True),
    "density-89": lambda: workload(["density"], 200, 100, 89, large=True),
    "nan (values)": lambda: workload(["density"], 200, 100, 10, "nan", large=True),
    "nan (mask)": lambda: workload(["density"], 200, 100, 10, "mask", large=True),
}
