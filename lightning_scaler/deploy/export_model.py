"""A trained network with its scales in one file for simulation engines."""

import copy
import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
)
from torch.jit.frontend import FrontendError

from ..scaling import Scaler, TargetScales
from ..settings import atomic_type
from ..tensors import check_writable, replacing, script_class_name
from .deployed_model import DeployedModel, FrozenScaler
from .output_units import Output, parse_length_unit, parse_outputs
from .physical_model import (
    PhysicalModel,
    check_fitted,
    check_module,
    find_wrapped,
    systems_dtype,
)

DEVICES = ["cuda", "cpu"]  # those with float64


def export(
    network: torch.nn.Module,
    scaler: Scaler,
    path: str | os.PathLike[str],
    *,
    outputs: Mapping[str, Any] | Sequence[str],
    length_unit: str,
    interaction_range: float,
    atomic_types: Iterable[int | str] | None = None,
    metadata: "ModelMetadata | None" = None,
) -> None:
    """Write a network, its scales and its baseline as one metatomic model.

    ASE, i-PI, TorchSim and LAMMPS load the file without this package. Its results are bitwise those
    of ``scaler.convert(systems, predictions, "model", "physical")``, in float64 whatever the dtype
    of the network. Network and scaler are not changed.

    The network is a ``torch.nn.Module`` that TorchScript takes, with the interface of metatomic::

        def forward(self, systems: List[System], outputs: Dict[str, ModelOutput],
                    selected_atoms: Optional[Labels] = None) -> Dict[str, TensorMap]: ...

        @torch.jit.export
        def requested_neighbor_lists(self) -> List[NeighborListOptions]: ...  # if it needs any

    ``outputs`` has the names of the requested targets. Predictions are in model space, with the
    keys and properties of the fit, and limited to the ``selected_atoms``. Per-structure targets are
    totals, or the shares of the atoms where ``outputs[name].sample_kind == "atom"``. Systems come
    in the dtype of the network (float32 for lower precision). Forces are left to the autograd of
    the engine.

    Args:
        network: the network, not a LightningModule around it.
        scaler: its fitted scaler.
        path: file to write; one that exists is replaced when the new one is complete.
        outputs: for each target to export, its unit (``"kcal/mol"``; ``"1"`` if it has no
            dimension), or a mapping with ``unit`` and ``name``. Without a name, targets that
            metatomic knows (``energy``, ``charge``) keep theirs, others become
            ``lightning_scaler::dipole``. Units may be left out (``["energy"]``) where the scaler
            knows those of the data, from ``TargetScaler(units=…)``.
        length_unit: unit of positions and cells, such as ``"angstrom"``.
        interaction_range: distance up to which atoms affect each other, in that unit: the cutoff
            times the number of message-passing layers; ``math.inf`` if there is no limit.
        atomic_types: atomic types of the model, as integers or symbols; ``None``: all that have a
            scale and a baseline in every exported target.
        metadata: name, authors and references of the model.

    Raises:
        RuntimeError: for a scaler that was never fitted, an additive module without its code, or a
            network that TorchScript does not take.
        ValueError: for unknown targets, units that are missing, unknown, of the wrong dimension or
            other than in the data, types without a scale or a baseline, or a range shorter than a
            cutoff.
        TypeError: for an argument of another type, a LightningModule or another module around the
            network, or an additive module that cannot be exported.
        OSError: if the file cannot be written.

    Example:
        >>> network, scaler = torch.nn.Linear(1, 1), Scaler()  # neither is ready for this
        >>> length = {"length_unit": "angstrom", "interaction_range": 5.0}
        >>> export(network, scaler, "model.pt", outputs={"energy": "eV"}, **length)
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        RuntimeError: expected a fitted scaler, ...
    """
    check_fitted(scaler)
    _check_network(network)
    check_writable(path)
    if metadata is not None and script_class_name(metadata) != "ModelMetadata":
        raise TypeError(
            "metadata: expected a ModelMetadata of metatomic.torch, such as "
            f"ModelMetadata(name='water'), got {metadata!r}"
        )
    parsed = parse_outputs(outputs, scaler.targets, scaler.units)
    targets = {output.target: scaler.targets[output.target] for output in parsed.values()}
    types = _atomic_types(atomic_types, targets)
    length_unit = parse_length_unit(length_unit, parsed.values(), scaler.units)
    with torch.no_grad():  # copies of scripted parameters would be part of a graph
        network = copy.deepcopy(network)
    network = _compilable(network.to("cpu").eval())
    dtype = systems_dtype(network)
    frozen = FrozenScaler(scaler, list(targets), types, dtype)
    model = DeployedModel(network, frozen, parsed, dtype).eval()
    capabilities = ModelCapabilities(
        outputs={name: _model_output(output, targets) for name, output in parsed.items()},
        atomic_types=types,
        interaction_range=_interaction_range(interaction_range, model),
        length_unit=length_unit,
        supported_devices=DEVICES,
        dtype="float64",
    )
    if metadata is None:
        metadata = ModelMetadata(name=type(network).__name__)
    with replacing(path) as temporary:
        try:
            AtomisticModel(model, metadata, capabilities).save(temporary)
        except (RuntimeError, FrontendError) as error:
            raise RuntimeError(_way_out(network, error)) from error


def _check_network(network: Any) -> None:
    """Raise ``TypeError`` for anything but a module, and for one around the network."""
    if hasattr(network, "training_step"):
        raise TypeError(
            "expected the network, a torch.nn.Module, got the LightningModule "
            f"{type(network).__name__}, which TorchScript cannot take; pass the module that it "
            "wraps, as in export(model.network, model.scaler, ...)"
        )
    check_module(network)
    if isinstance(network, PhysicalModel):
        path, wrapped = ".network", network.network
    else:
        path, wrapped = find_wrapped(network, lambda m: type(m).__module__.startswith("torch."))
    if path:
        raise TypeError(
            f"expected the network, got {type(network).__name__} around a "
            f"{type(wrapped).__name__}, which TorchScript cannot take; pass network{path}"
        )


def _atomic_types(
    given: Iterable[int | str] | None, targets: Mapping[str, TargetScales]
) -> list[int]:
    """The types of the model, sorted; by default those that every target knows."""
    if given is not None:
        given = given.tolist() if isinstance(given, torch.Tensor) else given
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(
                f"atomic_types: expected a list of atomic types, such as ['H', 8], got {given!r}"
            )
        types = sorted({atomic_type("atomic_types", z) for z in given})
        if not types:
            raise ValueError("atomic_types: expected at least one type, got none")
        return types
    known = [scales.types_with_weights for scales in targets.values() if scales.weights]
    known += [
        frozenset(scales.row_of_type())
        for scales in targets.values()
        if scales.layout.sample_kind == "atom"
    ]
    if not known:
        raise ValueError(
            f"the scales of the targets {sorted(targets)} are the same for all atomic types; give "
            "the types that the network knows, as in atomic_types=['H', 'C', 'O']"
        )
    common = frozenset.intersection(*known)
    unknown = {z for scales in targets.values() for z in scales.unknown_types}
    left_out = sorted(unknown.union(*known) - common)
    if left_out:
        warnings.warn(
            f"the exported model leaves out the atomic types {left_out}, which have no scale or "
            f"baseline in some of the targets {sorted(targets)}; export fewer targets, or name "
            "the types with atomic_types=[...]",
            stacklevel=3,
        )
    if not common:
        raise ValueError(
            f"no atomic type has a scale and a baseline in all of the targets {sorted(targets)}; "
            "export fewer targets"
        )
    return sorted(common)


def _model_output(output: Output, targets: Mapping[str, TargetScales]) -> ModelOutput:
    scales = targets[output.target]
    # A quantity that adds up over the atoms can also be asked for per atom.
    kinds = {"structure": "atom" if scales.extensive else "system", "pair": "atom_pair"}
    kind = kinds.get(scales.layout.sample_kind, "atom")
    return ModelOutput(unit=output.unit, sample_kind=kind, description=f"target {output.target}")


def _interaction_range(given: Any, model: DeployedModel) -> float:
    """The range of the network, or of the additive module if that is longer."""
    if isinstance(given, torch.Tensor) and given.numel() == 1:
        given = given.item()
    longest = _longest_cutoff(model.network)
    expected = (
        f"interaction_range: expected at least {longest:g}, the longest cutoff of the neighbor "
        f"lists of the network (times its number of message-passing layers), got {given!r}"
    )
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(expected)
    if math.isnan(given) or given < longest:
        raise ValueError(expected)
    return max(float(given), _longest_cutoff(model.scaler))


def _longest_cutoff(module: torch.nn.Module) -> float:
    requesting: list[Any] = [m for m in module.modules() if hasattr(m, "requested_neighbor_lists")]
    cutoffs = [options.cutoff for m in requesting for options in m.requested_neighbor_lists()]
    return float(max(cutoffs, default=0.0))


def _compilable(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its e3nn modules compiled, which TorchScript does not take as they are."""
    if "e3nn" in sys.modules:
        from e3nn.util.jit import compile as compile_e3nn

        compile_e3nn(network, in_place=True)
    return network


def _way_out(network: torch.nn.Module, error: Exception) -> str:
    """A message about a model that cannot be compiled or written."""
    name = type(network).__name__
    if "redefine method" in str(error.__cause__):
        return (
            f"{name} does not compile with TorchScript, which names the line at the first attempt "
            "of a process alone, and this is not the first; export in a new process, such as a "
            "notebook whose kernel has been restarted"
        )
    unsupported = isinstance(error, FrontendError)
    if unsupported or "could not convert" in str(error):
        return (
            f"{name} does not compile with TorchScript, in which engines run models (torch.export "
            f"does not take TensorMaps): {error if unsupported else error.__cause__}\n"
            "Rewrite the line that is marked above for TorchScript; the interface is "
            "forward(systems: List[System], outputs: Dict[str, ModelOutput], selected_atoms: "
            "Optional[Labels] = None) -> Dict[str, TensorMap]. In Python, PhysicalModel takes any "
            "network"
        )
    if "GraphFunction" in str(error):
        return (
            f"{name} compiles with TorchScript and cannot be saved: it calls a static method of a "
            "TorchScript class, such as Labels.single() or Labels.range(); construct these with "
            "Labels(names, values) instead"
        )
    return f"{name} cannot be exported: {error}"
