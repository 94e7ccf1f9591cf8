"""What ``lightning-scaler-train`` does once its configuration is there."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import metatensor.torch as mts
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from rich.console import Console

from ..reports import errors_table
from ..settings import check_choice
from .predictions import joined

Task = Literal["train", "test", "predict"]


class TestedData(Protocol):
    """A ``LightningDataModule`` that names its test loaders and the units of its targets."""

    test_names: Sequence[str]
    units: Mapping[str, str]


def run(config: DictConfig) -> None:
    """Run the task of a configuration composed from ``configs/lightning_scaler/train.yaml``.

    Raises:
        ValueError: for an unknown task, or one that needs a checkpoint and has none.
    """
    check_choice("task", config.task, Task)
    if config.task != "train" and config.ckpt_path is None:
        raise ValueError(
            f"task={config.task}: expected a checkpoint, got none; add ckpt_path=<file> (training "
            "writes last.ckpt into the folder of its run)"
        )
    # About Lightning's use of torch; nothing that the one who reads it could change.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(config.threads)
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    model: LightningModule = instantiate(config.model)
    trainer: Trainer = instantiate(
        config.trainer,
        callbacks=[instantiate(callback) for callback in config.callbacks.values()],
        logger=instantiate(config.logger),
    )
    if config.task == "train":
        trainer.fit(model, data, ckpt_path=config.ckpt_path, weights_only=True)
        _test(trainer, model, data, None)
    elif config.task == "test":
        _test(trainer, model, data, config.ckpt_path)
    elif trainer.world_size > 1:
        raise ValueError(
            f"task=predict: expected one process, got {trainer.world_size}; predictions are "
            "written in the order of the data, so set trainer.devices=1"
        )
    else:
        _predict(trainer, model, data, config.ckpt_path)
    if trainer.is_global_zero:
        print(f"Results are in {HydraConfig.get().runtime.output_dir}")


def _test(
    trainer: Trainer, model: LightningModule, data: TestedData, ckpt_path: str | None
) -> None:
    results = trainer.test(model, data, ckpt_path=ckpt_path, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        for name, errors in zip(data.test_names, results, strict=True):
            Console().print(errors_table(f"Test errors: unseen {name}", errors, data.units))


def _predict(trainer: Trainer, model: LightningModule, data: TestedData, ckpt_path: str) -> None:
    batches = trainer.predict(model, data, ckpt_path=ckpt_path, weights_only=True) or []
    for name, predictions in zip(data.test_names, batches, strict=True):
        folder = Path(HydraConfig.get().runtime.output_dir) / "predictions" / name
        folder.mkdir(parents=True, exist_ok=True)
        for target, tensor in joined(predictions).items():
            mts.save(str(folder / f"{target}.mts"), tensor)
