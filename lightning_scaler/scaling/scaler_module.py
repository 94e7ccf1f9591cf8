"""A Scaler as a module of torch: its parts, moved, saved and restored."""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from metatensor.torch import TensorMap
from typing_extensions import Self, override

from ..baselines import FrozenModule, class_name, freeze
from ..plain_tensors import Declaration
from ..settings import Settings
from ..tensors import (
    TargetLayout,
    load_state,
    save_state,
    state_from_tensor,
    state_of,
    state_to_tensor,
)
from .scaler_state import ScalerState, read_state, write_state
from .summary import describe_targets
from .target_scales import TargetScales, term_name

if TYPE_CHECKING:
    from ..interop import Source


class ScalerModule(torch.nn.Module):
    """A module without parameters or buffers that saves scales in its extra state.

    See :class:`Scaler` for arguments and attributes.
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
        self.declaration: Declaration | None = None
        self.units: dict[str, str] = {}
        self._device = torch.device("cpu")
        self.additive = freeze(additive)
        self.provided_module = self.additive if isinstance(additive, torch.nn.Module) else None

    @property
    def fitted(self) -> bool:
        """Whether there are scales of any target."""
        return bool(self.targets)

    @property
    def layouts(self) -> dict[str, TargetLayout]:
        """Layouts of the targets by name."""
        return {name: scales.layout for name, scales in self.targets.items()}

    @property
    def mean_squares(self) -> dict[str, float]:
        """The mean square of each term of the loss in loss space, where it is known.

        The terms are the values of each target, under its name, and each of its gradients, under
        ``energy/positions``. They are dimensionless: 1 for fitted values, by the definition of the
        scales, but not for gradients. They are unknown for scales of a version that did not record
        them, and for scales fixed without a data pass.
        """
        found: dict[str, float] = {}
        for name, scales in self.targets.items():
            mean_squares = scales.mean_squares
            if not mean_squares and self.settings.enabled and scales.fixed is None:
                mean_squares = {"": 1.0} if scales.layout.sample_kind != "pair" else {}
            found |= {term_name(name, of): value for of, value in mean_squares.items()}
        return found

    @property
    def loss_terms(self) -> list[str]:
        """The terms of the loss by name, those of gradients as ``energy/positions``."""
        return [
            term_name(name, parameter)
            for name, scales in self.targets.items()
            for parameter in ("", *scales.layout.gradients)
        ]

    def set_additive(self, module: torch.nn.Module) -> None:
        """Set a module whose contributions are subtracted before the baseline and the scales.

        It maps a list of systems and a list of target names to a dict of TensorMaps for those
        targets that it knows, with the position in the list as ``system`` label. A frozen copy of
        it is evaluated in its own dtype and moved with the scaler. Its weights are part of the
        state; its code is not, and must be passed again after a state is loaded.

        Raises:
            ValueError: if there are scales that were not fitted with a module of this class.
            TypeError: for anything but a module, such as a class.
        """
        if not self.fitted:
            self.additive = self.provided_module = FrozenModule(module)
        elif self.additive is not None and self.additive.name == class_name(module):
            self.additive.attach_module(module)
        else:
            fitted_with = "none" if self.additive is None else self.additive.name
            raise ValueError(
                f"expected the additive module that the scales were fitted with ({fitted_with}), "
                f"got {class_name(module)}; fit again with it"
            )
        self.additive.to(self._device)

    def declare(self, declaration: Declaration | None) -> None:
        """Set the declared targets, and their layouts in place of equal ones of the scales.

        Layouts that are the same object need not be compared in every batch, which would take a
        tenth of the conversions of a step.
        """
        self.declaration = declaration
        layouts = {} if declaration is None else declaration.layouts
        for name in self.targets.keys() & layouts.keys():
            if self.targets[name].layout == layouts[name]:
                self.targets[name] = replace(self.targets[name], layout=layouts[name])

    def update(self, other: "ScalerModule") -> None:
        """Take targets, settings, additive module, declared targets and units of another scaler."""
        self.targets = {**self.targets, **other.targets}
        self.declare(other.declaration or self.declaration)
        self.units = {**self.units, **other.units}
        self.settings = other.settings
        self.additive = other.additive and other.additive.to(self._device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scaler to one safetensors file, which replaces an old one when it is complete.

        Raises:
            TypeError: for an additive module with a state that cannot be saved without pickle.
        """
        save_state(path, "Scaler", self._state())

    @classmethod
    def load(cls, path: str | os.PathLike[str], additive: torch.nn.Module | None = None) -> Self:
        """Read a scaler from a file written by :meth:`save`; no pickled code runs.

        Args:
            path: file to read.
            additive: code of the additive module, if the scaler was fitted with one.

        Raises:
            OSError: if there is no such file.
            InvalidStateError: naming the file, if it is truncated, damaged, or something else.
        """
        state = load_state(path, "Scaler")
        scaler = cls(additive=additive)
        with state_of(f"file '{os.fspath(path)}'"):
            scaler.set_extra_state(state)
        return scaler

    @classmethod
    def from_metatrain(
        cls,
        checkpoint: "Source",
        composition: "Source | None" = None,
        layouts: Mapping[str, TensorMap] | None = None,
        atomic_types: Sequence[int] | None = None,
        intensive_targets: Iterable[str] | None = None,
    ) -> Self:
        """Import scales and composition weights that metatrain fitted.

        Conversions give the numbers that metatrain gives; metatrain itself is not needed, and no
        pickled code runs (files need torch 2.6 or newer). Its checkpoints hold no counts of values,
        so ``unseen_types`` is ``"error"``, and all types of the model count as seen.

        Args:
            checkpoint: checkpoint of a metatrain ``Scaler`` (``scaler.ckpt``), or of a whole model
                with one, whose composition is read too: a file, the result of ``torch.load``, or a
                state dict, which needs some of the arguments below.
            composition: the same for its ``CompositionModel`` (``composition_model.ckpt``), if one
                was subtracted before the fit and is not in the checkpoint. ``{}`` beside a state
                dict says that there was none.
            layouts: for a state dict, an example of each target that is not a spherical tensor
                (with any number of samples), since the buffers hold no components.
            atomic_types: for a state dict, the types of the model, for per-atom targets.
            intensive_targets: names of per-structure targets that were not divided by the number
                of atoms; ``None``: as in the checkpoint (``per_structure_targets``), or none.

        Raises:
            ValueError: for a file that is not a checkpoint, additive models without weights, scales
                that are zero or infinite, or information that a state dict does not hold.
        """
        from ..interop import read_metatrain

        return cls(
            *read_metatrain(checkpoint, composition, layouts, atomic_types, intensive_targets)
        )

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`convert` needs, as a copy in plain Python objects and tensors."""
        return copy.deepcopy(self._state())

    @override
    def get_extra_state(self) -> torch.Tensor:
        """The :meth:`state` as one new float32 tensor on the CPU, a byte from 0 to 255 per element.

        It has 16384 elements, also if the scaler is not fitted, or the next power of two that is
        enough (distributed checkpoints load only into a tensor of the same length). Averages of
        equal copies and casts to half precision leave it intact.

        Raises:
            TypeError: for an additive module with a state that cannot be saved without pickle.
        """
        return state_to_tensor(self._state())

    @override
    def set_extra_state(self, state: torch.Tensor | Mapping[str, Any]) -> None:
        """Restore a state, which is checked before anything is changed.

        Args:
            state: result of :meth:`get_extra_state` or :meth:`state`.

        Raises:
            InvalidStateError: for a state that is truncated, damaged, a mixture of different
                states, of a newer version, or of something else. The scales are then kept.
        """
        if type(state).__name__ == "_EXTRA_STATE":
            # torch.distributed.checkpoint passes this where the state dict has no scales.
            return
        # Not inference tensors, which training could not use, nor those of a meta device.
        with torch.inference_mode(False), torch.device("cpu"):
            if isinstance(state, torch.Tensor):
                found = read_state(state_from_tensor(state))
            else:
                found = read_state(copy.deepcopy(state))
        additive = found.additive or self.additive
        if found.additive is not None and self.additive is not None:
            code = self.additive.module
            if code is not None and found.additive.needs_module(code):
                found.additive.attach_module(code)
                found.additive.to(self._device)
        self.targets, self.settings, self.additive = found.targets, found.settings, additive
        self.declare(found.declaration or self.declaration)
        self.units = found.units or self.units

    def _state(self) -> dict[str, Any]:
        parts = ScalerState(
            self.targets, self.settings, self.additive, self.declaration, self.units
        )
        return write_state(parts)

    @override
    def extra_repr(self) -> str:
        """The targets and their atomic types."""
        return describe_targets(self.targets) or "not fitted"

    @override
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
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
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *others
        )
        # Filtered or averaged weights, and those from before the plugin, have no scales.
        if prefix + "_extra_state" in missing_keys:
            missing_keys.remove(prefix + "_extra_state")
