"""The class that a NequIP run needs if it is to be continued from its checkpoints."""

from nequip.train import EMALightningModule

from lightning_scaler import ScaledSteps


class ScaledEMA(ScaledSteps, EMALightningModule):
    at = "model.sole_model"
