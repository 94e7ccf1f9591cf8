"""The scales of a module in a checkpoint of Lightning, and when it is restored."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..scaling import Scaler

# The scales have a key of their own besides the state dict, of which some strategies load
# parameters and buffers alone.
CHECKPOINT_KEY = "target_scaler"


def save_scales(scaler: Scaler, checkpoint: dict[str, Any], attribute: str) -> None:
    """Write the scales into a checkpoint, under a key of their own and in its state dict.

    The state dict may be that of a copy of the module from before the fit: callbacks that average
    weights save one.

    Args:
        scaler: scaler of a module.
        checkpoint: checkpoint of the module.
        attribute: name under which the module holds the scaler.
    """
    state, key = scaler.get_extra_state(), f"{attribute}._extra_state"
    checkpoint[CHECKPOINT_KEY] = state
    if key in checkpoint.get("state_dict", {}):
        checkpoint["state_dict"][key] = state


def load_scales(scaler: Scaler, checkpoint: dict[str, Any], attribute: str) -> None:
    """Restore scales from a checkpoint; say so if it has none. See :func:`save_scales`."""
    if CHECKPOINT_KEY in checkpoint:
        scaler.set_extra_state(checkpoint[CHECKPOINT_KEY])
    elif f"{attribute}._extra_state" in checkpoint.get("state_dict", {}):
        pass  # Lightning loads the state dict afterwards.
    elif scaler.fitted:
        rank_zero_info(
            "the checkpoint has no target scales; those that the module already has are kept"
        )
    else:
        rank_zero_warn(
            "the checkpoint has no target scales, and neither has the module: a TargetScaler will "
            "fit new ones. If the weights were trained with scales, give the module those first: "
            f"module.{attribute} = Scaler.load(...)"
        )


def restores_later(trainer: Trainer) -> bool:
    """Whether a checkpoint is restored, in whole or in part, after ``on_fit_start``.

    Some strategies restore the weights then; the state of loops and loaders always comes later.
    """
    return trainer.strategy.restore_checkpoint_after_setup or trainer.ckpt_path is not None
