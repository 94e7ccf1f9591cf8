"""The fitted scales, and the way between the three spaces."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch
from metatensor.torch import TensorMap
from typing_extensions import override

from ..baselines import FrozenModule, class_name, contributions, frozen
from ..batches import (
    Atoms,
    HasTypes,
    SystemIndexing,
    index_by_position,
    infer_system_indexing,
    read_atoms,
)
from ..settings import Settings, check_choice
from .conversion import SCALE_EXPONENTS, Conversion, convert_targets
from .summary import summarize_baselines, summarize_scales
from .target_scales import ScaleKind, TargetScales

if TYPE_CHECKING:
    from rich.table import Table

    from ..interop import Source

Space = Literal["physical", "loss", "model"]

# 2: with additive modules.
STATE_VERSION = 2


class Scaler(torch.nn.Module):
    """Per-target and per-property scales of several targets, and their baseline.

    A module without parameters or buffers: its scales travel in the extra state of the
    ``state_dict``, stay float64 whatever the module is cast to, and are never broadcast.
    It is made by :meth:`ScaleAccumulator.compute`; ``Scaler()`` is one that is not fitted yet.

    The three spaces: *physical*, the units of the data; *loss*, baseline removed and divided by
    the per-target scale; *model*, what a network outputs, loss space divided by the per-property
    scale.

    Args:
        targets: the scales by target name.
        settings: of the fit.
        additive: a module that gives an additive part of some targets; see :meth:`set_additive`.
    """

    def __init__(
        self,
        targets: Mapping[str, TargetScales] | None = None,
        settings: Settings | None = None,
        additive: torch.nn.Module | FrozenModule | None = None,
    ) -> None:
        super().__init__()
        self.targets: dict[str, TargetScales] = dict(targets or {})
        self.settings = settings or Settings()
        self._device = torch.device("cpu")
        self.additive = frozen(additive)
        self.provided_module = self.additive if isinstance(additive, torch.nn.Module) else None

    @property
    def fitted(self) -> bool:
        """Whether there are scales of any target."""
        return bool(self.targets)

    @property
    def per_target_scales(self) -> dict[str, TensorMap]:
        """The scale of each target; per type, sample ``atomic_type``, for per-atom targets.

        ``TensorMap`` with the keys and properties of the target, no components, float64, in the
        units of the data (per atom for extensive targets); one sample -1 unless per-atom.
        """
        return self._tensormaps("per_target")

    @property
    def per_property_scales(self) -> dict[str, TensorMap]:
        """The scale of each property relative to its target; shapes as above, dimensionless."""
        return self._tensormaps("per_property")

    @property
    def scales(self) -> dict[str, TensorMap]:
        """The product of both, the raw RMS of each property; shapes and units as above."""
        return self._tensormaps("full")

    def table(self) -> "Table":
        """The scales as a table of the rich library, in the units of the data set."""
        from ..reports import scales_table

        return scales_table(summarize_scales(self.targets))

    def baselines_table(self) -> "Table | None":
        """What is subtracted before scaling, as a table; ``None`` if nothing is."""
        from ..reports import baselines_table

        module = None if self.additive is None else self.additive.name
        return baselines_table(summarize_baselines(self.targets, module))

    def convert(
        self,
        systems: Sequence[HasTypes] | Atoms,
        tensors: Mapping[str, TensorMap],
        source: Space = "physical",
        target: Space = "loss",
        baseline: bool = True,
    ) -> dict[str, TensorMap]:
        r"""Bring tensors from one space to another.

        .. math::

            y_\mathrm{loss} = (y_\mathrm{physical} - b) / \sigma_Z, \qquad
            y_\mathrm{model} = y_\mathrm{loss} / \sigma_{\alpha p Z}

        Values keep dtype, device and autograd graph; samples, components, properties, keys and
        gradients are carried over, and gradients take the factor of their block. One exception: a
        target with a baseline enters physical space in float64, since float32 cannot hold -1e5 eV
        and 1e-3 eV together. Names that the scaler does not know pass through unchanged.

        Args:
            systems: of the batch (or their :class:`Atoms`).
            tensors: by target name. Out of physical space their ``system`` label is read as
                ``system_labels`` says; out of the others it is the position in the batch.
            source: the space they are in.
            target: the space wanted.
            baseline: ``False`` leaves the baseline out, for differences.

        Raises:
            ValueError: for types without a scale or weight, samples that are not in the batch, or
                another layout than in the fit.

        Example:
            >>> Scaler().convert([], {}, source="model", target="physical")
            {}
        """
        if source not in SCALE_EXPONENTS or target not in SCALE_EXPONENTS:
            check_choice("source", source, Space)
            check_choice("target", target, Space)
        known = {name: tensor for name, tensor in tensors.items() if name in self.targets}
        if source == target or not known:
            return dict(tensors)
        atoms = read_atoms(systems).to(next(iter(known.values())).device)
        if source == "physical":
            reading = infer_system_indexing(atoms, known, self.settings.system_labels)
        else:
            reading = index_by_position(atoms, known)
        conversion = Conversion(source, target, baseline, self.settings.unseen_types)
        return {**tensors, **self.convert_known(known, atoms, reading, conversion)}

    def convert_known(
        self,
        tensors: Mapping[str, TensorMap],
        atoms: Atoms,
        reading: SystemIndexing,
        conversion: Conversion,
    ) -> dict[str, TensorMap]:
        """As :meth:`convert`, for targets that have scales, of a batch that has been read.

        Args:
            tensors: by target name.
            atoms: of the batch, on the device of the tensors.
            reading: of their ``system`` labels.
            conversion: from which space to which.
        """
        names = [name for name in tensors if self.targets[name].additive]
        given: Mapping[str, TensorMap] = {}
        if names and self.additive is not None and conversion.applies_baseline:
            given = self.additive(atoms, names)
            missing = [name for name in names if name not in given and len(atoms)]
            if missing:
                raise ValueError(
                    f"additive module {self.additive.name}: expected contributions to the targets "
                    f"{missing}, with which their scales were fitted, got {sorted(given)}; "
                    "construct the module as in the fit"
                )
        parts = contributions(given, tensors, atoms, reading)
        return convert_targets(self.targets, tensors, atoms, reading, conversion, parts)

    def set_additive(self, module: torch.nn.Module) -> None:
        """Give a module whose contributions come off before the baseline and the scales.

        It maps a list of systems and a list of target names to a dict of TensorMaps, those of the
        targets that it knows, ``system`` being the position in the list. A copy of it is frozen,
        evaluated in its own dtype, and moved with the scaler. Its weights are part of the state;
        its code is not, and is given again here when a state has been loaded.

        Raises:
            ValueError: if there are scales that were not fitted with a module of this class.
        """
        if not self.fitted:
            self.additive = self.provided_module = FrozenModule(module)
        elif self.additive is not None and self.additive.name == class_name(module):
            self.additive.attach_module(module)
        else:
            fitted_with = "none" if self.additive is None else self.additive.name
            raise ValueError(
                f"expected the additive module that the scales were fitted with ({fitted_with}), "
                f"got {class_name(module)}; fit anew with it"
            )
        self.additive.to(self._device)

    def update(self, other: "Scaler") -> None:
        """Take over the targets, the settings and the additive module of another scaler."""
        self.targets = {**self.targets, **other.targets}
        self.settings = other.settings
        self.additive = other.additive and other.additive.to(self._device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scaler to one file."""
        torch.save(self.get_extra_state(), path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], additive: torch.nn.Module | None = None
    ) -> "Scaler":
        """Read a scaler from a file of :meth:`save`; no pickled code is run.

        Args:
            path: of the file.
            additive: the code of the additive module, if the scaler was fitted with one.
        """
        scaler = cls(additive=additive)
        scaler.set_extra_state(torch.load(path, map_location="cpu", weights_only=True))
        return scaler

    @classmethod
    def from_metatrain(
        cls,
        checkpoint: "Source",
        composition: "Source | None" = None,
        layouts: Mapping[str, TensorMap] | None = None,
        atomic_types: Sequence[int] | None = None,
        intensive_targets: Iterable[str] | None = None,
    ) -> "Scaler":
        """Take the scales and the composition weights that metatrain fitted.

        Conversions give the numbers that metatrain gives; metatrain itself is not needed, and no
        pickled code is run (files need torch 2.6 or newer). Its checkpoints hold no numbers of
        entries, so ``unseen_types`` is ``"error"``, and all types of the model count as seen.

        Args:
            checkpoint: of a metatrain ``Scaler`` (``scaler.ckpt``), or of a whole model that has
                one, its composition being read too: the file, what ``torch.load`` makes of it, or
                a state dict. A state dict alone needs some of the arguments below.
            composition: likewise of its ``CompositionModel`` (``composition_model.ckpt``), if one
                came off before the scales were taken and is not in the checkpoint. ``{}`` says of
                a state dict that none did.
            layouts: for a state dict, an example of each target that is no spherical tensor (with
                any number of samples), since the buffers hold no components.
            atomic_types: for a state dict, those of the model, for per-atom targets.
            intensive_targets: names of per-structure targets that were not divided by the number
                of atoms; ``None``: what the checkpoint says (``per_structure_targets``), else none.

        Raises:
            ValueError: for a file that is no checkpoint; additive models whose weights are not
                given; scales that are zero or infinite; what a state dict does not tell.
        """
        from ..interop import read_metatrain

        found = read_metatrain(checkpoint, composition, layouts, atomic_types, intensive_targets)
        return cls(found.targets, Settings(enabled=found.enabled, baseline=found.baseline))

    @override
    def get_extra_state(self) -> dict[str, Any]:
        """Everything that :meth:`convert` needs, as plain Python objects and tensors."""
        return {
            "version": STATE_VERSION,
            "settings": asdict(self.settings),
            "targets": {name: scales.state() for name, scales in self.targets.items()},
            "additive": self.additive and self.additive.state(),
        }

    @override
    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the state of :meth:`get_extra_state`."""
        if not isinstance(state, Mapping):
            # torch.distributed.checkpoint puts a placeholder here; see the mixin.
            return
        if state["version"] > STATE_VERSION:
            raise ValueError(
                f"expected a scaler state of version {STATE_VERSION} or older, got version "
                f"{state['version']}; update lightning_scaler to read it"
            )
        self.settings = Settings(**state["settings"])
        self.targets = {
            name: TargetScales.from_state(name, _on_cpu(scales))
            for name, scales in state["targets"].items()
        }
        self._restore_additive(_on_cpu(state.get("additive")))

    @override
    def extra_repr(self) -> str:
        """Name the targets."""
        return ", ".join(self.targets) or "not fitted"

    def _restore_additive(self, state: Mapping[str, Any] | None) -> None:
        """Take the weights of an additive module, and the code that was given already."""
        code = None if self.additive is None else self.additive.module
        if state is not None:
            self.additive = FrozenModule.from_state(state)
            if code is not None and self.additive.needs_module(code):
                self.additive.attach_module(code)
                self.additive.to(self._device)

    def _tensormaps(self, which: ScaleKind) -> dict[str, TensorMap]:
        # MPS has no float64.
        device = torch.device("cpu") if self._device.type == "mps" else self._device
        return {name: scales.as_tensormap(which, device) for name, scales in self.targets.items()}

    @override
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Scaler":
        # The scales follow the device and never the dtype.
        self._device = fn(torch.zeros(())).device
        if self.additive is not None:
            self.additive.to(self._device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @override
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *others: Any,
    ) -> None:
        # A checkpoint from before the plugin has no scales and loads as not fitted.
        if prefix + "_extra_state" not in state_dict:
            state_dict[prefix + "_extra_state"] = Scaler().get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def _on_cpu(state: Any) -> Any:
    """The same state with all tensors on the CPU, whatever ``map_location`` it was loaded with."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {name: _on_cpu(part) for name, part in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(part) for part in state)
    return state
