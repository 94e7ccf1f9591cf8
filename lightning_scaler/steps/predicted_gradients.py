"""A check that predicted gradients are the derivatives of predicted values, as declared."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from metatensor.torch import TensorMap
from torch import Tensor

from ..plain_tensors import STRESS, DeclaredBatch, PerStructure, describe_address, signed_path
from ..scaling import Scaler

# Relative difference up to which two gradients are the same.
SAME = 1e-3


def check_gradients(
    batch: DeclaredBatch, predictions: Mapping[str, TensorMap], scaler: Scaler
) -> bool:
    """Compare the gradients that a network predicts with the derivatives of its values.

    This is possible where both come from one computation with positions, or strains, that require a
    gradient. A warning names a gradient that was declared with the wrong sign, energies per atom,
    or a stress without its volume. Other differences mean nothing: networks may predict gradients
    that are not derivatives, or have other units.

    Args:
        batch: batch that the network was given.
        predictions: its predictions in model space, by target name.
        scaler: fitted scaler.

    Returns:
        Whether that is all. ``False`` if a derivative is zero everywhere, as it is before the first
        step of a network whose last layer begins with zeros.

    Raises:
        RuntimeError: for gradients of values in physical units, which would be scaled once more.
    """
    complete = True
    for name, tensor in predictions.items():
        block = tensor.block_by_id(0)
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            given = gradient.values.detach().sum(-1)
            structures = block.samples.column("system").long()
            of_rows = structures[gradient.samples.column("sample").long()]
            for derivative in _derivatives(block.values, given):
                if not derivative.any():
                    complete = False
                elif not _are_same(given, derivative):
                    _refuse_physical(name, parameter, given, derivative, scaler)
                    n_atoms = batch.atoms.n_atoms.to(of_rows.device)[of_rows].to(given)
                    declared: Any = batch.declaration.targets[name]
                    where = f"target '{name}': the predicted gradient '{parameter}'"
                    words = _describe_difference(
                        where, parameter, declared, given, derivative, n_atoms
                    )
                    if words is not None:
                        rank_zero_warn(words)
    return complete


def _refuse_physical(
    name: str, parameter: str, given: Tensor, derivative: Tensor, scaler: Scaler
) -> None:
    # With a scale of 1, a gradient of the other sign would look like a converted one.
    if not scaler.targets[name].layout.single_property or _are_same(given, -derivative):
        return
    scale = scaler.scales[name].block().values.item()
    if _are_same(given, scale * derivative) or _are_same(given, -scale * derivative):
        raise RuntimeError(
            f"target '{name}': the predicted gradient '{parameter}' is the derivative of the "
            f"predicted values times the scale of the target, {scale:.5g}, so it is in physical "
            "units already, and would be multiplied by the scale again; differentiate what the "
            "network gives, before it is converted to physical units"
        )


def _describe_difference(
    where: str,
    parameter: str,
    declared: PerStructure,
    given: Tensor,
    derivative: Tensor,
    n_atoms: Tensor,
) -> str | None:
    """How a predicted gradient differs from the derivative, and what to do about it."""
    gradient: Any = declared.gradients[parameter]
    if _are_same(given, -derivative):
        sign, path = signed_path(gradient, of_output=True)
        if sign < 0:
            return (
                f"{where} is minus the derivative of the predicted values: at "
                f"{describe_address(path)}, forward returns the gradient itself, where minus the "
                "gradient is declared; return minus the derivative, or, if the data have another "
                f"sign than forward, declare gradients={{'{parameter}': {{'tensor': '-…', "
                "'prediction': '+…'}}"
            )
        tensor = {"positions": "forces", "strain": "virial"}[parameter]
        return (
            f"{where} is minus the derivative of the predicted values; forces and virials are "
            f"minus the gradient, so declare them with a minus: gradients={{'{parameter}': "
            f"'-{tensor}'}}, or, if the data have another sign than forward, declare "
            f"gradients={{'{parameter}': {{'tensor': '…', 'prediction': '-…'}}}}"
        )
    # Whatever the sign is: a wrong one is found once the rest is right.
    given, derivative = given.abs(), derivative.abs()
    n_atoms = n_atoms.reshape(-1, *[1] * (given.dim() - 1))
    if not declared.per_atom and _are_same(given, n_atoms * derivative):
        return (
            f"{where} is the derivative of the predicted values times the number of atoms, so that "
            "these are energies per atom (F = -N de/dx), where totals are expected; if those in "
            "the batch are per atom too, declare PerStructure(per_atom=True), otherwise multiply "
            "them by the number of atoms in forward"
        )
    if declared.per_atom and _are_same(n_atoms * given, derivative):
        return (
            f"{where} is the derivative of the predicted energy per atom, without the number of "
            "atoms; forces are those of the whole structure (F = -N de/dx), so multiply them by "
            "the number of atoms in forward, or, if the energies are totals, declare them without "
            "per_atom=True"
        )
    if parameter == "strain" and gradient.volume is None:
        volumes = derivative.flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)
        if volumes.max() > 1.01 * volumes.min() and _are_same(
            volumes[:, None, None] * given, derivative
        ):
            return (
                f"{where} is the derivative of the predicted values divided by a number for each "
                f"structure, from {volumes.min():.5g} to {volumes.max():.5g}, as a stress is; give "
                f"the address of the volumes or cells: {STRESS}"
            )
    return None


def _derivatives(values: Tensor, like: Tensor) -> Iterator[Tensor]:
    """The derivatives of values with respect to all tensors of a shape that require a gradient."""
    if values.grad_fn is None:
        return
    for leaf in _leaves(values.grad_fn):
        if leaf.shape != like.shape or isinstance(leaf, torch.nn.Parameter):
            continue
        try:
            found = torch.autograd.grad(values.sum(), leaf, retain_graph=True, allow_unused=True)[0]
        except RuntimeError:  # the graph has been freed
            return
        if found is not None:
            yield found.to(like)


def _are_same(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() < SAME * second.norm())


def _leaves(node: Any) -> Iterator[Tensor]:
    """The tensors that require a gradient at the ends of a graph of autograd."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if hasattr(current, "variable"):
            yield current.variable
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
