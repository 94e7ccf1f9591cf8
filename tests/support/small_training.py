"""A small dataset and a small network for runs of a real Trainer, and what these fit."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from builders import atom_samples, cartesian, labels
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from metatensor.torch import TensorBlock, TensorMap, multiply
from metatomic.torch import System
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_scaler import Scaler, TargetScaler, TargetScalingMixin
from lightning_scaler.steps.loss import loss_terms

TYPES = torch.tensor([1, 6, 8])

Targets = dict[str, TensorMap]


def tensormap(
    names: str | list[str], keys: Any, values: list[torch.Tensor], samples: Any, components: Any
) -> TensorMap:
    """Blocks with one property each, in the order of the keys."""
    blocks = [
        TensorBlock(v[..., None], samples, list(c), labels("property", [0]))
        for v, c in zip(values, components, strict=True)
    ]
    return TensorMap(labels(names, keys), blocks)


def mu(degree: int) -> list[Any]:
    return [labels("o3_mu", range(-degree, degree + 1))]


def target_maps(counts: Sequence[int], numbers: dict[str, Any]) -> Targets:
    """The four targets of a batch, from the number of atoms of each system and plain tensors."""
    structures, atoms = labels("system", range(len(counts))), atom_samples(*counts)
    rows = [[i, i, atom] for i, count in enumerate(counts) for atom in range(count)]
    energy = TensorBlock(numbers["energy"][:, None], structures, [], labels("property", [0]))
    energy.add_gradient(
        "positions",
        TensorBlock(
            numbers["gradient"][..., None],
            labels(["sample", "system", "atom"], rows),
            cartesian(),
            energy.properties,
        ),
    )
    polarizability = tensormap(
        ["o3_lambda", "o3_sigma"],
        [[0, 1], [2, 1]],
        [numbers["polarizability"][:, :1], numbers["polarizability"][:, 1:]],
        structures,
        [mu(0), mu(2)],
    )
    return {
        "energy": TensorMap(labels("_", [0]), [energy]),
        "dipole": tensormap("_", [0], [numbers["dipole"]], structures, [cartesian()]),
        "polarizability": polarizability,
        "charges": tensormap("_", [0], [numbers["charges"]], atoms, [[]]),
    }


class SmallDataset(torch.utils.data.Dataset):
    """Random molecules whose targets are smooth functions of the positions; records its reads.

    ``factors`` multiply targets by name (a change of units); ``total`` sets the size of the
    composition energy.
    """

    def __init__(
        self, size: int, seed: int = 0, factors: dict[str, float] | None = None, total: float = -1e3
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.reads: list[int] = []
        self.items = []
        factors = factors or {}
        for index in range(size):
            n_atoms = 1 + (index * 7) % 5
            chosen = torch.randint(0, 3, (n_atoms,), generator=generator)
            r = torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
            k = 1.0 + chosen.double()
            numbers = {
                "energy": ((k * r.square().sum(1)).sum() + total * k.sum()).reshape(1),
                "gradient": 2 * k[:, None] * r,
                "dipole": 0.2 * (k[:, None] * r).sum(0)[None],
                "polarizability": torch.cat(
                    [
                        30 * k.sum().reshape(1) + r.square().sum(),
                        torch.randn(5, generator=generator).double(),
                    ]
                )[None],
                "charges": 0.1 * k * r[:, 0] + 0.3 * k,
            }
            for name, factor in factors.items():
                for part in (name, "gradient") if name == "energy" else (name,):
                    numbers[part] = numbers[part] * factor
            system = System(
                TYPES[chosen].int(), r, torch.zeros(3, 3).double(), torch.tensor([False] * 3)
            )
            self.items.append((system, numbers))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads.append(index)
        return self.items[index]


def collate(items: Sequence[Any]) -> dict[str, Any]:
    systems = [system for system, _ in items]
    numbers = {name: torch.cat([n[name] for _, n in items]) for name in items[0][1]}
    return {"system": systems, **target_maps([len(s) for s in systems], numbers)}


class SmallData(LightningDataModule):
    """Loaders over the small dataset, with an incomplete last batch."""

    def __init__(
        self,
        size: int = 22,
        batch_size: int = 4,
        collate_fn: Callable[[Any], Any] = collate,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size, self.collate_fn, self.shuffle = batch_size, collate_fn, shuffle
        self.train, self.held_out = SmallDataset(size, 0, **options), SmallDataset(9, 1, **options)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train, batch_size=self.batch_size, shuffle=self.shuffle, collate_fn=self.collate_fn
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, batch_size=self.batch_size, collate_fn=self.collate_fn)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()


class Stream(IterableDataset[Any]):
    """Items that can be read in their order alone."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class ShuffledBatches(BatchSampler):
    """A batch sampler that draws from a generator of its own."""

    def __init__(self, sampler: Any, size: int, generator: torch.Generator) -> None:
        super().__init__(sampler, size, drop_last=False)
        self.generator = generator

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        order = torch.randperm(len(batches), generator=self.generator).tolist()
        return iter([batches[i] for i in order])


class PlainNet(LightningModule):
    """Energies by autograd, and the other targets, from a few weights per atomic type."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(3)
        self.weights = torch.nn.Parameter(torch.randn(3, 4))
        self.matrix = torch.nn.Parameter(torch.randn(3, 5))
        self.forward_dtypes: set[torch.dtype] = set()

    def forward(self, systems: Sequence[System]) -> Targets:
        # On the CPU even if the weights are not: the network itself is not tested.
        device, systems = self.weights.device, [system.to("cpu") for system in systems]
        counts = [len(system) for system in systems]
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        types = torch.cat([system.types for system in systems])
        weights = self.weights.cpu()[(types[:, None] == TYPES).long().argmax(1)]
        matrix = self.matrix.cpu()[(types[:, None] == TYPES).long().argmax(1)]
        with torch.enable_grad():
            r = torch.cat([s.positions for s in systems]).detach().requires_grad_()
            self.forward_dtypes.add(r.dtype)
            atomic = weights[:, 0] * r.square().sum(1) + weights[:, 1]
            (gradient,) = torch.autograd.grad(atomic.sum(), r, create_graph=self.training)

        def summed(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(counts), *values.shape[1:]).index_add_(0, owner, values)

        numbers = {
            "energy": summed(atomic),
            "gradient": gradient,
            "dipole": summed(weights[:, 2:3] * r),
            "polarizability": summed(torch.cat([weights[:, 3:], matrix], 1)),
            "charges": weights[:, 1] * r[:, 0] + weights[:, 2],
        }
        maps = target_maps(counts, numbers)
        return {name: tensor.to(device) for name, tensor in maps.items()}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch["system"])["energy"].block().values.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class SmallNet(TargetScalingMixin, PlainNet):
    """The network with target scaling; records the losses of its training steps."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr=lr)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss


class ZeroNet(SmallNet):
    """Predicts zeros."""

    def forward(self, systems: Sequence[System]) -> Targets:
        return {name: multiply(tensor, 0.0) for name, tensor in super().forward(systems).items()}


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """A real Trainer on the CPU, without logger, progress bars and checkpoints by default."""
    return Trainer(**quiet_options(folder, **options))


def quiet_options(folder: Path, **options: Any) -> dict[str, Any]:
    """The arguments of :func:`quiet_trainer`."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return {**defaults, **options}


def scaler_callback(**options: Any) -> TargetScaler:
    """TargetScaler for the small data, whose dipole and polarizability are intensive."""
    return TargetScaler(**{"intensive_targets": ["dipole", "polarizability"], **options})


def fitted_numbers(state: dict[str, Any]) -> dict[tuple[Any, ...], torch.Tensor]:
    """All fitted tensors in the state of a Scaler, by target and name; pooled rows included."""
    numbers = {}
    for target, saved in state["targets"].items():
        for name in ("types", "per_target"):
            numbers[target, name] = saved[name]
        for name in ("per_property", "weights"):
            for key, values in saved[name]:
                numbers[target, name, tuple(key)] = values
        for term, value in saved.get("mean_squares", {}).items():
            numbers[target, "mean_squares", term] = torch.tensor(value, dtype=torch.float64)
    return numbers


def assert_same_numbers(first: dict[str, Any], second: dict[str, Any], rtol: float = 0.0) -> None:
    """Two states have the same scales and baselines; weights may differ by ten times ``rtol``."""
    ours, theirs = fitted_numbers(first), fitted_numbers(second)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        allowed = 10 * rtol if "weights" in name else rtol
        torch.testing.assert_close(values, theirs[name], rtol=allowed, atol=0.0)


def assert_same_scales(first: Scaler, second: Scaler, rtol: float = 0.0) -> None:
    assert_same_numbers(first.state(), second.state(), rtol)


def per_target_scales(scaler: Scaler, target: str) -> list[float]:
    """The per-target scale of each atomic type, or the only one."""
    return scaler.per_target_scales[target].block(0).values[:, 0].tolist()


def baseline_weights(scaler: Scaler, target: str) -> list[dict[int, float]]:
    """The contribution of each atomic type, for each block with a baseline."""
    saved = scaler.state()["targets"][target]
    types = saved["composition_types"].tolist()
    return [dict(zip(types, w[:, 0].tolist(), strict=True)) for _, w in saved["weights"]]


def mean_squared_error(
    predictions: Targets,
    targets: Targets,
    mean_squares: dict[str, float] | None = None,
    weights: dict[str, float] | None = None,
) -> torch.Tensor:
    """The default loss of a batch, without a Scaler."""
    return loss_terms(predictions, targets, mean_squares or {}).weighted_mean(weights or {})
