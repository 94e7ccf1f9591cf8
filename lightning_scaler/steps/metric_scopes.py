"""What the metrics of a target see, and their names."""

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from ..scaling import TargetPart
from ..tensors import TargetLayout


class MetricScope(NamedTuple):
    """The values that one metric sees: all values of a target, one of its gradients, or one block.

    Attributes:
        path: logged name without stage and metric, as in ``"energy"`` or ``"energy/positions"``.
        gradient: parameter of the gradient; ``None`` for values.
        block: key of the block by name; ``None`` for all blocks.
        per_atom: whether errors are divided by the number of atoms.
    """

    path: str
    gradient: str | None = None
    block: dict[str, int] | None = None
    per_atom: bool = False

    def logged_name(self, metric: str) -> str:
        """The logged name of a metric, without the stage: ``"energy/rmse_per_atom"``."""
        return f"{self.path}/{metric}" + ("_per_atom" if self.per_atom else "")

    def contains(self, part: TargetPart, layout: TargetLayout) -> bool:
        """Whether the metric sees a part of a target with this layout."""
        block = dict(zip(layout.key_names, part.key, strict=False))
        return (part.target, part.gradient) == (layout.name, self.gradient) and self.block in (
            None,
            block,
        )


def metric_scopes(
    layout: TargetLayout, extensive: bool, per_block: Sequence[str]
) -> list[MetricScope]:
    """The scopes in which a target is logged, the same on every process.

    Args:
        layout: layout of the target in the fit.
        extensive: whether errors are per atom.
        per_block: names of the targets with additional metrics for every block.
    """
    name = logged_path(layout.name)
    scopes = [MetricScope(name, per_atom=extensive)]
    for parameter in layout.gradients:
        per_atom = extensive and parameter != "positions"
        scopes.append(MetricScope(f"{name}/{parameter}", gradient=parameter, per_atom=per_atom))
    if layout.name in per_block:
        for key in layout.blocks:
            block = dict(zip(layout.key_names, key, strict=True))
            # Nearly all blocks have o3_sigma=1, so names leave it out.
            words = [f"{n}_{v}" for n, v in block.items() if (n, v) != ("o3_sigma", 1)]
            path = f"{name}/{'_'.join(words)}"
            scopes.append(MetricScope(path, block=block, per_atom=extensive))
    return scopes


@cache
def logged_path(name: str) -> str:
    """The name of a target in logged names: ``"mtt/dipole"`` for ``"mtt::dipole"``.

    ``ModelCheckpoint`` cannot read colons and brackets in the fields of its ``filename``.
    """
    return re.sub(r"[\[\]{}]", "_", re.sub(r":+", "/", name))
