"""A network and its scales in TorchScript, with the interface of metatomic."""

# ruff: noqa: UP006, UP035, UP045 (metatomic compares the annotations of `forward` with its own)

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, System
from torch import Tensor

from ..baselines import FrozenModule
from ..scaling import Scaler
from .frozen_target import FrozenAtoms, FrozenTarget
from .output_units import Output


class FrozenScaler(torch.nn.Module):
    """From model space to physical units, with the arithmetic of ``Scaler.convert``.

    Results are bitwise those of ``Scaler.convert(systems, tensors, "model", "physical")``. Besides,
    per-structure targets may come as shares of their atoms, which get the weight of their type, and
    only the ``selected_atoms`` count in the baseline of a total.

    Args:
        scaler: fitted scaler.
        names: names of the targets.
        types: atomic types.
        dtype: dtype in which predictions come.

    Raises:
        ValueError: for types without a scale or a weight.
        TypeError: for an additive module that cannot be exported.
        RuntimeError: for an additive module without its code.
    """

    types: Tensor

    def __init__(
        self, scaler: Scaler, names: Sequence[str], types: Sequence[int], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.types = torch.tensor(sorted(types), dtype=torch.int64)
        self.targets = torch.nn.ModuleList(
            FrozenTarget(scaler.targets[name], self.types, scaler.settings, dtype) for name in names
        )
        covered = [name for name in names if scaler.targets[name].additive]
        self.additive: torch.nn.Module | None = None
        if scaler.additive is not None and covered:
            self.additive = _scriptable(scaler.additive, sorted(types))

    def forward(
        self,
        systems: list[System],
        tensors: dict[str, TensorMap],
        outputs: dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> dict[str, TensorMap]:
        """Convert predictions; those without scales pass through unchanged.

        Args:
            systems: systems of the batch, in float64 and with their neighbor lists.
            tensors: predictions in model space by target name.
            outputs: what was requested of each target, for the additive module.
            selected_atoms: atoms that count in totals, by ``system`` and ``atom``; ``None``: all.
        """
        atoms = self._read(systems, selected_atoms)
        contributions: dict[str, TensorMap] = {}
        if self.additive is not None and len(systems) > 0:
            contributions = self.additive(systems, outputs, selected_atoms)
        result: dict[str, TensorMap] = {}
        for key, tensor in tensors.items():
            result[key] = tensor
        for target in self.targets:
            name: str = target.name  # type: ignore[assignment]
            if name in tensors:
                added: Optional[TensorMap] = None
                if target.additive and len(systems) > 0:
                    if name not in contributions:
                        raise ValueError(
                            f"the additive module gave no contribution to the target '{name}', "
                            "with which its scales were fitted"
                        )
                    added = contributions[name]
                result[name] = target(tensors[name], atoms, added)
        return result

    def _read(self, systems: list[System], selected_atoms: Optional[Labels]) -> FrozenAtoms:
        device = self.types.device if len(systems) == 0 else systems[0].device
        if self.types.device != device:
            self.types = self.types.to(device)
        of_systems: list[Tensor] = [torch.zeros([0], dtype=torch.int64, device=device)]
        sizes: list[int] = []
        for system in systems:
            of_systems.append(system.types.long())
            sizes.append(len(system))
        types = torch.cat(of_systems)
        type_index = torch.searchsorted(self.types, types).clamp(max=self.types.size(0) - 1)
        unseen = self.types[type_index] != types
        if bool(unseen.any()):
            numbers: list[int] = torch.unique(types[unseen]).tolist()
            known: list[int] = self.types.tolist()
            raise ValueError(f"no scales for the atomic types {numbers}, only for {known}")
        n_atoms = torch.tensor(sizes, dtype=torch.int64, device=device)
        first_atom = n_atoms.cumsum(0) - n_atoms
        unique, column = torch.unique(type_index, return_inverse=True)
        counted = torch.ones([types.size(0)], dtype=torch.float64, device=device)
        if selected_atoms is not None:
            selected = selected_atoms.values.long()
            counted = torch.zeros_like(counted)
            counted[first_atom[selected[:, 0]] + selected[:, 1]] = 1.0
        cells = torch.repeat_interleave(n_atoms) * unique.size(0) + column
        counts = torch.zeros([len(systems) * unique.size(0)], dtype=torch.float64, device=device)
        counts = counts.index_add(0, cells, counted).reshape(len(systems), unique.size(0))
        return FrozenAtoms(type_index, first_atom, n_atoms, unique, counts)


def _scriptable(frozen: FrozenModule, types: list[int]) -> torch.nn.Module:
    """An additive module in the form that TorchScript takes."""
    if frozen.module is None:
        raise RuntimeError(
            f"the scales were fitted with the additive module {frozen.name}, whose code was not "
            "loaded with them; give it again before the export, constructed as in the fit: "
            f"scaler.set_additive({frozen.name}(...))"
        )
    module: Any = copy.deepcopy(frozen.module).to("cpu")
    if not hasattr(module, "scriptable"):
        raise TypeError(
            "expected an additive module with a method scriptable(types), which returns it as a "
            f"module for TorchScript, got {frozen.name}, which has none; add it, or fit without "
            "this module"
        )
    scriptable: torch.nn.Module = module.scriptable(types).eval()
    return scriptable


class DeployedModel(torch.nn.Module):
    """The model that engines call: systems in float64 in, physical values in float64 out.

    Args:
        network: predicts targets in model space; see :func:`export`.
        scaler: scales of all outputs.
        outputs: outputs by their name in metatomic.
        dtype: floating-point dtype of the network.
    """

    properties: Dict[str, Labels]

    def __init__(
        self,
        network: torch.nn.Module,
        scaler: FrozenScaler,
        outputs: Mapping[str, Output],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.network = network
        self.scaler = scaler
        self.dtype = dtype
        self.target_of_output = {name: output.target for name, output in outputs.items()}
        self.properties = {
            name: Labels([output.property_name], torch.zeros((1, 1), dtype=torch.int64))
            for name, output in outputs.items()
            if output.property_name
        }

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Compute the requested outputs.

        Args:
            systems: systems of the batch, with the neighbor lists of the network.
            outputs: requested outputs by name.
            selected_atoms: atoms to which the outputs are limited, ``None``: all.
        """
        requested: Dict[str, ModelOutput] = {}
        for name, output in outputs.items():
            requested[self.target_of_output[name]] = output
        in_dtype = [system.to(self.dtype) for system in systems]
        predictions = self.network(in_dtype, requested, selected_atoms)
        wanted: Dict[str, TensorMap] = {}
        for target, output in requested.items():
            if target not in predictions:
                raise ValueError("the network gave no prediction of the target '" + target + "'")
            prediction = predictions[target]
            if output.sample_kind == "atom" and "atom" not in prediction.sample_names:
                raise ValueError(
                    "prediction of '" + target + "': values per atom were requested "
                    "(sample_kind='atom'), and the network gave values per structure"
                )
            wanted[target] = _without_gradients(prediction)
        physical = self.scaler(systems, wanted, requested, selected_atoms)
        result: Dict[str, TensorMap] = {}
        for name, target in self.target_of_output.items():
            if name in outputs:
                tensor = physical[target]
                if name in self.properties:
                    tensor = _with_properties(tensor, self.properties[name])
                result[name] = tensor.to(torch.float64)
        return result


def _without_gradients(tensor: TensorMap) -> TensorMap:
    """The values alone: engines differentiate by autograd."""
    blocks: List[TensorBlock] = []
    for block in tensor.blocks():
        blocks.append(TensorBlock(block.values, block.samples, block.components, block.properties))
    return TensorMap(tensor.keys, blocks)


def _with_properties(tensor: TensorMap, properties: Labels) -> TensorMap:
    block = tensor.block()
    properties = properties.to(block.values.device)
    renamed = TensorBlock(block.values, block.samples, block.components, properties)
    return TensorMap(tensor.keys, [renamed])
