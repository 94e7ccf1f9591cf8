"""The command ``lightning-scaler-train``: train, test or predict, configured with Hydra."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..settings import check_choice
from .config_files import command_configs
from .running import build, check_ckpt_path, prepare_run

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

# Importing torch takes seconds, which --help and misspelled overrides need not wait for: it is
# imported after the configuration was read.

# Hydra refuses null for a group of configs.
LEFT_OUT = {
    "logger=null": ["~logger"],
    "callbacks=null": ["callbacks=[]", "callbacks.target_scaler=null"],
}

# Values of ckpt_path that are no files.
LIGHTNING_WORDS = (None, "last", "best", "hpc")

Task = Literal["train", "test", "predict"]


class TestedData(Protocol):
    """A ``LightningDataModule`` with names for its test loaders."""

    test_names: Sequence[str]


def main() -> None:
    """Run the command with the arguments in ``sys.argv``; ``group=null`` leaves a group out."""
    arguments = [LEFT_OUT.get(argument, [argument]) for argument in sys.argv[1:]]
    sys.argv[1:] = [word for words in arguments for word in words]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # progress bars have characters of their own
            stream.reconfigure(errors="replace")
    run()


@hydra.main(version_base="1.3", config_path=str(command_configs()), config_name="train")
def run(config: DictConfig) -> None:
    """Run the task of a configuration composed from ``configs/train.yaml``.

    Raises:
        ValueError: for an unknown task, a missing checkpoint, a file that is none or one of another
            model, or a prediction by several processes.
        OSError: if there is no such checkpoint.
        InstantiationException: if a part of the configuration cannot be built.
    """
    from ..reports import print_text
    from ..tensors import loading_weights

    check_choice("task", config.task, Task)
    if config.task != "train" and config.ckpt_path is None:
        raise ValueError(
            f"task={config.task}: expected a checkpoint, got none; add ckpt_path=<file> (training "
            "writes last.ckpt to its output folder)"
        )
    if config.ckpt_path not in LIGHTNING_WORDS:
        check_ckpt_path(config.ckpt_path)
    prepare_run(config)
    data = build(config.data)
    model: LightningModule = build(config.model)
    callbacks = _build_callbacks(config)
    _check_scales(config, model, callbacks)
    logger = OmegaConf.select(config, "logger")
    trainer: Trainer = build(
        config.trainer, callbacks=callbacks, logger=build(logger) if logger else False
    )
    if config.task == "predict" and trainer.world_size > 1:
        raise ValueError(
            f"task=predict: expected one process, got {trainer.world_size}; predictions are "
            "written in the order of the data, so set trainer.devices=1"
        )
    way_out = "give the settings of its training, such as model.channels=4"
    with loading_weights(config.ckpt_path, way_out) if config.ckpt_path else nullcontext():
        if config.task == "train":
            trainer.fit(model, data, ckpt_path=config.ckpt_path, weights_only=True)
            _test(trainer, model, data, None)
        elif config.task == "test":
            _test(trainer, model, data, config.ckpt_path)
        else:
            _predict(trainer, model, data, config.ckpt_path)
    if trainer.is_global_zero:
        print_text(f"Results are in {HydraConfig.get().runtime.output_dir}")


def _build_callbacks(config: DictConfig) -> list[Callback]:
    """The callbacks of the configuration, without those set to ``null``."""
    callbacks = []
    for name, callback in (config.callbacks or {}).items():
        if callback is None:
            continue
        if "_target_" not in callback:
            raise ValueError(
                f"callbacks.{name}: expected the class in _target_, got {sorted(callback)}; write "
                f"callbacks.{name}=null to leave this callback out"
            )
        callbacks.append(build(callback))
    return callbacks


def _check_scales(config: DictConfig, model: LightningModule, callbacks: list[Callback]) -> None:
    from ..steps import TargetScalingMixin
    from ..training import TargetScaler

    fitted = not isinstance(model, TargetScalingMixin) or model.scaler.fitted
    fits = any(isinstance(callback, TargetScaler) for callback in callbacks)
    if config.ckpt_path is None and not fitted and not fits:
        raise ValueError(
            "callbacks: expected a TargetScaler, which fits the scales of the targets, got "
            f"{[type(callback).__name__ for callback in callbacks]}; write scale_targets=false to "
            "train without scales"
        )


def _test(
    trainer: Trainer, model: LightningModule, data: TestedData, ckpt_path: str | None
) -> None:
    from ..reports import errors_table, print_tables, write_tables
    from ..steps import TargetScalingMixin

    results = trainer.test(model, data, ckpt_path=ckpt_path, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        units = model.scaler.units if isinstance(model, TargetScalingMixin) else {}
        tables = [
            errors_table(f"Test errors: unseen {name}", errors, units)
            for name, errors in zip(data.test_names, results, strict=True)
        ]
        print_tables(*tables)
        write_tables(Path(HydraConfig.get().runtime.output_dir) / "test_errors.txt", *tables)


def _predict(trainer: Trainer, model: LightningModule, data: TestedData, ckpt_path: str) -> None:
    import metatensor.torch as mts

    from ..batches import join_predictions

    batches = trainer.predict(model, data, ckpt_path=ckpt_path, weights_only=True) or []
    for name, predictions in zip(data.test_names, batches, strict=True):
        folder = Path(HydraConfig.get().runtime.output_dir) / "predictions" / name
        folder.mkdir(parents=True, exist_ok=True)
        for target, tensor in join_predictions(predictions).items():
            mts.save(str(folder / f"{target}.mts"), tensor)


if __name__ == "__main__":
    main()
