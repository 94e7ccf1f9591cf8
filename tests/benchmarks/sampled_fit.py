"""How well a sampled fit states its error: that of ``TargetScaler(relative_error=0.03)``.

Run by hand, five minutes on one core:

    python tests/benchmarks/sampled_fit.py --draws 200

There are 40 000 structures of H, C and O in 1250 batches. Their energies are a composition and,
for each atom, a residual: normal; skewed (lognormal, minus its mean); or ordered, where blocks of
1000 structures, as of one molecule, differ in the size of their residuals. Every draw reads them in
another random order: of the samples, as the callback does, or of batches of consecutive samples.

The error stated is the standard error that a fit estimates, relative to the scale: its median and
its root mean square over the draws. The error found is the root mean square of the relative
difference from the scale of all structures, and the last column the fraction of draws in which this
is more than twice the error stated: 5 % if both were normal. For normal residuals the error after n
structures is known: sqrt((1 - f) / 2n), 1.20 % after 100 batches.
"""

import argparse
import math
import statistics
import time

import torch

from lightning_scaler import CompositionBaseline, PerStructure, ScaleAccumulator
from lightning_scaler.data_pass.pass_statistics import SampledPass
from lightning_scaler.data_pass.processes import FitProcesses
from lightning_scaler.fitting import merged

SIZE, BATCH_SIZE, BLOCK = 40_000, 32, 1000
N_BATCHES = SIZE // BATCH_SIZE
RELATIVE_ERROR = 0.03
KINDS = ("normal", "skewed", "ordered")


class Data:
    """Structures with energies, one after another."""

    def __init__(self, kind, size=SIZE, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.n_atoms = torch.randint(3, 10, (size,), generator=generator)
        n_all = int(self.n_atoms.sum())
        self.types = torch.tensor([1, 6, 8])[torch.randint(0, 3, (n_all,), generator=generator)]
        self.first_atom = self.n_atoms.cumsum(0) - self.n_atoms
        residual = torch.randn(size, generator=generator, dtype=torch.float64)
        if kind == "skewed":
            residual = residual.exp() - math.exp(0.5)
        if kind == "ordered":
            sizes = torch.randn(math.ceil(size / BLOCK), generator=generator).double().mul(0.5)
            residual *= sizes.exp().repeat_interleave(BLOCK)[:size]
        of_type = torch.tensor([-10.0, -1000.0, -2000.0]).double()[self.types // 3]
        owner = torch.arange(size).repeat_interleave(self.n_atoms)
        composition = torch.zeros(size, dtype=torch.float64).index_add_(0, owner, of_type)
        self.energies = composition + self.n_atoms * residual

    def batch(self, indices):
        """The batch of some structures, as plain tensors."""
        atoms = torch.cat(
            [
                self.types[first : first + n]
                for first, n in zip(
                    self.first_atom[indices].tolist(), self.n_atoms[indices].tolist(), strict=True
                )
            ]
        )
        return {"z": atoms, "n_atoms": self.n_atoms[indices], "energy": self.energies[indices]}


def empty():
    return ScaleAccumulator(targets={"energy": PerStructure()}, baseline=CompositionBaseline())


def scale_of(accumulator):
    return accumulator.compute().per_target_scales["energy"].block().values.item()


def batches_of(order, consecutive, size=SIZE, batch_size=BATCH_SIZE):
    """Batches of indices in random order: of samples, or of batches of consecutive samples."""
    if consecutive:
        in_turn = torch.arange(size).split(batch_size)
        return [in_turn[i] for i in torch.randperm(len(in_turn), generator=order).tolist()]
    return list(torch.randperm(size, generator=order).split(batch_size))


class Recording(SampledPass):
    """Keeps the number of batches, the error stated and the scale at every estimate."""

    def _estimate(self, complete):
        n_batches, sample = super()._estimate(complete)
        self.found = [*getattr(self, "found", ()), (n_batches, sample, self._scale())]
        return n_batches, sample

    def _scale(self):
        return scale_of(merged(self._merged))


def read(data, batches):
    """What is found after 100 batches, and at the end of the pass."""
    one = Recording(empty(), RELATIVE_ERROR, FitProcesses(), len(batches), shared=True)
    for indices in one.batches(batches):
        one.next_group().update(data.batch(indices))
    return one.found[0], one.found[-1]


def rms(values):
    return math.sqrt(sum(value * value for value in values) / len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| data, order | until | batches | stated: median | RMS | found: RMS | beyond 2 stated |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        data, everything = Data(kind), empty()
        for indices in torch.arange(SIZE).split(1000):
            everything.update(data.batch(indices))
        exact = scale_of(everything)
        for consecutive in (False, True) if kind == "ordered" else (False,):
            seeds = map(torch.Generator().manual_seed, range(arguments.draws))
            drawn = [read(data, batches_of(seed, consecutive)) for seed in seeds]
            how = f"{kind}, {'consecutive' if consecutive else 'random'}"
            print_row(how, "100 batches", [first for first, _ in drawn], exact)
            print_row(how, f"relative_error={RELATIVE_ERROR}", [last for _, last in drawn], exact)
    print(f"{time.process_time():.0f} s of processor time")


def print_row(how, until, results, exact):
    """A line of the table."""
    stated = [sample.largest for _, sample, _ in results]
    found = [scale / exact - 1.0 for _, _, scale in results]
    beyond = [abs(error) > 2.0 * of_sample for error, of_sample in zip(found, stated, strict=True)]
    fraction = sum(beyond) / len(beyond)
    n_batches = sum(n for n, _, _ in results) / len(results)
    print(
        f"| {how} | {until} | {n_batches:.0f} | {percent(statistics.median(stated))} | "
        f"{percent(rms(stated))} | {percent(rms(found))} | {100 * fraction:.0f} % |",
        flush=True,
    )


def percent(value):
    return f"{100 * value:.2f} %"


if __name__ == "__main__":
    main()
