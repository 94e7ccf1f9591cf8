"""What is left of a fit and of a conversion without everything that a user needs beside them.

One TorchScript call reads the types of the atoms, compares rows and layouts once, and computes. It
has no settings, no baseline, no missing values, no unseen types, no gradients, no names in errors;
nothing is kept for the next batch. What it takes is about what TorchScript takes.
"""

from collections.abc import Callable
from typing import Any

import metatensor.torch
import torch
from metatensor.torch import TensorBlock, TensorMap
from metatomic.torch import System
from torch import Tensor
from workloads import Workload, without_rows

from lightning_scaler import ScaleAccumulator
from lightning_scaler.scaling.target_scales import TargetScales


def _types_and_counts(systems: list[System]) -> tuple[Tensor, Tensor]:
    types: list[Tensor] = []
    counts: list[int] = []
    for system in systems:
        types.append(system.types)
        counts.append(types[-1].size(0))
    return torch.cat(types).to(torch.int64), torch.tensor(counts)


def _compare(tensors: list[TensorMap], likes: list[TensorMap], counts: Tensor, n: int) -> None:
    """Refuse other layouts, and rows that are not those of all systems or atoms in order."""
    of_systems = torch.arange(len(counts), dtype=torch.int32)
    of_atoms = torch.empty([n, 2], dtype=torch.int32)
    of_atoms[:, 0] = of_systems.repeat_interleave(counts, output_size=n)
    first = (counts.cumsum(0) - counts).to(torch.int32).repeat_interleave(counts, output_size=n)
    torch.sub(torch.arange(n, dtype=torch.int32), first, out=of_atoms[:, 1])
    known = of_systems
    for i, tensor in enumerate(tensors):
        assert tensor.keys == likes[i].keys
        for block, like in zip(tensor.blocks(), likes[i].blocks()):  # noqa: B905
            assert block.properties == like.properties
            for one, other in zip(block.components, like.components):  # noqa: B905
                assert one == other
            rows = block.samples.values
            if not rows.is_set_to(known):
                if rows.size(1) == 1:
                    assert torch.equal(rows[:, 0], of_systems)
                else:
                    assert torch.equal(rows, of_atoms)
                known = rows


@torch.jit.script
def fit(
    systems: list[System], tensors: list[TensorMap], likes: list[TensorMap], n_types: int
) -> list[Tensor]:
    """Numbers of atoms of each type, and sums of squares ``(n_types or 1, n_properties)``."""
    types, counts = _types_and_counts(systems)
    _compare(tensors, likes, counts, types.size(0))
    sums = [torch.bincount(types, minlength=n_types)]
    for tensor in tensors:
        for block in tensor.blocks():
            values = block.values
            squares = values.square().reshape([values.size(0), -1, values.size(-1)]).sum(1)
            if len(block.samples.names) == 2:
                zeros = torch.zeros([n_types, squares.size(1)], dtype=squares.dtype)
                sums.append(zeros.index_add_(0, types, squares))
            else:
                sums.append((squares / counts.square()[:, None]).sum(0, keepdim=True))
    return sums


@torch.jit.script
def apply(
    systems: list[System], tensors: list[TensorMap], likes: list[TensorMap], scales: list[Tensor]
) -> list[TensorMap]:
    """Values divided by the scales of their targets, each by type or a single one."""
    types, counts = _types_and_counts(systems)
    _compare(tensors, likes, counts, types.size(0))
    scaled: list[TensorMap] = []
    for i, tensor in enumerate(tensors):
        of_rows = scales[i].index_select(0, types) if scales[i].size(0) > 1 else scales[i]
        blocks: list[TensorBlock] = []
        for block in tensor.blocks():
            values = block.values
            values = values / of_rows.reshape([-1] + [1] * (values.dim() - 1))
            blocks.append(TensorBlock(values, block.samples, block.components, block.properties))
        scaled.append(TensorMap(tensor.keys, blocks))
    return scaled


def bare(work: Workload, n_batches: int) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Fit and conversion to time, which give what the package gives; none for missing values.

    Args:
        work: a batch.
        n_batches: how many times it is fitted in one call to time.
    """
    tensors = list(work.targets.values())
    blocks = [block for tensor in tensors for block in tensor.blocks()]
    if work.masks or any(block.values.isnan().any() for block in blocks):
        return {}
    accumulator = ScaleAccumulator()
    accumulator.update(work.systems, work.targets)
    scaler = accumulator.compute()
    targets = [scaler.targets[name] for name in work.targets]
    likes = [without_rows(tensor) for tensor in tensors]
    n_types = 1 + max(int(system.types.max()) for system in work.systems)
    scales = [_by_type(of_target, n_types) for of_target in targets]

    def fit_alone() -> list[list[Tensor]]:
        with torch.jit.optimized_execution(False):
            return [fit(work.systems, tensors, likes, n_types) for _ in range(n_batches)]

    def apply_alone() -> list[TensorMap]:
        with torch.jit.optimized_execution(False):
            return apply(work.systems, tensors, likes, scales)

    converted = scaler.convert(work.systems, work.targets).values()
    for one, other in zip(apply_alone(), converted, strict=True):
        assert metatensor.torch.allclose(one, other)
    atoms, *sums = fit_alone()[0]
    fitted = [block for tensor in scaler.scales.values() for block in tensor.blocks()]
    for of_block, block, scale in zip(sums, blocks, fitted, strict=True):
        types = scale.samples.values[:, 0].long() if len(of_block) > 1 else torch.tensor([0])
        rows = atoms[types] if len(of_block) > 1 else torch.tensor([len(block.samples)])
        entries = rows[:, None] * block.values[0, ..., 0].numel()
        torch.testing.assert_close((of_block[types] / entries).sqrt(), scale.values)
    return {"fit bare": lambda: fit_alone, "apply bare": lambda: apply_alone}


def _by_type(scales: TargetScales, n_types: int) -> Tensor:
    """The per-target scales of all types, or the only one."""
    if scales.layout.sample_kind != "atom":
        return scales.per_target[:1]
    by_type = torch.full((n_types,), torch.nan, dtype=torch.float64)
    by_type[scales.types] = scales.per_target[: len(scales.types)]
    return by_type
