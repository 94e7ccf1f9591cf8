"""Targets in loss space that keep their rows and layouts."""

from collections.abc import Mapping, Sequence

from metatensor.torch import TensorMap

from ..batches import Atoms, HasTypes, IndexedTarget, SystemIndexing, index_batch
from .scaler import Scaler

Systems = Sequence[HasTypes] | Atoms
BY_POSITION = SystemIndexing("position")

# metatrain adds maps such as last-layer features under these names.
AUXILIARY = "mtt::aux::"


def is_auxiliary(name: str) -> bool:
    """Whether a TensorMap of a batch is not a target unless it is named as one."""
    return name.startswith(AUXILIARY)


class LossTargets(dict[str, TensorMap]):
    """Targets in loss space by name, with the rows and layouts that were found for them.

    Predictions and metrics of the same batch need these again. They are not kept for a TensorMap
    that replaces one of these, nor in a plain dict made from this one, and are then found again.

    Args:
        tensors: targets in loss space, and TensorMaps without scales, by name.
        indexed: the targets with rows and layouts.
    """

    def __init__(
        self, tensors: Mapping[str, TensorMap], indexed: Mapping[str, IndexedTarget]
    ) -> None:
        super().__init__(tensors)
        self._indexed = dict(indexed)

    def indexed(self, name: str) -> IndexedTarget | None:
        """The target with its rows and layout, unless it has been replaced."""
        known = self._indexed.get(name)
        return known if known is not None and known.tensor is self.get(name) else None


def index_loss_targets(
    scaler: Scaler,
    systems: Systems,
    chosen: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> dict[str, IndexedTarget]:
    """Rows and layouts of targets in loss space, found before or now.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        chosen: some of the targets, by name, all of which have scales.
        targets: result of :func:`targets_to_loss`, or any targets in loss space.
    """
    indexed = {}
    if isinstance(targets, LossTargets):
        known = {name: targets.indexed(name) for name in chosen}
        indexed = {name: target for name, target in known.items() if target is not None}
    others = {name: tensor for name, tensor in chosen.items() if name not in indexed}
    if others:
        indexed |= index_batch(systems, others, scaler.layouts).targets
    return indexed
