"""The statistics of one batch of a target."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from ..batches import Atoms
from ..tensors import Invariance, Key, TargetLayout
from .block_statistics import BlockStatistics
from .grouped_sums import group_means, square_sums
from .least_squares import read_problems
from .moments import Means


@dataclass(frozen=True)
class Entries:
    """The entries of one block in one batch.

    Attributes:
        stored: as the data store them, ``(n_samples, n_components, n_properties)``, NaN where
            missing.
        left: the same without the contributions of an additive module; ``stored`` itself where
            there are none.
        keep: ``False`` where an entry is missing too, in the same shape.
        invariance: the part that a baseline is to be taken from.
        rounding: machine epsilon of the contributions.
    """

    stored: torch.Tensor
    left: torch.Tensor
    keep: torch.Tensor | None
    invariance: Invariance
    rounding: float = 0.0

    @classmethod
    def of(
        cls,
        values: torch.Tensor,
        keep: torch.Tensor | None,
        contribution: torch.Tensor | None,
        invariance: Invariance,
    ) -> "Entries":
        """All entries of a block ``(n_samples, *components, n_properties)``."""
        shape = (len(values), math.prod(values.shape[1:-1]), values.shape[-1])
        stored = values.detach().reshape(shape)
        keep = None if keep is None else keep.reshape(shape)
        if contribution is None:
            return cls(stored, stored, keep, invariance)
        left = stored.double() - contribution.double().reshape(shape)
        return cls(stored, left, keep, invariance, torch.finfo(contribution.dtype).eps)

    def without_mask(self) -> "Entries":
        """The same, NaN where the mask leaves an entry out."""
        keep = self.keep
        if keep is None:
            return self
        unmasked = replace(self, keep=None)
        return unmasked._mapped(lambda entries: torch.where(keep, entries, torch.nan))

    def divided(self, divisors: torch.Tensor) -> "Entries":
        """The same in float64, every sample divided by a number."""
        return self._mapped(lambda entries: entries.double() / divisors[:, None, None])

    def invariant(self) -> "Entries":
        """Those that a baseline is taken from, the other entries of :meth:`others`.

        The diagonal entries of a rank-2 block are observations of the same number each.
        """
        if self.invariance == "scalar":
            return self
        return self._mapped(lambda entries: entries[:, self._diagonal()])

    def others(self) -> "Entries":
        """Those that no baseline is taken from."""
        if self.invariance is None:
            return self
        if self.invariance == "scalar":
            return self._mapped(lambda entries: entries[:, :0])
        return self._mapped(lambda entries: entries[:, ~self._diagonal()])

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Entries":
        stored = function(self.stored)
        left = stored if self.left is self.stored else function(self.left)
        return replace(
            self, stored=stored, left=left, keep=None if self.keep is None else function(self.keep)
        )

    def _diagonal(self) -> torch.Tensor:
        return torch.eye(math.isqrt(self.stored.shape[1]), dtype=torch.bool).reshape(-1)


def statistics_of_atoms(
    layout: TargetLayout, blocks: dict[Key, Entries], groups: torch.Tensor, n_groups: int
) -> dict[Key, BlockStatistics]:
    """Read blocks of a per-atom target that have the same samples.

    Args:
        layout: of the target.
        blocks: the entries by key.
        groups: the group (type) of every sample, ``(n_samples,)``.
        n_groups: number of groups; some of them may not occur.

    Raises:
        ValueError: for infinite entries, and for squares that overflow.
    """
    statistics = _sums(layout, blocks, blocks, groups, n_groups)
    invariant = {k: block.invariant() for k, block in blocks.items() if block.invariance}
    if invariant:
        left = [block.left for block in invariant.values()]
        means = group_means(left, groups, n_groups, _masks(invariant.values()))
        of_blocks = zip(*(_by_block(numbers, left) for numbers in means), strict=True)
        for key, of_block in zip(invariant, of_blocks, strict=True):
            statistics[key].means = Means(*of_block)
    for key, block in invariant.items():
        if block.left is not block.stored:
            spread = group_means([block.stored], None, 1, _masks([block]))
            statistics[key].spread = Means(*spread)
    return statistics


def statistics_of_structures(
    layout: TargetLayout,
    blocks: dict[Key, Entries],
    rows: torch.Tensor | None,
    types: torch.Tensor,
    atoms: Atoms,
    extensive: bool,
) -> dict[Key, BlockStatistics]:
    """Read blocks of a per-structure target that have the same samples.

    Args:
        layout: of the target.
        blocks: the entries by key.
        rows: position of every sample's system in the batch, ``(n_samples,)``; ``None``: all of
            them in order.
        types: sorted atomic types, the columns of a baseline; some of them may not occur.
        atoms: of the batch.
        extensive: values are divided by the number of atoms first.

    Raises:
        ValueError: for infinite entries, and for squares that overflow.
    """
    totals = {key: block.without_mask() for key, block in blocks.items()}
    divisors = atoms.divisors if rows is None else atoms.divisors[rows]
    averages = totals
    if extensive:
        averages = {key: block.divided(divisors) for key, block in totals.items()}
    statistics = _sums(layout, averages, totals, None, 1)
    if not any(block.invariance for block in blocks.values()):
        return statistics
    composition = atoms.composition(types)
    composition = composition if rows is None else composition[rows]
    per_atom = composition / divisors.nan_to_num(1.0)[:, None]
    for key, of_block in statistics.items():
        if totals[key].invariance:
            total, average = totals[key].invariant(), averages[key].invariant()
            of_block.spread = Means(*group_means([average.stored], None, 1))
            of_block.totals = read_problems(composition, total.left.double(), types)
            if extensive:
                of_block.averages = read_problems(per_atom, average.left, types)
    return statistics


def _sums(
    layout: TargetLayout,
    blocks: dict[Key, Entries],
    given: dict[Key, Entries],
    groups: torch.Tensor | None,
    n_groups: int,
) -> dict[Key, BlockStatistics]:
    """Statistics without those of a baseline; ``given`` is what the data have, for messages."""
    if not blocks:
        return {}
    stored = [block.stored for block in blocks.values()]
    squares, counts = square_sums(stored, groups, n_groups, _masks(blocks.values()))
    if not math.isfinite(float(squares.sum())):
        _refuse_what_is_not_finite(layout, given)
    statistics = {}
    by_block = zip(blocks, _by_block(counts, stored), _by_block(squares, stored), strict=True)
    for key, number, of_block in by_block:
        block, left = blocks[key], of_block
        if block.invariance == "scalar":
            left = torch.zeros_like(of_block)
        elif block.invariance or block.left is not block.stored:
            others = block.others()
            left = square_sums([others.left], groups, n_groups, _masks([others]))[0]
        epsilon = torch.finfo(given[key].stored.dtype).eps
        statistics[key] = BlockStatistics(number, of_block, left, epsilon)
        if block.left is not block.stored:
            contribution = [block.stored.double() - block.left]
            noise = square_sums(contribution, groups, n_groups, _masks([block]))[0]
            statistics[key].noise = block.rounding**2 * noise
    return statistics


def _masks(blocks: Iterable[Entries]) -> list[torch.Tensor] | None:
    """The masks of a target's blocks, all of which have one or none."""
    return [block.keep for block in blocks if block.keep is not None] or None


def _by_block(columns: torch.Tensor, entries: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What stands side by side, block by block."""
    return tuple(columns.split([of_block.shape[2] for of_block in entries], 1))


def _refuse_what_is_not_finite(layout: TargetLayout, blocks: dict[Key, Entries]) -> None:
    for key, block in blocks.items():
        stored = block.without_mask().stored
        infinite = torch.isinf(stored)
        where = f"target '{layout.name}', block ({layout.describe(key)})"
        if bool(infinite.any()):
            raise ValueError(
                f"{where}: expected finite numbers, or NaN for missing ones, got "
                f"{int(infinite.sum())} infinite entries in a batch; remove these structures or "
                "set the entries to NaN; nothing is fitted"
            )
        largest = float(torch.nan_to_num(stored.double()).abs().max()) if stored.numel() else 0.0
        if not math.isfinite(largest * largest * stored.numel()):
            raise ValueError(
                f"{where}: the sum of squares overflows, the largest absolute value being "
                f"{largest:.3e}; give the target in a larger unit; nothing is fitted"
            )
