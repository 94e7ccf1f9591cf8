"""Time that plain tensors add to the conversions of a training step, on the embedded molecules.

``python tests/benchmarks/plain_tensors.py [--times N]`` reads a batch of 32 as plain tensors, its
targets and as many predictions, in turns with the conversions that follow for TensorMaps too.
"""

import argparse
import time
import warnings
from statistics import median

import torch

from lightning_scaler import CompositionBaseline, PerAtom, PerStructure, ScaleAccumulator
from lightning_scaler.batches import read_atoms
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.plain_tensors import DeclaredBatch
from lightning_scaler.scaling import predictions_to_loss, targets_to_loss

DECLARED = {
    "energy": PerStructure(gradients={"positions": "-forces"}),
    "dipole": PerStructure(components="xyz", intensive=True),
    "isotropic": PerStructure(components={"spherical": 0}),
    "anisotropic": PerStructure(components={"spherical": 2}),
    "charges": PerAtom(),
    "populations": PerAtom(properties=2),
    "atomic_dipoles": PerAtom(components={"spherical": 1}),
}


def plain_batch():
    """A batch of the embedded molecules as a dict of plain tensors."""
    data = MoleculesDataModule(batch_size=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    values = {
        name: [block.values for block in tensor.blocks()]
        for name, tensor in batch.items()
        if name != "system"
    }
    gradient = batch["energy"].block().gradient("positions").values
    return {
        "z": torch.cat([system.types for system in batch["system"]]),
        "n_atoms": torch.tensor([len(system) for system in batch["system"]]),
        "energy": values["energy"][0],
        "forces": -gradient.squeeze(-1),
        "dipole": values["dipole"][0],
        "isotropic": values["polarizability"][0],
        "anisotropic": values["polarizability"][1],
        "charges": values["charges"][0],
        "populations": values["populations"][0],
        "atomic_dipoles": values["atomic_dipoles"][0],
    }


def milliseconds(function):
    """The time that one call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - start), result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=400)
    times = parser.parse_args().times
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batch = plain_batch()
    accumulator = ScaleAccumulator(DECLARED, baseline=CompositionBaseline())
    accumulator.update(batch)
    scaler = accumulator.compute()

    def read():
        declared = DeclaredBatch(batch, scaler.declaration)
        targets = declared.targets()
        return declared, targets, declared.predictions(batch, needed=targets)

    def convert(declared, targets, predictions):
        atoms = read_atoms(declared)
        in_loss = targets_to_loss(scaler, atoms, targets, None, torch.float32)
        return predictions_to_loss(scaler, atoms, predictions, in_loss)

    reading, converting = [], []
    for turn in range(times + 20):
        of_reading, maps = milliseconds(read)
        of_converting, _ = milliseconds(lambda maps=maps: convert(*maps))
        if turn >= 20:  # TorchScript compiles in the first turns
            reading.append(of_reading)
            converting.append(of_converting)
    ratio = median(a / b for a, b in zip(reading, converting, strict=True))
    print(f"plain tensors as TensorMaps: {median(reading):.2f} ms")
    print(f"conversions of targets and predictions: {median(converting):.2f} ms")
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
