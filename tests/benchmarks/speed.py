"""Cost of fitting and applying scales, against metatrain and against the memory's speed.

Run by hand:

    python tests/benchmarks/speed.py --threads 1

All variants of an item take turns in one process, and medians are printed: machines are noisy, so
only ratios mean something. Small batches are fitted many at a time, up to 1024 systems, and the
time of one is printed, so that what is put off until there are more of them counts. The floors are
one ``torch.linalg.vector_norm`` (fit) and one division (apply) of each block's values. Columns of
metatrain stay empty where it cannot be imported.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from bare import bare
from metatensor.torch import TensorMap
from torch.profiler import ProfilerActivity, profile
from workloads import WARM_UP, WORKLOADS, Workload, without_rows, workload

from lightning_scaler import CompositionBaseline, ScaleAccumulator


def medians(variants: dict[str, Callable[[], Callable[[], Any]]], times: int) -> dict[str, float]:
    """Median milliseconds of each variant; a variant gives the call to time."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(WARM_UP + times):
        for name, prepared in variants.items():
            call = prepared()
            start = time.perf_counter()
            call()
            if turn >= WARM_UP:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in taken.items()}


def batches_at_once(work: Workload) -> int:
    """How many batches are fitted in one call to time."""
    return 1 if work.large else max(1, 1024 // len(work.systems))


def ours(work: Workload) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Floors, and this package."""
    n_batches = range(batches_at_once(work))

    def fit(accumulator: ScaleAccumulator) -> None:
        for _ in n_batches:
            accumulator.update(*work[:3])
        accumulator.state()

    values = [block.values for tensor in work.targets.values() for block in tensor.blocks()]
    plain, with_baseline = ScaleAccumulator(), ScaleAccumulator(baseline=CompositionBaseline())
    plain.update(*work[:3])
    with_baseline.update(*work[:3])
    scaler, with_weights = plain.compute(), with_baseline.compute()
    return {
        "fit floor": lambda: (
            lambda: [torch.linalg.vector_norm(each) for _ in n_batches for each in values]
        ),
        "fit": lambda: partial(fit, plain),
        "fit, baseline": lambda: partial(fit, with_baseline),
        "apply floor": lambda: lambda: [each / 2.0 for each in values],
        "apply": lambda: lambda: scaler.convert(work.systems, work.targets),
        "apply, baseline": lambda: lambda: with_weights.convert(work.systems, work.targets),
    }


def metatrain(work: Workload) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What its trainer does with every batch over two passes, and its removal of the scales."""
    from metatrain.scaler._base_scaler import BaseScaler
    from metatrain.utils.per_atom import average_by_num_atoms

    layouts = {name: without_rows(tensor) for name, tensor in work.targets.items()}
    types = torch.cat([system.types for system in work.systems]).unique().tolist()
    scaler = BaseScaler(types, layouts)
    masks = {f"{name}_mask": mask for name, mask in work.masks.items()}
    has_nan = any(b.values.isnan().any() for t in work.targets.values() for b in t.blocks())

    def targets() -> dict[str, TensorMap]:
        # It writes zeros over the NaNs of its input.
        return {k: t.copy() for k, t in work.targets.items()} if has_nan else work.targets

    def fit(targets: dict[str, TensorMap]) -> None:
        for _ in range(batches_at_once(work)):
            scaler.accumulate(work.systems, average_by_num_atoms(targets, work.systems, []), masks)
            if scaler.multi_property_target_names:
                per_atom = average_by_num_atoms(targets, work.systems, [])
                scaler.accumulate_per_property(work.systems, per_atom, masks)

    def apply() -> None:
        scaler(work.systems, work.targets, remove=True, use_per_target_scales=True)

    def prepared_fit() -> Callable[[], None]:
        fresh = targets()
        return lambda: fit(fresh)

    prepared_fit()()
    scaler.fit()
    scaler.fit_per_property()
    return {"fit metatrain": prepared_fit, "apply metatrain": lambda: apply}


COLUMNS = (
    "floor",
    "bare",
    "ours",
    "metatrain",
    "metatrain/ours",
    "metatrain/bare",
    "ours/floor",
    "with baseline",
)


def print_table(chosen: list[str], with_metatrain: bool, times: int) -> None:
    """Milliseconds and ratios of every item, fit above apply."""
    print(f"{'item':22s}{'':6s}" + "".join(f"{column:>15s}" for column in COLUMNS))
    for item in chosen:
        work = WORKLOADS[item]()
        variants = ours(work)
        variants |= bare(work, batches_at_once(work))
        if with_metatrain:
            variants |= metatrain(work)
        taken = medians(variants, times)
        for name in taken:
            if name.startswith("fit"):
                taken[name] /= batches_at_once(work)
        for part in ("fit", "apply"):
            floor, least, own, theirs, baseline = (
                taken.get(f"{part}{suffix}")
                for suffix in (" floor", " bare", "", " metatrain", ", baseline")
            )
            numbers = (
                *map(_milliseconds, (floor, least, own, theirs)),
                _ratio(theirs, own),
                _ratio(theirs, least),
                _ratio(own, floor),
                _milliseconds(baseline),
            )
            row = "".join(f"{number:>15s}" for number in numbers)
            print(f"{item if part == 'fit' else '':22s}{part:6s}{row}", flush=True)


def _milliseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "" if one is None or other is None else f"{one / other:.1f}"


def curves(times: int) -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """Milliseconds against numbers of samples, of types and of batches seen."""
    by_samples: dict[str, list[float]] = {}
    sizes = [10, 30, 100, 300, 1000, 2000]
    for size in sizes:
        taken = medians(ours(workload(["forces"], size, 100, 10, large=True)), times)
        for name in ("fit", "fit, baseline", "apply", "fit floor", "apply floor"):
            by_samples.setdefault(name, []).append(taken[name])
    by_types: dict[str, list[float]] = {}
    types = [5, 10, 20, 40, 89]
    works = {n: workload(["forces", "charges"], 500, 100, n, large=True) for n in types}
    variants = {f"{n} {name}": call for n, w in works.items() for name, call in ours(w).items()}
    taken = medians(variants, times)
    for name in ("fit", "fit, baseline", "apply"):
        by_types[name] = [taken[f"{n} {name}"] for n in types]
    seen, by_batches = [10, 30, 100, 300, 1000], {}
    works_seen = [workload(["energy", "forces", "charges"], 32, 20, 10)] * 2
    for name, baseline in (("fit", None), ("fit, baseline", CompositionBaseline())):
        accumulator, each = ScaleAccumulator(baseline=baseline), []
        for number in range(max(seen)):
            start = time.perf_counter()
            accumulator.update(*works_seen[number % 2][:3])
            each.append(1e3 * (time.perf_counter() - start))
        by_batches[name] = [
            statistics.mean(each[first:last]) for first, last in pairwise([0, *seen])
        ]
    samples = [100 * size for size in sizes]
    return {
        "atoms in the batch (forces)": (samples, by_samples),
        "types (forces and charges of 50 000 atoms)": (types, by_types),
        "batches seen (32 molecules; mean since the last point)": (seen, by_batches),
    }


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that is allocated at once during a call, over what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(accumulate(sizes), default=0)


def print_memory(chosen: list[str]) -> None:
    """The most that an update allocates, and what is kept and what waits afterwards, in kB.

    Updates are repeated until those that wait have been read.
    """
    titles = ("largest block", "peak", "with baseline", "kept after 1, 10, 100")
    print(f"\n{'memory, kB':22s}" + "".join(f"{title:>24s}" for title in titles))
    for item in chosen:
        work = WORKLOADS[item]()
        blocks = [block for tensor in work.targets.values() for block in tensor.blocks()]
        peaks = []
        for baseline in (None, CompositionBaseline()):
            accumulator = ScaleAccumulator(baseline=baseline)
            accumulator.update(*work[:3])
            most = max(
                peak_bytes(partial(accumulator.update, *work[:3]))
                for _ in range(batches_at_once(work))
            )
            peaks.append(most)
        kept = []
        for number in (1, 9, 90):
            for _ in range(number if not work.large else min(number, 9)):
                accumulator.update(*work[:3])
            kept.append(_bytes(accumulator.state()))
        numbers = [max(block.values.nbytes for block in blocks), *peaks]
        kilobytes = [f"{number / 1000:.1f}" for number in numbers]
        kilobytes.append(", ".join(f"{number / 1000:.1f}" for number in kept))
        print(f"{item:22s}" + "".join(f"{number:>24s}" for number in kilobytes), flush=True)


def _bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(_bytes, state)) if isinstance(state, (list, tuple)) else 0


def print_baseline(times: int) -> None:
    """The baseline's share of an update, over so many batches that their reductions count."""
    n_batches = 32
    print(f"\n{'baseline (32 x 20)':42s}{'without':>10s}{'with':>10s}{'share':>10s}")
    for names in (["energy"], ["energy", "forces", "charges"]):
        for n_types in (5, 89):
            work = workload(names, 32, 20, n_types)
            variants = {}
            for name, baseline in (("without", None), ("with", CompositionBaseline())):
                accumulator = ScaleAccumulator(baseline=baseline)

                def run(accumulator: ScaleAccumulator = accumulator, work: Workload = work) -> None:
                    for _ in range(n_batches):
                        accumulator.update(*work[:3])

                variants[name] = partial(lambda call: call, run)
            taken = {name: ms / n_batches for name, ms in medians(variants, times).items()}
            share = 100.0 * (1.0 - taken["without"] / taken["with"])
            title = f"{', '.join(names)}; {n_types} types"
            print(f"{title:42s}{taken['without']:10.3f}{taken['with']:10.3f}{share:8.0f} %")


def print_embedded(times: int) -> None:
    """The fit pass over the embedded molecules."""
    from embedded import fit_pass

    n_batches, variants = fit_pass()
    taken = {name: ms / n_batches for name, ms in medians(variants, times).items()}
    over = taken["fit pass"] - taken["bare iteration"]
    print("\nembedded molecules, ms per batch of 32")
    for name, ms in {**taken, "fit pass over bare iteration": over}.items():
        print(f"{name:32s}{ms:10.3f}")


def plot(found: dict[str, tuple[list[int], dict[str, list[float]]]], path: Path) -> None:
    """The curves as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (title, (x, lines)) in zip(
        figure.subplots(1, len(found)), found.items(), strict=True
    ):
        for name, y in lines.items():
            axes.loglog(x, y, "o-", label=name)
        axes.set(xlabel=title.replace("; ", ";\n"), ylabel="ms")
        axes.set_ylim(0.5 * min(map(min, lines.values())), 2.0 * max(map(max, lines.values())))
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table and the curves, and draw the latter where matplotlib is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, choices=(1, 2))
    parser.add_argument("--times", type=int, default=15, help="calls of each variant, at least 9")
    parser.add_argument("--items", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--curves", type=Path, help="also measure the curves; plot them into this")
    parser.add_argument("--memory", action="store_true", help="also the memory of an update")
    parser.add_argument("--baseline", action="store_true", help="also the baseline's share")
    parser.add_argument("--embedded", action="store_true", help="also a fit pass over molecules")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with_metatrain = find_spec("metatrain") is not None
    print(f"{options.threads} thread(s), medians of {max(options.times, 9)}, milliseconds")
    if not with_metatrain:
        print("metatrain cannot be imported: its columns are empty")
    print_table(options.items, with_metatrain, max(options.times, 9))
    if options.memory:
        print_memory(list(WORKLOADS))
    if options.baseline:
        print_baseline(max(options.times, 9))
    if options.embedded:
        print_embedded(max(options.times, 9))
    if options.curves is not None:
        found = curves(max(options.times, 9))
        for title, (x, lines) in found.items():
            print(f"\n{title:56s}" + "".join(f"{n:>10d}" for n in x))
            for name, y in lines.items():
                print(f"{name:56s}" + "".join(f"{ms:10.3f}" for ms in y))
        if find_spec("matplotlib") is None:
            print("matplotlib cannot be imported: nothing is drawn")
        else:
            plot(found, options.curves)


if __name__ == "__main__":
    main()
