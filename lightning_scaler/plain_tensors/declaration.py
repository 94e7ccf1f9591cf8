"""All declared targets of a module, and where its batches hold types and structures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from ..settings import did_you_mean, warn_on_rank_zero
from ..tensors import InvalidStateError, TargetLayout
from .addresses import Path, describe_address, parse_address
from .declared_targets import STRESS, GradientTensor, PerStructure, parse_target
from .places import Place, Target, places_in_batch, places_in_output
from .tensormap_building import layouts_of

STRUCTURE_ADDRESSES = ("types", "structure", "n_atoms")


@dataclass(frozen=True)
class Declaration:
    """Targets that are plain tensors, and the addresses of what says which atoms there are.

    Attributes:
        targets: declared targets by name.
        batch: addresses in the batch, where they are not recognised: ``types`` of all atoms,
            ``structure`` (the index of the structure of each atom, or the number of atoms of each
            structure) and ``n_atoms`` (the latter alone).
    """

    targets: Mapping[str, Target]
    batch: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def parse(cls, targets: Mapping[str, Any], batch: Mapping[str, Any] | None) -> "Declaration":
        """Check a declaration from Python or YAML.

        Args:
            targets: declared targets, or dicts of their arguments, by name.
            batch: addresses, as in the attribute.

        Raises:
            TypeError, ValueError: naming the target and the argument.

        Example:
            >>> Declaration.parse({"charges": {"per": "atom"}}, {"types": "z"}).batch
            {'types': ('z',)}
        """
        if not targets:
            raise ValueError("targets: expected at least one declared target, got an empty mapping")
        parsed = {str(name): parse_target(str(name), target) for name, target in targets.items()}
        if batch is not None and not isinstance(batch, Mapping):
            raise TypeError(f"batch: expected a mapping such as {{'types': 'z'}}, got {batch!r}")
        for name in batch or {}:
            if name not in STRUCTURE_ADDRESSES:
                raise ValueError(
                    f"batch: unknown name '{name}'; {did_you_mean(str(name), STRUCTURE_ADDRESSES)}"
                )
        addresses = {
            name: parse_address(f"batch, '{name}'", address)
            for name, address in (batch or {}).items()
        }
        declaration = cls(parsed, addresses)
        _check_addresses(declaration)
        return declaration

    @cached_property
    def in_batch(self) -> dict[str, list[Place]]:
        """For each target, the places of its values and gradients in a batch."""
        return places_in_batch(self.targets)

    @cached_property
    def in_output(self) -> dict[str, list[Place]]:
        """For each target, the places of its values and gradients in the output of a network."""
        return places_in_output(self.targets)

    @cached_property
    def layouts(self) -> dict[str, TargetLayout]:
        """For each target, its layout in a batch."""
        return layouts_of(self.in_batch)

    @cached_property
    def with_all_gradients(self) -> frozenset[str]:
        """Names of the targets whose predictions have the same gradients as in a batch."""
        in_batch, in_output = self.in_batch, self.in_output
        return frozenset(n for n in in_batch if len(in_batch[n]) == len(in_output[n]))

    @property
    def intensive_targets(self) -> list[str]:
        """Names of the per-structure targets that are not divided by the number of atoms."""
        return [
            name
            for name, target in self.targets.items()
            if isinstance(target, PerStructure) and target.intensive
        ]

    def warn_of_stresses_without_volume(self) -> None:
        """Warn of gradients with respect to strain that are named like a stress."""
        strains = (p for of in self.in_batch.values() for p in of if p.parameter == "strain")
        for place in strains:
            gradient = cast(PerStructure, self.targets[place.target]).gradients["strain"]
            if cast(GradientTensor, gradient).volume is not None:
                continue
            path = describe_address(place.paths[0])
            if "stress" in path.lower():
                warn_on_rank_zero(
                    f"target '{place.target}': the gradient 'strain' at {path} is declared without "
                    "a volume, and a stress is a gradient divided by it; its errors would be "
                    "divided by the numbers of atoms, and an additive module would subtract a "
                    "virial; give "
                    f"the address of the volumes or cells, {STRESS}, or, for a virial under this "
                    "name, 'volume': False",
                    stacklevel=4,
                )

    @property
    def units(self) -> dict[str, str]:
        """Units of the values by target name, where they are declared."""
        return {name: target.unit for name, target in self.targets.items() if target.unit}

    @property
    def without_units(self) -> "Declaration":
        """The same declaration without units, which change no number."""
        targets = {name: replace(target, unit=None) for name, target in self.targets.items()}
        return replace(self, targets=targets)

    @property
    def gradient_terms(self) -> dict[str, str]:
        """The term of the loss of each gradient, by the name of its tensor.

        Example:
            >>> energy = PerStructure(gradients={"positions": "-forces"})
            >>> Declaration({"energy": energy}).gradient_terms
            {'forces': 'energy/positions'}
        """
        return {
            str(place.paths[0][-1]): f"{name}/{place.parameter}"
            for name, (_, *gradients) in self.in_batch.items()
            for place in gradients
        }

    def union(self, other: "Declaration | None") -> "Declaration":
        """The targets and addresses of both; where both have one, that of the other."""
        if other is None:
            return self
        return Declaration({**self.targets, **other.targets}, {**self.batch, **other.batch})

    def state(self) -> dict[str, Any]:
        """The declaration as plain values, which :meth:`parse` takes."""
        return {
            "targets": {name: target.arguments() for name, target in self.targets.items()},
            "batch": {
                name: path[0] if len(path) == 1 else list(path) for name, path in self.batch.items()
            },
        }

    @classmethod
    def from_state(cls, state: Any) -> "Declaration":
        """The inverse of :meth:`state`.

        Raises:
            InvalidStateError: for a state that is not that of a declaration.
        """
        if not isinstance(state, Mapping) or state.keys() != {"targets", "batch"}:
            raise InvalidStateError(
                f"expected declared targets with 'targets' and 'batch', got {type(state).__name__}"
            )
        try:
            return cls.parse(state["targets"], state["batch"])
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidStateError(str(error)) from error


def _check_addresses(declaration: Declaration) -> None:
    """Refuse two targets at one address of the output, whose tensor would be converted twice.

    In the batch, two targets may share a tensor: forces for two heads of a network.
    """
    known: dict[Path, str] = {}
    for name, (values, *gradients) in declaration.in_output.items():
        described = {f"'{name}'": values.paths[0]}
        for gradient in gradients:
            described[f"the gradient '{gradient.parameter}' of '{name}'"] = gradient.paths[0]
        for what, path in described.items():
            for other, owner in known.items():
                shorter = min(len(path), len(other))
                if path[:shorter] == other[:shorter]:
                    both = " and ".join(dict.fromkeys(map(describe_address, (other, path))))
                    raise ValueError(
                        f"targets: {owner} and {what} are both declared at {both} of the output; "
                        "leave one of them out, give one another address with prediction=, or "
                        "name columns, as in ('y', 1)"
                    )
            known[path] = what
