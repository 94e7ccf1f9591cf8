"""Makes the pictures in docs/pictures.md: `python docs/images/make_images.py`."""

import tempfile
from pathlib import Path

from lightning import Trainer
from PIL import Image

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

HERE = Path(__file__).parent
# Enough for colours, shades of grey, and the edges of letters.
N_COLOURS = 128


def shrink(source: Path, name: str) -> None:
    """Store a picture with few colours, which takes a third of the space."""
    with Image.open(source) as picture:
        few = picture.convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE)
        few.save(HERE / name, optimize=True)


with tempfile.TemporaryDirectory() as folder:
    data, model = MoleculesDataModule(), MoleculesModel()
    units = {name: data.units[name] for name in ("energy", "energy/positions", "charges")}
    scaler = TargetScaler(targets=["energy", "charges"], report=True, units=units)
    options = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder}
    Trainer(
        max_epochs=0, limit_val_batches=0, accelerator="cpu", callbacks=[scaler], **options
    ).fit(model, data)
    shrink(Path(folder, "target_distributions.png"), "distributions.png")

    model = MoleculesModel()
    scaler = TargetScaler(intensive_targets=["dipole"], units=data.units)
    Trainer(
        max_epochs=0, limit_val_batches=0, accelerator="cpu", callbacks=[scaler], **options
    ).fit(model, data)
    targets = ["energy", "dipole", "polarizability", "charges", "populations"]
    figure, _ = model.scaler.plot(targets)
    figure.savefig(Path(folder, "scales.png"), dpi=110)
    shrink(Path(folder, "scales.png"), "scales.png")
