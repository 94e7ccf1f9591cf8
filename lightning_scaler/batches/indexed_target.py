"""The targets of a batch with their rows and layouts, which are determined once."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..settings import SystemLabels
from ..tensors import (
    TARGET,
    TargetLayout,
    block_with_samples,
    blocks_in_batch_order,
    map_blocks,
    match_layouts,
)
from .atoms import Atoms, read_atoms
from .system_labels import SystemIndexing, infer_system_indexing
from .systems import HasTypes


class IndexedTarget(NamedTuple):
    """A target of a batch, with its rows and its layout.

    Attributes:
        tensor: values and gradients.
        rows: for each block the index of every row's system (per-structure targets) or atom among
            all atoms of the batch (per-atom targets), ``(n_samples,)``. Empty where every block has
            all of them in batch order, and for atom pairs.
        layout: layout of the tensor, its blocks in the same order; the known layout itself where
            it has just these blocks.
        labels: the TensorMap of the batch that these labels were read from, perhaps on another
            device; ``None`` if they have been replaced since.
    """

    tensor: TensorMap
    rows: list[Tensor]
    layout: TargetLayout
    labels: "TensorMap | None" = None


class IndexedBatch(NamedTuple):
    """The targets of a batch with their rows and layouts.

    Attributes:
        atoms: atoms of the batch, on the device of the targets.
        indexing: meaning of the ``system`` labels of the targets.
        targets: targets by name, with rows and layouts.
    """

    atoms: Atoms
    indexing: SystemIndexing
    targets: dict[str, IndexedTarget]


def index_targets(
    atoms: Atoms,
    tensors: Mapping[str, TensorMap],
    layouts: Mapping[str, TargetLayout],
    system_labels: SystemLabels = "position",
    exact: bool = False,
    what: str = TARGET,
) -> IndexedBatch:
    """Find the system or atom of every row of the targets of a batch.

    Args:
        atoms: atoms of the batch, on the device of the targets.
        tensors: targets by name.
        layouts: layout of each target in this batch.
        system_labels: what their ``system`` labels mean.
        exact: see :func:`system_labels.infer_system_indexing`.
        what: ``TARGET`` or ``PREDICTION``, for messages.

    Raises:
        ValueError: for rows that are not in the batch, or labels that could mean two things.
    """
    labels, in_order, indexing = _infer_indexing(atoms, tensors, system_labels, exact)
    device, indexed = atoms.types.device, {}
    for name, tensor in tensors.items():
        rows: list[Tensor] = []
        all_in_order = all(in_order[name]) and indexing.ids is None
        if not all_in_order and layouts[name].sample_kind != "pair":
            blocks = labels.tensors[name].blocks()
            rows = [
                indexing.rows(name, block.samples, labels.atoms, what).to(device)
                for block in blocks
            ]
        indexed[name] = IndexedTarget(tensor, rows, layouts[name], labels.tensors[name])
    return IndexedBatch(atoms, indexing, indexed)


def infer_indexing(atoms: Atoms, tensors: Mapping[str, TensorMap]) -> SystemIndexing:
    """Decide what the ``system`` labels of targets mean, with the setting ``"auto"``.

    Raises:
        ValueError: for labels that could mean two things.
    """
    return _infer_indexing(atoms, tensors, "auto", exact=True)[2]


def _infer_indexing(
    atoms: Atoms, tensors: Mapping[str, TensorMap], system_labels: SystemLabels, exact: bool
) -> "tuple[_Labelled, dict[str, list[bool]], SystemIndexing]":
    labels = _find_labels(atoms, tensors)
    label_atoms, labelled, in_order, _ = labels
    if in_order is None:
        n_atoms, n_all_atoms = label_atoms.n_atoms, label_atoms.types.numel()
        found = blocks_in_batch_order(list(labelled.values()), n_atoms, n_all_atoms)
        in_order = dict(zip(labelled, found, strict=True))
    indexing = infer_system_indexing(label_atoms, labelled, in_order, system_labels, exact)
    return labels, in_order, indexing


def index_batch(
    systems: Sequence[HasTypes] | Atoms,
    tensors: Mapping[str, TensorMap],
    known: Mapping[str, TargetLayout],
    system_labels: SystemLabels = "position",
    exact: bool = False,
    what: str = TARGET,
) -> IndexedBatch:
    """Find rows and layouts of the targets of a batch, given their layouts in the fit.

    Args:
        systems: systems of the batch, or their atoms.
        tensors: TensorMaps by name, at least one.
        known: layouts by name, those of the tensors among them.
        system_labels: what their ``system`` labels mean.
        exact: see :func:`system_labels.infer_system_indexing`.
        what: ``TARGET`` or ``PREDICTION``, for messages.
    """
    atoms = read_atoms(systems).to(next(iter(tensors.values())).device)
    labelled = _find_labels(atoms, tensors)
    layouts = {n: layout for n, layout in labelled.layouts.items() if layout is known.get(n)}
    others = {n: tensor for n, tensor in labelled.tensors.items() if n not in layouts}
    if others:
        device = labelled.atoms.types.device
        layouts |= match_layouts(known, others, device, what, "the data of the fit")
    return index_targets(atoms, tensors, layouts, system_labels, exact, what)


def relabel_by_position(
    name: str, tensor: TensorMap, indexing: SystemIndexing, atoms: Atoms
) -> TensorMap:
    """The same target with positions in the batch as ``system`` labels, in its gradients too."""
    if indexing.ids is None:
        return tensor
    label_atoms, labelled, *_ = _find_labels(atoms, {name: tensor})
    originals = labelled[name].blocks()
    return relabel_systems(
        tensor, lambda index, _: indexing.positions(name, originals[index].samples, label_atoms)
    )


def relabel_systems(
    tensor: TensorMap, new_labels: Callable[[int, TensorBlock], Tensor]
) -> TensorMap:
    """The same TensorMap with other ``system`` labels, in its gradients too.

    Args:
        tensor: TensorMap; returned as it is unless its samples have ``system``.
        new_labels: the label of every row of a block, ``(n_samples,)``, given the index of the
            block and the block.
    """
    if "system" not in tensor.sample_names:
        return tensor

    def relabel(index: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        systems = new_labels(index, block).to(block.samples.values)
        gradients, gradient_samples = {}, {}
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            gradients[parameter] = gradient.values
            rows = gradient.samples.values[:, 0].long()
            gradient_samples[parameter] = _with_systems(gradient.samples, systems[rows])
        samples = _with_systems(block.samples, systems)
        return block_with_samples(block, block.values, samples, gradients, gradient_samples)

    return map_blocks(tensor, relabel)


class _Labelled(NamedTuple):
    """Where the labels of some targets are read: the atoms there, and TensorMaps with the labels.

    ``in_order`` says for every block whether it is in batch order, if that is known; ``layouts``
    has the layouts that are known.
    """

    atoms: Atoms
    tensors: dict[str, TensorMap]
    in_order: dict[str, list[bool]] | None
    layouts: dict[str, TargetLayout]


def _find_labels(atoms: Atoms, tensors: Mapping[str, TensorMap]) -> _Labelled:
    """Labels on the host if all TensorMaps were moved from there, else where they are.

    Labels on the host are read without waiting for a device. Predictions, masked targets and
    TensorMaps that replace others have labels on the device alone.
    """
    records = {name: atoms.label_record(tensor) for name, tensor in tensors.items()}
    known = {name: record for name, record in records.items() if record is not None}
    if len(known) < len(tensors):
        return _Labelled(atoms, dict(tensors), None, {})
    originals = {name: record.original for name, record in known.items()}
    in_order = {name: record.in_batch_order for name, record in known.items()}
    host = atoms.on_host
    if host is not atoms and next(iter(originals.values())).device != host.types.device:
        host = atoms
    layouts = {name: record.layout for name, record in known.items() if record.layout is not None}
    return _Labelled(host, originals, in_order, layouts)


def _with_systems(labels: Labels, systems: Tensor) -> Labels:
    if "system" not in labels.names:
        return labels
    values = labels.values.clone()
    values[:, labels.names.index("system")] = systems
    return Labels(labels.names, values)
