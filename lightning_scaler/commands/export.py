"""The command ``lightning-scaler-export``: a trained model as one file for simulation engines."""

import warnings
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from ..settings import kind_of
from .config_files import command_configs
from .running import build, check_ckpt_path, hydra_errors


@hydra.main(version_base="1.3", config_path=str(command_configs()), config_name="export")
def main(config: DictConfig) -> None:
    """Write the model of a checkpoint; see ``configs/export.yaml``."""
    # Raised by the use of torch in metatensor and e3nn; users cannot do anything about it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.")
    with hydra_errors("lightning-scaler-export"):
        write_model(config)


def write_model(config: DictConfig) -> None:
    """Export the network and the scales of a checkpoint, as ``configs/export.yaml`` says.

    Raises:
        ValueError: without a checkpoint or a file to write, for a file that is no checkpoint, or
            one of another model, without the additive module of the training, and for what
            :func:`export` refuses.
        TypeError: for a module without network or scaler.
        OSError: if there is no such checkpoint, or the file cannot be written.
        RuntimeError: for a checkpoint without scales.
    """
    # Importing torch takes seconds, which --help and misspelled overrides need not wait for.
    from ..deploy import export
    from ..reports import print_text
    from ..tensors import check_writable, loading_weights

    _check_files(config)
    path = Path(str(config.out))
    check_writable(path)
    way_out = "for a module of your own, set module._target_=my_project.Net.load_from_checkpoint"
    with loading_weights(config.ckpt_path, way_out):
        module = build(config.module)
    for attribute in ("network", "scaler"):
        if not hasattr(module, attribute):
            raise TypeError(
                "module: expected a module with the attributes 'network' and 'scaler', got "
                f"{kind_of(module)} without '{attribute}'; set module._target_ to the "
                "load_from_checkpoint of a LightningModule with both, or call "
                "lightning_scaler.export in Python"
            )
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
        if OmegaConf.is_missing(config, name) or config[name] in (None, ""):
            raise ValueError(f"{name}: expected {expected}, got none; add {name}={example}")
    check_ckpt_path(config.ckpt_path)


if __name__ == "__main__":
    main()
