"""Time and memory of a fit over many structures on disk, in one process and in two.

Run by hand:

    python tests/benchmarks/scale.py --structures 100000 --atoms 100

Energies and forces of random structures are written to one file, which is then removed from the
page cache of the system. Each process reads its shard twice: by a loop over its structures alone,
and by `collect_statistics`, the data pass of a training. The memory of each is noted ten times on
its way, so that growth would be seen. Other work on the machine changes wall times; processor times
change less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch.utils.data import DataLoader, Dataset

BATCH = 32
TYPES = np.array([1, 6, 7, 8, 16])


class Types:
    """The types of one structure, which is all that a fit needs to know of it."""

    def __init__(self, types: torch.Tensor) -> None:
        self.types = types

    def __len__(self) -> int:
        return len(self.types)


class Structures(Dataset[Any]):
    """Structures of one file: types, forces and energy, record after record."""

    def __init__(self, path: Path, n_atoms: int) -> None:
        self.path, self.n_atoms = path, n_atoms
        self.record = np.dtype(
            [("types", "i4", n_atoms), ("energy", "f8"), ("forces", "f8", (n_atoms, 3))]
        )
        self.file: int | None = None

    def __len__(self) -> int:
        return self.path.stat().st_size // self.record.itemsize

    def __getitem__(self, index: int) -> Any:
        if self.file is None:
            self.file = os.open(self.path, os.O_RDONLY)
        # Not a memory map, whose pages would count as memory of the process.
        raw = os.pread(self.file, self.record.itemsize, index * self.record.itemsize)
        return np.frombuffer(raw, self.record)[0]


def write(path: Path, n_structures: int, n_atoms: int) -> None:
    """Random structures, whose energies are those of their atoms and some noise."""
    record, generator = Structures(path, n_atoms).record, np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, n_structures, 1000):
            chunk = np.zeros(min(1000, n_structures - start), record)
            chunk["types"] = generator.choice(TYPES, chunk["types"].shape)
            chunk["energy"] = -100.0 * chunk["types"].sum(1) + generator.normal(size=len(chunk))
            chunk["forces"] = generator.normal(size=chunk["forces"].shape)
            file.write(chunk.tobytes())
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def collate(items: list[Any]) -> dict[str, Any]:
    """A batch with energies, and forces as their gradients."""
    types = torch.from_numpy(np.stack([item["types"] for item in items]))
    n_systems, n_atoms = types.shape
    owner = torch.arange(n_systems).repeat_interleave(n_atoms)
    rows = torch.stack([owner, owner, torch.arange(n_atoms).repeat(n_systems)], 1)
    energies = torch.from_numpy(np.stack([item["energy"] for item in items])).reshape(-1, 1)
    forces = torch.from_numpy(np.concatenate([item["forces"] for item in items]))
    properties = Labels("energy", torch.zeros(1, 1, dtype=torch.int64))
    systems = Labels("system", torch.arange(n_systems).reshape(-1, 1))
    block = TensorBlock(energies, systems, [], properties)
    gradient = TensorBlock(
        -forces[..., None],
        Labels(["sample", "system", "atom"], rows),
        [Labels("xyz", torch.arange(3).reshape(-1, 1))],
        properties,
    )
    block.add_gradient("positions", gradient)
    energy = TensorMap(Labels("_", torch.zeros(1, 1, dtype=torch.int64)), [block])
    return {"system": [Types(t) for t in types], "energy": energy}


class StructuresOnDisk(LightningDataModule):
    """A loader over the file, which notes the memory of the process on its way."""

    def __init__(self, data: Structures, of_this_process: int) -> None:
        super().__init__()
        self.data = data
        self.memory: list[float] = []
        self.n_batches, self.every = 0, max(1, of_this_process // BATCH // 10)

    def note(self, items: list[Any]) -> dict[str, Any]:
        """A batch."""
        self.n_batches += 1
        if self.n_batches % self.every == 0:
            self.memory.append(resident_megabytes())
        return collate(items)

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the data pass."""
        return DataLoader(self.data, BATCH, collate_fn=self.note)


def resident_megabytes() -> float:
    """Memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def run_shard(path: Path, n_atoms: int, shard: int, n_shards: int) -> None:
    """Read a shard of the file in both ways; print the numbers, and save the statistics."""
    from lightning_scaler import TargetScaler
    from lightning_scaler.training import collect_statistics

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = Structures(path, n_atoms)
    mine = range(shard, len(data), n_shards)
    found = {}
    start = time.perf_counter(), time.process_time()
    for i in range(0, len(mine), BATCH):
        collate([data[k] for k in mine[i : i + BATCH]])
    found["reading"] = [time.perf_counter() - start[0], time.process_time() - start[1]]
    module = StructuresOnDisk(data, len(mine))
    start = time.perf_counter(), time.process_time()
    accumulator = collect_statistics(module, TargetScaler(), shard, n_shards)
    found["fit pass"] = [time.perf_counter() - start[0], time.process_time() - start[1]]
    accumulator.save(path.parent / f"{n_shards}-{shard}.statistics")
    print(json.dumps({**found, "memory": module.memory}))


def main() -> None:
    """Write the data, fit them with each number of processes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=3200)
    parser.add_argument("--atoms", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shard", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shard:
        path, shard, n_shards = options.shard
        run_shard(Path(path), options.atoms, int(shard), int(n_shards))
        return
    from lightning_scaler import ScaleAccumulator

    title = f"{options.structures} structures of {options.atoms} atoms"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.bin"
        write(path, options.structures, options.atoms)
        print(f"{title}, {path.stat().st_size / 1e6:.0f} MB, batches of {BATCH}")
        print(f"{'seconds':24s}{'wall':>10s}{'processor':>12s}{'of reading':>12s}   memory, MB")
        for n_shards in options.processes:
            command = [
                sys.executable,
                __file__,
                "--atoms",
                str(options.atoms),
                "--shard",
                str(path),
            ]
            start = time.perf_counter()
            running = [
                subprocess.Popen(
                    [*command, str(shard), str(n_shards)], stdout=subprocess.PIPE, text=True
                )
                for shard in range(n_shards)
            ]
            answers = [process.communicate()[0] for process in running]
            for shard, answer in enumerate(answers):
                found = json.loads(answer.splitlines()[-1])
                memory = " ".join(f"{megabytes:.0f}" for megabytes in found["memory"])
                share = 100 * found["reading"][1] / found["fit pass"][1]
                for name in ("reading", "fit pass"):
                    wall, processor = found[name]
                    end = f"{share:10.0f} %   {memory}" if name == "fit pass" else ""
                    line = f"{name}, {shard + 1} of {n_shards}"
                    print(f"{line:24s}{wall:10.1f}{processor:12.1f}{end}")
            wall = time.perf_counter() - start
            parts = [
                ScaleAccumulator.load(path.parent / f"{n_shards}-{shard}.statistics")
                for shard in range(n_shards)
            ]
            start = time.perf_counter()
            for part in parts[1:]:
                parts[0].merge(part)
            scales = parts[0].compute().per_target_scales["energy"].block().values
            merged = 1e3 * (time.perf_counter() - start)
            print(f"{'merged in ms, scale':24s}{merged:10.1f}{scales.item():22.15g}")


if __name__ == "__main__":
    main()
