"""The size of the targets of some data, in loss space and as they are stored."""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import IndexedTarget, read_atoms
from ..tensors import values_and_gradients
from .conversion import Conversion, convert_targets, n_atoms_of_rows
from .loss_space import Systems, index_by_position
from .scaler import Scaler
from .target_scales import term_name


class TermSize(NamedTuple):
    """The size of one term of the loss: of the values of a target, or of a gradient.

    Attributes:
        rms: RMS in loss space.
        ratio: RMS as it is stored (per atom for an extensive target), relative to that of the data
            of the fit, before subtracting the baseline; ``None`` where the latter is not known,
            and for gradients.
        if_per_atom: the ratio that the values of an extensive target would have if they were
            multiplied by the number of atoms, so 1 for values that are per atom already.
        if_total: the same, divided by it.
    """

    rms: float
    ratio: float | None
    if_per_atom: float | None
    if_total: float | None


class LossSpaceSums:
    """Sums over batches of targets, from which :meth:`sizes` gives their RMS in loss space.

    Nothing waits for the device before :meth:`sizes`.

    Attributes:
        n_structures: number of structures.
        n_atoms: number of atoms.
    """

    def __init__(self) -> None:
        self.n_structures = self.n_atoms = 0
        # For each batch and block the number of values, and sums of squares in loss space and (of
        # values) as stored, times and divided by the number of atoms, by target and parameter.
        self._sums: dict[tuple[str, str], list[Tensor]] = {}

    def add(
        self,
        scaler: Scaler,
        systems: Systems,
        targets: Mapping[str, TensorMap],
        masks: Mapping[str, TensorMap],
        names: Collection[str],
    ) -> None:
        """Add the targets of one batch.

        Args:
            scaler: fitted scaler.
            systems: systems of the batch, or their atoms.
            targets: targets in physical space, by name.
            masks: masks by target name.
            names: names of the targets to add.
        """
        known = {name: tensor for name, tensor in targets.items() if name in names}
        if not known:
            return
        batch = index_by_position(scaler, systems, known, masks)
        atoms = read_atoms(systems)
        conversion = Conversion("physical", "loss", per_atom=True)
        with torch.no_grad():
            converted = convert_targets(scaler, batch, conversion)
            for name, target in batch.targets.items():
                extensive = scaler.targets[name].extensive
                n_atoms = n_atoms_of_rows(target, atoms) if extensive else []
                self._add_target(name, target, converted[name], n_atoms)
        self.n_structures += atoms.n_systems
        self.n_atoms += atoms.types.numel()

    def sizes(self, scaler: Scaler) -> dict[str, TermSize]:
        """The size of each term by name, of those with a value that is not 0."""
        sizes = {}
        for (name, parameter), of_parts in self._sums.items():
            count, in_loss, *stored = torch.stack(of_parts).double().sum(0).tolist()
            if count and in_loss:
                target = scaler.targets[name]
                known = not parameter and target.rms_before > 0.0  # NaN for scales of metatrain
                ratios: list[float | None] = [None] * 3
                if known:
                    n_ratios = 3 if target.extensive else 1
                    for i, sq_sum in enumerate(stored[:n_ratios]):
                        ratios[i] = math.sqrt(sq_sum / count) / target.rms_before
                sizes[term_name(name, parameter)] = TermSize(math.sqrt(in_loss / count), *ratios)
        return sizes

    def _add_target(
        self, name: str, target: IndexedTarget, in_loss: TensorMap, n_atoms: list[Tensor]
    ) -> None:
        stored, _ = values_and_gradients(target.tensor)
        for i, (values, block) in enumerate(zip(stored, in_loss.blocks(), strict=True)):
            n = torch.ones((), dtype=values.dtype, device=values.device)
            if n_atoms:
                n = n_atoms[i] if len(n_atoms) > 1 else n_atoms[0]
                n = n.reshape([-1, *[1] * (values.dim() - 1)]).to(values)
            parts = [values / n, values, values / n.square()]
            self._sums.setdefault((name, ""), []).append(_sums(block.values, parts))
            for parameter in block.gradients_list():
                gradient = block.gradient(parameter).values
                self._sums.setdefault((name, parameter), []).append(_sums(gradient, []))


def _sums(in_loss: Tensor, stored: list[Tensor]) -> Tensor:
    """The number of values that are not NaN, and sums of squares; ``(2 + n_stored,)``."""
    present = ~in_loss.isnan()
    squares = [torch.where(present, part, 0.0).square().sum() for part in (in_loss, *stored)]
    return torch.stack([present.sum().to(in_loss), *(part.to(in_loss) for part in squares)])
