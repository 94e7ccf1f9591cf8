"""The fitted scales, and the conversions between the three spaces."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from metatensor.torch import TensorMap

from ..batches import index_batch
from ..plain_tensors import Declaration, DeclaredBatch, declared_batch
from ..settings import check_choice, check_names, list_of_names
from ..tensors import (
    PREDICTION,
    TARGET,
    describe,
    is_tensormap,
)
from .conversion import SCALE_EXPONENTS, Conversion, convert_targets
from .scaler_module import ScalerModule
from .summary import scales_to_draw, summarize_baselines, summarize_scales, summarize_zeros
from .target_scales import ScaleKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Space = Literal["physical", "loss", "model"]


class Scaler(ScalerModule):
    """Per-target and per-property scales of several targets, and their baseline.

    A module without parameters or buffers: its scales are saved in the extra state of the
    ``state_dict``, stay float64 whatever the module is cast to, and are never broadcast.
    :meth:`ScaleAccumulator.compute` returns one; ``Scaler()`` is not fitted.

    The three spaces: *physical*, the units of the dataset; *loss*, baseline subtracted and divided
    by the per-target scale; *model*, the output of a network, loss space divided by the
    per-property scale.

    Args:
        targets: scales by target name.
        settings: settings of the fit.
        additive: module that contributes to some targets; see :meth:`set_additive`.

    Attributes:
        targets: scales by target name.
        settings: settings of the fit.
        additive: the additive module, frozen, if there is one.
        declaration: the declared targets, if they are plain tensors.
        units: units in the data, where they are known: of a target under its name, of a gradient
            under ``energy/positions``. Tables show them, and :func:`export` uses them.
        provided_module: the additive module given here rather than loaded, frozen.

    Example:
        >>> Scaler()
        Scaler(not fitted)
    """

    @property
    def per_target_scales(self) -> dict[str, TensorMap]:
        """The scale of each target, and of each atomic type for per-atom targets.

        Each ``TensorMap`` has the keys and properties of the target, no components, and samples
        ``atomic_type`` (one sample -1 unless the target is per-atom); float64, in the units of the
        dataset (per atom for extensive targets).
        """
        return self._tensormaps("per_target")

    @property
    def per_property_scales(self) -> dict[str, TensorMap]:
        """The scale of each property relative to its target; shapes as above, dimensionless."""
        return self._tensormaps("per_property")

    @property
    def scales(self) -> dict[str, TensorMap]:
        """The product of both, the RMS of each property; shapes and units as above."""
        return self._tensormaps("full")

    def table(self, title: str = "Target scales", caption: str | None = None) -> "Table":
        """The scales as a table of the rich library, in the units of the dataset.

        Args:
            title: text above the table.
            caption: text under the table.
        """
        from ..reports import scales_table

        zeros = summarize_zeros(self.targets)
        return scales_table(summarize_scales(self.targets, self.units), title, caption, zeros)

    def baselines_table(
        self, title: str = "Baselines", caption: str | None = None
    ) -> "Table | None":
        """What is subtracted before scaling, as a table; ``None`` if nothing is.

        Args:
            title: text above the table.
            caption: text under the table.
        """
        from ..reports import baselines_table

        module = None if self.additive is None else self.additive.name
        baselines = summarize_baselines(self.targets, self.units, module)
        return baselines_table(baselines, title, caption)

    def plot(
        self,
        targets: Sequence[str] | None = None,
        ax: "Axes | None" = None,
        units: Mapping[str, str] | None = None,
    ) -> "tuple[Figure, Any]":
        """Draw the scales of each atomic type and property, on log axes.

        Per-structure targets with one property share axes, with their RMS before subtracting the
        baseline. Every other target has its own: rows for the properties if it is per-structure,
        otherwise the atomic types side by side, with a marker for each property, or as a heat map
        if there are more than five. Atom-pair targets, which are not scaled, are left out.

        Needs matplotlib (``pip install 'lightning-scaler[plot]'``). The figure is not one of
        pyplot, so that it is neither shown nor kept by it.

        Args:
            targets: names of the targets to draw. Default: all.
            ax: axes of matplotlib to draw into, for targets that share axes. Default: a new figure.
            units: units by target name, gradients included. Default: those of the scaler.

        Returns:
            The figure, and its axes (a list if there are several).

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
            ValueError: for unknown targets, also in ``units``, none with scales, or targets that do
                not share ``ax``.

        Example:
            >>> from lightning_scaler import PerAtom, ScaleAccumulator
            >>> batch = {"z": torch.tensor([8, 1, 1]), "n_atoms": torch.tensor([3])}
            >>> batch["charges"] = torch.tensor([-0.8, 0.4, 0.4])
            >>> accumulator = ScaleAccumulator(targets={"charges": PerAtom(unit="e")})
            >>> accumulator.update(batch)
            >>> figure, axes = accumulator.compute().plot()  # figure.savefig("scales.png")
            >>> axes.get_ylabel()
            'scale (e)'
        """
        from ..reports import check_matplotlib, draw_scales

        check_matplotlib("plots")
        names = [*self.targets] if targets is None else list_of_names("targets", targets)
        check_names("targets", names, self.targets)
        gradients = (
            f"{name}/{parameter}"
            for name, scales in self.targets.items()
            for parameter in scales.layout.gradients
        )
        check_names("units", units or {}, [*self.targets, *gradients])
        drawn = scales_to_draw({name: self.targets[name] for name in names})
        if not drawn:
            raise ValueError(
                "plot: expected targets with scales, got "
                + (f"only atom pairs or no property: {[*names]}" if names else "none")
            )
        return draw_scales(drawn, self.units if units is None else units, ax)

    def convert(
        self,
        systems: Any,
        tensors: Any,
        source: Space = "physical",
        target: Space = "loss",
        baseline: bool = True,
    ) -> Any:
        r"""Convert tensors from one space to another.

        .. math::

            y_\mathrm{loss} = (y_\mathrm{physical} - b) / \sigma_Z, \qquad
            y_\mathrm{model} = y_\mathrm{loss} / \sigma_{\alpha p Z}

        Values keep dtype, device and autograd graph; samples, components, properties and keys are
        kept, and gradients are converted with the factor of their block. One exception: a target
        with a baseline enters physical space in float64, because float32 cannot represent -1e5 eV
        and 1e-3 eV together. Names without scales pass through unchanged.

        Plain tensors of declared targets are converted inside a copy of what holds them: of the
        batch itself, ``convert(batch, batch)``, or of an output of the network for this batch,
        ``convert(batch, output, source="model", target="physical")``.

        Source of the formulas: documentation of metatrain, "Target scaling".

        Args:
            systems: systems of the batch (or their ``Atoms``), a sequence; if targets are
                declared, the user's own batch.
            tensors: TensorMaps by target name, or an object with plain tensors at their declared
                addresses. In physical space their ``system`` label means what
                the setting ``system_labels`` says, in the other spaces the position in the batch.
            source: space of the tensors.
            target: space of the result.
            baseline: ``False`` leaves the baseline out, for differences.

        Raises:
            RuntimeError: for plain tensors, if the scaler is not fitted.
            ValueError: for types without a scale or weight, samples that are not in the batch, or
                a layout other than in the fit.

        Example:
            Energies of -3 for O and 6 for H2O, whose scale is the RMS per atom, √6.5:

            >>> from lightning_scaler import PerStructure, ScaleAccumulator
            >>> batch = {"z": torch.tensor([8, 1, 1, 8]), "n_atoms": torch.tensor([1, 3])}
            >>> batch["energy"] = torch.tensor([-3.0, 6.0])
            >>> accumulator = ScaleAccumulator(targets={"energy": PerStructure()})
            >>> accumulator.update(batch)
            >>> scaler = accumulator.compute()
            >>> scaler.convert(batch, batch)["energy"]
            tensor([-1.1767,  2.3534])
            >>> output = {"energy": torch.ones(2)}
            >>> scaler.convert(batch, output, source="model", target="physical")["energy"]
            tensor([2.5495, 2.5495])
        """
        if source not in SCALE_EXPONENTS or target not in SCALE_EXPONENTS:
            check_choice("source", source, Space)
            check_choice("target", target, Space)
        if not self.fitted and not _are_tensormaps(tensors):
            raise RuntimeError(
                "convert: expected a Scaler with scales, got one that is not fitted; take that of "
                "ScaleAccumulator.fit, of Scaler.load, or of a module after trainer.fit or "
                "load_from_checkpoint"
            )
        if self.declaration is not None and not _are_tensormaps(tensors):
            convert = partial(self.convert, source=source, target=target, baseline=baseline)
            return _convert_plain(systems, tensors, self.declaration, convert)
        known = {name: tensor for name, tensor in tensors.items() if name in self.targets}
        if source == target or not known:
            return dict(tensors)
        labels = self.settings.system_labels if source == "physical" else "position"
        what = PREDICTION if source == "model" else TARGET
        exact = self.additive is not None  # its contributions depend on positions
        indexed = index_batch(systems, known, self.layouts, labels, exact, what=what)
        return {**tensors, **convert_targets(self, indexed, Conversion(source, target, baseline))}

    def convert_spread(
        self,
        systems: Any,
        tensors: Any,
        source: Space = "model",
        target: Space = "physical",
        variance: bool = False,
    ) -> Any:
        r"""Convert the spread of predictions, such as a standard deviation, or a variance.

        .. math::

            s_\mathrm{physical} = \sigma_{\alpha p Z}^\mathrm{full} \, s_\mathrm{model}, \qquad
            v_\mathrm{physical} = (\sigma_{\alpha p Z}^\mathrm{full})^2 \, v_\mathrm{model}

        The baseline is the same for all members of an ensemble, and takes no part. Otherwise as
        :meth:`convert`.

        Args:
            systems: systems of the batch (or their ``Atoms``); if targets are declared, the
                user's own batch.
            tensors: spreads or variances by target name, each in the layout of its target; or an
                object with plain tensors at the addresses of declared predictions.
            source: space of the tensors.
            target: space of the result.
            variance: whether the tensors are variances.

        Raises:
            ValueError: for negative values, types without a scale, samples that are not in the
                batch, or a layout other than in the fit.

        Example:
            >>> Scaler().convert_spread([], {}, variance=True)
            {}
        """
        if self.declaration is not None and not _are_tensormaps(tensors):
            convert = partial(self.convert_spread, source=source, target=target, variance=variance)
            return _convert_plain(systems, tensors, self.declaration, convert)
        _check_spreads({n: t for n, t in tensors.items() if n in self.targets}, variance)
        spreads: dict[str, TensorMap] = self.convert(
            systems, tensors, source, target, baseline=False
        )
        if variance:
            spreads = self.convert(systems, spreads, source, target, baseline=False)
        return spreads

    def _tensormaps(self, kind: ScaleKind) -> dict[str, TensorMap]:
        # MPS has no float64.
        device = torch.device("cpu") if self._device.type == "mps" else self._device
        return {name: scales.as_tensormap(kind, device) for name, scales in self.targets.items()}


def _convert_plain(
    systems: Any, tensors: Any, declaration: Declaration, convert: Callable[..., Any]
) -> Any:
    """Convert the plain tensors of declared targets, in a copy of what holds them."""
    batch = systems
    if not isinstance(batch, DeclaredBatch):
        batch = declared_batch(systems, declaration)
    if tensors is systems:
        return batch.convert_targets(convert)
    return batch.convert_predictions(tensors, convert)


def _are_tensormaps(tensors: Any) -> bool:
    return isinstance(tensors, Mapping) and all(map(is_tensormap, tensors.values()))


def _check_spreads(tensors: Mapping[str, TensorMap], variance: bool) -> None:
    """Refuse negative spreads or variances; missing ones (NaN) are accepted.

    Args:
        tensors: spreads or variances by target name.
        variance: whether they are variances, for the message.

    Raises:
        ValueError: naming the target and the block.
    """
    what = "variances" if variance else "spreads"
    for name, tensor in tensors.items():
        for index, block in enumerate(tensor.blocks()):
            negative = block.values < 0.0
            if bool(negative.any()):
                raise ValueError(
                    f"target '{name}', block ({describe(tensor.keys, index)}): expected {what} of "
                    f"at least 0, got {int(negative.sum())} that are negative; values and "
                    "differences are converted with Scaler.convert"
                )
