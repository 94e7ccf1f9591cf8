"""Time that plain tensors add to the conversions of a training step, on the embedded molecules.

``python tests/benchmarks/plain_tensors.py [--times N]`` converts a batch of 32, its targets and as
many predictions, in turns from plain tensors and from TensorMaps that are there already.
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
    """Systems of the embedded molecules, and their batch as a dict of plain tensors."""
    data = MoleculesDataModule(batch_size=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    values = {
        name: [block.values for block in tensor.blocks()]
        for name, tensor in batch.items()
        if name != "system"
    }
    gradient = batch["energy"].block().gradient("positions").values
    return batch["system"], {
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
    """The processor time that one call takes, and its result."""
    start = time.process_time()
    result = function()
    return 1000 * (time.process_time() - start), result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=400)
    times = parser.parse_args().times
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    systems, batch = plain_batch()
    accumulator = ScaleAccumulator(DECLARED, baseline=CompositionBaseline())
    accumulator.update(batch)
    scaler = accumulator.compute()

    def convert(systems, targets, predict):
        atoms = read_atoms(systems)
        in_loss = targets_to_loss(scaler, atoms, targets, None, torch.float32)
        return predictions_to_loss(scaler, atoms, predict(in_loss), in_loss)

    def from_plain_tensors():
        declared = DeclaredBatch(batch, scaler.declaration)
        targets = declared.targets()
        return convert(declared, targets, lambda needed: declared.predictions(batch, needed))

    targets = DeclaredBatch(batch, scaler.declaration).targets()
    predictions = DeclaredBatch(batch, scaler.declaration).predictions(batch)

    def from_tensormaps():
        return convert(systems, targets, lambda needed: predictions)

    plain, tensormaps = [], []
    for turn in range(times + 20):
        taken, _ = milliseconds(from_plain_tensors)
        other, _ = milliseconds(from_tensormaps)
        if turn >= 20:  # TorchScript compiles in the first turns
            plain.append(taken)
            tensormaps.append(other)
    ratio = median(a / b - 1.0 for a, b in zip(plain, tensormaps, strict=True))
    print(f"from plain tensors: {median(plain):.2f} ms")
    print(f"from TensorMaps: {median(tensormaps):.2f} ms")
    print(f"what plain tensors add: {ratio:.2f}")


if __name__ == "__main__":
    main()
