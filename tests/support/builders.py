"""Small systems and TensorMaps from plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

from lightning_scaler import ScaleAccumulator, Scaler
from lightning_scaler.tensors import TargetLayout

PAIR_NAMES = ["system", "first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]


def system(*types: int, positions: Any = None) -> System:
    """A molecule of these types in an open box, at given or at distinct positions."""
    n_atoms = len(types)
    if positions is None:
        positions = [[1.1 * atom, 0.3 * atom * atom, -0.2 * atom] for atom in range(n_atoms)]
    return System(
        types=torch.tensor(types, dtype=torch.int32),
        positions=torch.as_tensor(positions, dtype=torch.float64).reshape(n_atoms, 3),
        cell=torch.zeros(3, 3, dtype=torch.float64),
        pbc=torch.tensor([False, False, False]),
    )


def labels(names: str | Sequence[str], values: Any) -> Labels:
    """Labels from nested lists; a flat list is one column."""
    names = [names] if isinstance(names, str) else list(names)
    return Labels(names, torch.as_tensor(values, dtype=torch.int64).reshape(-1, len(names)))


def block(
    values: Any,
    samples: Labels,
    components: Sequence[Labels] = (),
    property_name: str = "property",
    dtype: torch.dtype = torch.float64,
) -> TensorBlock:
    """A block of values ``(n_samples, *components, n_properties)``.

    Where the last axis is left out, there is one property.
    """
    values = torch.as_tensor(values, dtype=dtype)
    if values.dim() < len(components) + 2:
        values = values.unsqueeze(-1)
    properties = labels(property_name, range(values.shape[-1]))
    return TensorBlock(values, samples, list(components), properties)


def single(of_block: TensorBlock) -> TensorMap:
    """A TensorMap of one block under the key ``_``."""
    return TensorMap(labels("_", [0]), [of_block])


def cartesian(n_axes: int = 1) -> list[Labels]:
    """Cartesian components: none, a vector or a matrix."""
    names = ["xyz"] if n_axes == 1 else [f"xyz_{axis + 1}" for axis in range(n_axes)]
    return [labels(name, [0, 1, 2]) for name in names]


def structure_target(
    values: Any,
    systems: Sequence[int] | None = None,
    name: str = "energy",
    gradient: Mapping[str, Any] | None = None,
    components: Sequence[Labels] = (),
    dtype: torch.dtype = torch.float64,
    gradient_systems: bool = False,
) -> TensorMap:
    """A per-structure target of one block.

    Args:
        values: one number per structure, or ``(n_structures, *components, n_properties)``.
        systems: the ``system`` labels; 0, 1, 2, … unless given.
        name: name of the properties.
        gradient: gradients by parameter: ``"positions"``, for every structure a nested list
            ``(n_atoms, 3)``; or ``"strain"``, ``(n_structures, 3, 3)``.
        components: components of the values.
        dtype: dtype of values and gradients.
        gradient_systems: whether the samples of ``"positions"`` are ``[sample, system, atom]``,
            otherwise ``[sample, atom]``.
    """
    systems = range(len(values)) if systems is None else systems
    result = block(values, labels("system", list(systems)), components, name, dtype)
    for parameter, numbers in (gradient or {}).items():
        if parameter == "positions":
            rows = [[row, atom] for row, one in enumerate(numbers) for atom in range(len(one))]
            samples = labels(["sample", "atom"], rows)
            if gradient_systems:
                rows = [[row, list(systems)[row], atom] for row, atom in rows]
                samples = labels(["sample", "system", "atom"], rows)
            flat, axes = [vector for one in numbers for vector in one], cartesian(1)
        else:
            samples, flat, axes = labels("sample", range(len(numbers))), numbers, cartesian(2)
        of_parameter = torch.as_tensor(flat, dtype=dtype).unsqueeze(-1)
        result.add_gradient(parameter, TensorBlock(of_parameter, samples, axes, result.properties))
    return single(result)


def with_nested_gradient(values: Any) -> TensorMap:
    """A per-structure target whose gradient ``"strain"`` has a gradient ``"positions"``."""
    result = block(values, labels("system", range(len(values))), property_name="energy")
    each = labels("sample", range(len(values)))
    strain = block(torch.ones(len(values), 3, 3, 1), each, cartesian(2), "energy")
    inner = TensorBlock(
        torch.ones(1, 3, 3, 3, 1, dtype=torch.float64),
        labels(["sample", "atom"], [[0, 0]]),
        [labels("xyz", [0, 1, 2]), *cartesian(2)],
        strain.properties,
    )
    strain.add_gradient("positions", inner)
    result.add_gradient("strain", strain)
    return single(result)


def atom_samples(*counts: int) -> Labels:
    """Samples of a per-atom target: all atoms of systems of these sizes, in order."""
    rows = [[i, atom] for i, count in enumerate(counts) for atom in range(count)]
    return labels(["system", "atom"], rows)


def atom_target(
    values: Any,
    samples: Any,
    name: str = "charge",
    components: Sequence[Labels] = (),
    dtype: torch.dtype = torch.float64,
) -> TensorMap:
    """A per-atom target of one block.

    Args:
        values: one number per atom, or ``(n_atoms, *components, n_properties)``.
        samples: pairs of ``system`` and ``atom``, or Labels (see :func:`atom_samples`).
        name: name of the properties.
        components: components of the values.
        dtype: dtype of the values.
    """
    rows = (
        samples if isinstance(samples, torch.ScriptObject) else labels(["system", "atom"], samples)
    )
    return single(block(values, rows, components, name, dtype))


def forces(values: Any, *counts: int, dtype: torch.dtype = torch.float64) -> TensorMap:
    """Forces ``(n_atoms, 3)`` on all atoms of systems of these sizes."""
    return atom_target(values, atom_samples(*counts), "forces", cartesian(), dtype)


def spherical(
    values: Mapping[Any, Any],
    samples: Labels,
    name: str = "property",
    dtype: torch.dtype = torch.float64,
) -> TensorMap:
    """A spherical target.

    Args:
        values: ``(n_samples, 2λ+1, n_properties)`` by λ, or by ``(λ, σ)``.
        samples: samples of every block.
        name: name of the properties.
        dtype: dtype of the values.
    """
    keys = [key if isinstance(key, tuple) else (key, 1) for key in values]
    blocks = [
        block(numbers, samples, [labels("o3_mu", range(-key[0], key[0] + 1))], name, dtype)
        for key, numbers in zip(keys, values.values(), strict=True)
    ]
    return TensorMap(labels(["o3_lambda", "o3_sigma"], keys), blocks)


def rank_two(values: Mapping[tuple[int, int, int, int], Any], samples: Labels) -> TensorMap:
    """A spherical target of rank 2: values by ``(λ1, λ2, σ1, σ2)``, with these samples."""
    blocks = []
    for (first, second, *_), numbers in values.items():
        degrees = {"o3_mu_1": first, "o3_mu_2": second}
        axes = [labels(name, range(-of, of + 1)) for name, of in degrees.items()]
        blocks.append(block(numbers, samples, axes))
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    return TensorMap(labels(names, list(values)), blocks)


def atomic_basis(
    values: Mapping[tuple[int, int], Any],
    samples: Mapping[int, Any],
    name: str = "n",
    dtype: torch.dtype = torch.float64,
) -> TensorMap:
    """A per-atom target in which each block has the atoms of one type.

    Args:
        values: ``(n_atoms_of_type, 2λ+1, n_properties)`` by ``(λ, atomic type)``.
        samples: pairs of ``system`` and ``atom`` by atomic type.
        name: name of the properties.
        dtype: dtype of the values.
    """
    blocks = [
        block(
            numbers,
            labels(["system", "atom"], samples[atomic_type]),
            [labels("o3_mu", range(-o3_lambda, o3_lambda + 1))],
            name,
            dtype,
        )
        for (o3_lambda, atomic_type), numbers in values.items()
    ]
    keys = [[o3_lambda, 1, atomic_type] for o3_lambda, atomic_type in values]
    return TensorMap(labels(["o3_lambda", "o3_sigma", "atom_type"], keys), blocks)


def layout_of(tensor: TensorMap, name: str = "t") -> TargetLayout:
    """The layout of a target."""
    return TargetLayout.of(name, tensor)


def pair_target(values: Any, rows: Any, name: str = "hopping") -> TensorMap:
    """An atom-pair target of one block; rows of six integers each."""
    return single(block(values, labels(PAIR_NAMES, rows), property_name=name))


def mask_of(target: TensorMap, keep: Sequence[Any]) -> TensorMap:
    """A mask for the target; ``keep`` has nested booleans for each block."""
    blocks = [
        TensorBlock(
            torch.as_tensor(flags, dtype=torch.bool).reshape(of.values.shape),
            of.samples,
            of.components,
            of.properties,
        )
        for of, flags in zip(target.blocks(), keep, strict=True)
    ]
    return TensorMap(target.keys, blocks)


def water_family() -> list[System]:
    """O, H2O and H4O2, each with its atoms in a different order."""
    return [system(8), system(1, 8, 1), system(1, 1, 8, 1, 8, 1)]


def fit(
    systems: Sequence[System],
    targets: Mapping[str, TensorMap],
    masks: Mapping[str, TensorMap] | None = None,
    fixed_scales: Mapping[str, Any] | None = None,
    unseen_types: Any = "error",
    enabled: bool = True,
    **settings: Any,
) -> Scaler:
    """The Scaler of a single batch, given settings of the accumulator."""
    accumulator = ScaleAccumulator(**settings)
    accumulator.update(systems, targets, masks)
    return accumulator.compute(fixed_scales, unseen_types, enabled)


def scale(scaler: Scaler, name: str, which: str = "scales", block: int = 0) -> list[list[float]]:
    """Scales of a block, one row per type, as nested lists."""
    numbers: list[list[float]] = getattr(scaler, which)[name].block_by_id(block).values.tolist()
    return numbers


class Springs(torch.nn.Module):
    """Energies k Σ r² with their gradient 2 k r; charges, a tenth of the type of each atom."""

    def __init__(self, k=0.5, names=("energy", "charges"), dtype=torch.float64):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(k, dtype=dtype))
        self.names = names
        self.dtypes = set()

    def forward(self, systems, names):
        self.dtypes |= {s.positions.dtype for s in systems}
        energies = torch.stack([self.k * s.positions.square().sum() for s in systems])
        given = structure_target(torch.zeros(len(systems)), dtype=self.k.dtype).block()
        energy = TensorBlock(energies[:, None], given.samples, [], given.properties)
        rows = [[i, i, a] for i, s in enumerate(systems) for a in range(len(s))]
        slopes = torch.cat([2.0 * self.k * s.positions for s in systems])
        energy.add_gradient(
            "positions",
            TensorBlock(
                slopes[..., None],
                labels(["sample", "system", "atom"], rows),
                cartesian(),
                energy.properties,
            ),
        )
        types = torch.cat([s.types for s in systems]).to(self.k.dtype)
        charges = atom_target(0.1 * types, atom_samples(*map(len, systems)), dtype=self.k.dtype)
        both = {"energy": single(energy), "charges": charges}
        return {name: both[name] for name in self.names}


def four_targets(scale: float = 1.0) -> tuple[list[Any], dict[str, TensorMap]]:
    """Four systems, and targets of four kinds; ``scale`` multiplies the energies."""
    rng = np.random.default_rng(0)
    systems = [system(8), system(1, 8, 1), system(6, 8), system(1, 6, 1)]
    targets = {
        "energy": structure_target((scale * np.array([-75.0, -76.4, -113.3, -39.1])).tolist()),
        "alpha": spherical(
            {0: rng.normal(size=(4, 1, 2)) + 4, 2: rng.normal(size=(4, 5, 1))},
            labels("system", [0, 1, 2, 3]),
        ),
        "charges": atom_target(rng.normal(size=(9, 2)), atom_samples(1, 3, 2, 3)),
        "basis": atomic_basis(
            {(1, 8): rng.normal(size=(3, 3, 2)), (1, 1): rng.normal(size=(4, 3, 1))},
            {8: [[0, 0], [1, 1], [2, 1]], 1: [[1, 0], [1, 2], [3, 0], [3, 2]]},
        ),
    }
    return systems, targets


def single_value_statistics(
    value: float, accumulator: ScaleAccumulator | None = None, **options: Any
) -> ScaleAccumulator:
    """Statistics of one energy of an oxygen atom."""
    accumulator = accumulator or ScaleAccumulator(**options)
    accumulator.update([system(8)], {"energy": structure_target([value])})
    return accumulator
