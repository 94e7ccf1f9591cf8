"""The model file that ``lightning-scaler-export`` writes."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..deploy import export
from ..reports import print_text
from .parts import build


def write_model(config: DictConfig) -> None:
    """Export the network and the scales of a checkpoint, as ``configs/export.yaml`` says.

    Raises:
        ValueError: without a checkpoint or a file to write, without the additive module of the
            training, and for what :func:`export` refuses.
        OSError: if there is no such checkpoint, or the file cannot be written.
        RuntimeError: for a checkpoint of another model, or without scales.
    """
    _check_files(config)
    path = Path(config.out)
    module = build(config.module)
    additive = module.scaler.additive
    if config.baseline is not None:
        module.scaler.set_additive(build(config.baseline))
    elif additive is not None:
        raise ValueError(
            f"baseline: expected the additive module {additive.name} of the training, whose code "
            "is not in the checkpoint, got none; write it as in the training, such as "
            "baseline='{_target_: lightning_scaler.ZBL}'"
        )
    export(
        module.network,
        module.scaler,
        path,
        outputs=config.outputs,
        length_unit=config.length_unit,
        interaction_range=module.network.interaction_range,
        atomic_types=config.atomic_types,
    )
    print_text(f"The model is in {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _check_files(config: DictConfig) -> None:
    for name, expected, example in (
        ("ckpt_path", "the checkpoint of a training", "outputs/.../last.ckpt"),
        ("out", "the file to write", "model.pt"),
    ):
        if OmegaConf.is_missing(config, name):
            raise ValueError(f"{name}: expected {expected}, got none; add {name}={example}")
    checkpoint = str(config.ckpt_path)
    if "://" not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"ckpt_path: there is no file '{checkpoint}'")
