"""What identifies the training data without reading all of them."""

from collections.abc import Callable, Collection, Iterator
from operator import eq
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..batches import Batch, HasTypes
from ..tensors import digest
from .pass_loaders import Limits, sample_loaders, selected_batches, training_batches
from .processes import FitProcesses
from .random_states import seed_globals
from .samplers import in_order, select_evenly
from .training_loader import TrainingLoader

# Samples of each loader that are read.
N_SAMPLES = 32


def identify_data(
    loader: TrainingLoader,
    read: Callable[[Any], Batch],
    targets: Collection[str] | None,
    with_positions: bool,
    processes: FitProcesses,
    limits: Limits,
) -> dict[str, str] | None:
    """What identifies the data of a pass: equal data give equal values on any number of processes.

    These are the number of samples, which samples are read, and the targets, their layouts and all
    values of 32 evenly spaced samples, as training reads them. A change that leaves these as they
    are is not seen, unless the dataset has an attribute ``fingerprint``, a string that changes with
    its content.

    Args:
        loader: loader of training, in the random states of its first epoch.
        read: function that takes a batch of the loader apart.
        targets: names of the targets that count; ``None``: all.
        with_positions: whether the positions and cells of the systems count too.
        processes: processes of the pass.
        limits: how much of each loader is read.

    Returns:
        Values by name; ``None`` for loaders without known indices (streams), unless the dataset of
        every loader has a fingerprint.
    """
    loaders = loader.flattened
    selected = [selected_batches(one, processes, limits, loader.injected) for one in loaders]
    indices = [
        chosen and _indices(one, chosen[0]) for one, chosen in zip(loaders, selected, strict=True)
    ]
    fingerprints = [_own_fingerprint(one) for one in loaders]
    found = {
        "samples": " + ".join("stream" if i is None else str(len(i)) for i in indices),
        "selected samples": digest(list(map(_selection, loaders, indices))),
        "fingerprint of the dataset": " + ".join(own or "none" for own in fingerprints),
    }
    known = [of_loader for of_loader in indices if of_loader is not None]
    if len(known) == len(loaders):
        seed_globals()
        samples = [list(select_evenly(of_loader, N_SAMPLES)) for of_loader in known]
        batches = training_batches(sample_loaders(loader.combined, samples))
        found |= _describe(map(read, batches), targets, with_positions)
    unidentified = len(known) < len(loaders) and None in fingerprints
    return _merge_ranks(processes.gather_objects(None if unidentified else found))


def _indices(loader: Any, batches: list[Any]) -> list[Any]:
    """All indices in ascending order."""
    if loader.batch_sampler is None:
        return in_order(batches)
    return in_order([index for batch in batches for index in batch])


def _selection(loader: Any, indices: list[Any] | None) -> Any:
    n_samples = 0 if indices is None else len(loader.dataset)
    if indices is None or (len(indices) == n_samples and all(map(eq, indices, range(n_samples)))):
        return "all"
    try:
        return torch.tensor(indices)  # hashed a hundred times faster than a list
    except (TypeError, ValueError, RuntimeError):
        return indices


def _own_fingerprint(loader: Any) -> str | None:
    """The ``fingerprint`` of a dataset, or of the one inside a ``Subset``."""
    dataset = getattr(loader, "dataset", None)
    subsets: list[torch.Tensor] = []
    while dataset is not None:
        own = getattr(dataset, "fingerprint", None)
        if isinstance(own, str):
            return own if not subsets else f"{own}, {digest(subsets)}"
        subsets.append(torch.as_tensor(getattr(dataset, "indices", ())))
        dataset = getattr(dataset, "dataset", None)
    return None


def _describe(
    batches: Iterator[Batch], targets: Collection[str] | None, with_positions: bool
) -> dict[str, str]:
    names: set[str] = set()
    layouts, values = [], []
    for systems, tensors, masks in batches:
        kept = sorted(name for name in tensors if targets is None or name in targets)
        names.update(kept)
        layouts.append([[name, _layout(tensors[name])] for name in kept])
        values.append([[name, _values(tensors[name])] for name in kept])
        values.append([[name, _values(masks[name])] for name in sorted(masks) if name in kept])
        values.append([_system(system, with_positions) for system in systems])
    return {
        "targets": ", ".join(sorted(names)),
        "layouts": digest(layouts),
        f"values of {N_SAMPLES} samples": digest(values),
    }


def _layout(tensor: TensorMap) -> list[Any]:
    blocks = [
        [
            block.samples.names,
            [[labels.names, labels.values] for labels in (*block.components, block.properties)],
            sorted(block.gradients_list()),
        ]
        for block in tensor.blocks()
    ]
    return [tensor.keys.names, tensor.keys.values, blocks]


def _values(tensor: TensorMap) -> list[Any]:
    found = []
    for block in tensor.blocks():
        for one in (block, *(block.gradient(name) for name in sorted(block.gradients_list()))):
            found.append([one.samples.values, one.values])
    return found


def _system(system: HasTypes, with_positions: bool) -> list[Any]:
    names = ("types", "positions", "cell") if with_positions else ("types",)
    return [torch.as_tensor(getattr(system, name)) for name in names if hasattr(system, name)]


def _merge_ranks(by_rank: list[dict[str, str] | None]) -> dict[str, str] | None:
    """The values of all processes, which differ where each process has data of its own."""
    first, *others = by_rank
    if first is None or None in others:
        return None
    if all(other == first for other in others):
        return first
    return {"data of each process": digest(by_rank), "processes": str(len(by_rank))}
