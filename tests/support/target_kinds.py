"""Random targets of every kind that metatrain supports."""

from collections.abc import Callable

import torch
from builders import (
    PAIR_NAMES,
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    rank_two,
    single,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

BATCHES = [
    [system(8), system(1, 8, 1), system(6, 8), system(6, 6, 8)],
    [system(6, 1, 1, 8), system(1, 1), system(6, 6, 1, 1, 8, 8)],
    [system(6, 1, 1, 1, 1), system(8, 8)],
]

Maker = Callable[[list[System], Callable[..., torch.Tensor]], TensorMap]


def random_numbers(seed: int) -> Callable[..., torch.Tensor]:
    """Normally distributed numbers around 1.5, so that no mean vanishes."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return 1.5 + torch.randn(*shape, generator=generator, dtype=torch.float64)

    return numbers


def structures(systems: list[System]) -> Labels:
    return labels("system", range(len(systems)))


def atoms(systems: list[System]) -> Labels:
    return atom_samples(*(len(one) for one in systems))


def atoms_of_type(systems: list[System], atomic_type: int) -> list[list[int]]:
    return [
        [position, atom]
        for position, one in enumerate(systems)
        for atom, found in enumerate(one.types.tolist())
        if found == atomic_type
    ]


def rank_2(samples: Labels, numbers: Callable[..., torch.Tensor]) -> TensorMap:
    """Blocks with two angular momenta, in which parities and numbers of properties differ."""
    keys = [(0, 0, 1, 1), (1, 1, 1, 1), (1, 2, 1, -1)]
    values = {
        key: numbers(len(samples), 2 * key[0] + 1, 2 * key[1] + 1, n_properties)
        for n_properties, key in enumerate(keys, start=1)
    }
    return rank_two(values, samples)


def energy_with_gradients(systems: list[System], numbers: Callable[..., torch.Tensor]) -> TensorMap:
    return structure_target(
        numbers(len(systems)).tolist(),
        gradient={
            "positions": [numbers(len(one), 3).tolist() for one in systems],
            "strain": numbers(len(systems), 3, 3),
        },
    )


def irreps(samples: Labels, numbers: Callable[..., torch.Tensor]) -> TensorMap:
    n = len(samples)
    return spherical(
        {
            (0, 1): numbers(n, 1, 3),
            (0, -1): numbers(n, 1, 1),
            (1, 1): 7.0 * numbers(n, 3, 2),
            (2, -1): 0.1 * numbers(n, 5, 1),
        },
        samples,
    )


def orbitals(systems: list[System], numbers: Callable[..., torch.Tensor]) -> TensorMap:
    samples = {z: atoms_of_type(systems, z) for z in (1, 6, 8)}
    shapes = {(0, 1): 1, (0, 6): 2, (1, 6): 1, (0, 8): 3, (1, 8): 2}
    return atomic_basis(
        {key: numbers(len(samples[key[1]]), 2 * key[0] + 1, n) for key, n in shapes.items()},
        samples,
    )


def pairs(systems: list[System], numbers: Callable[..., torch.Tensor]) -> TensorMap:
    rows = [
        [position, i, j, 0, 0, 0]
        for position, one in enumerate(systems)
        for i in range(len(one))
        for j in range(len(one))
        if i != j
    ]
    return single(block(numbers(len(rows), 2), labels(PAIR_NAMES, rows)))


KINDS: dict[str, Maker] = {
    "energy": lambda s, r: structure_target(r(len(s)).tolist()),
    "energy, positions and strain": energy_with_gradients,
    "dipole": lambda s, r: structure_target(r(len(s), 3, 1), components=cartesian()),
    "stress": lambda s, r: structure_target(r(len(s), 3, 3, 1), components=cartesian(2)),
    "properties of structures": lambda s, r: structure_target(r(len(s), 4)),
    "irreps of structures": lambda s, r: irreps(structures(s), r),
    "rank 2 of structures": lambda s, r: rank_2(structures(s), r),
    "charges": lambda s, r: atom_target(r(len(atoms(s))), atoms(s)),
    "forces": lambda s, r: atom_target(r(len(atoms(s)), 3, 1), atoms(s), components=cartesian()),
    "tensors of atoms": lambda s, r: atom_target(
        r(len(atoms(s)), 3, 3, 2), atoms(s), components=cartesian(2)
    ),
    "properties of atoms": lambda s, r: atom_target(r(len(atoms(s)), 4), atoms(s)),
    "irreps of atoms": lambda s, r: irreps(atoms(s), r),
    "rank 2 of atoms": lambda s, r: rank_2(atoms(s), r),
    "atomic basis": orbitals,
    "atom pairs": pairs,
}


def selection(values: torch.Tensor, seed: int) -> torch.Tensor:
    """A fifth of the values; in these data the others cover every property of every type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(values.shape, generator=generator) < 0.2


def with_nan(tensor: TensorMap) -> TensorMap:
    """A copy with missing values."""
    changed = tensor.copy()
    for seed, one in enumerate(changed.blocks()):
        one.values[selection(one.values, seed)] = torch.nan
    return changed


def mask_out(tensor: TensorMap) -> TensorMap:
    """A mask that excludes some values."""
    return TensorMap(
        tensor.keys,
        [
            TensorBlock(~selection(one.values, seed), one.samples, one.components, one.properties)
            for seed, one in enumerate(tensor.blocks())
        ],
    )
