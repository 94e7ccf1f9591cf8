"""States and files damaged at random, for test_damaged_states.py.

The long form, about two minutes:

    PYTHONPATH=. python tests/support/damage.py --cases 2000 --seed 1

Every case loads as the state that it was, or is an InvalidStateError. Anything else is printed with
its seed, and ends the program with an error.
"""

import argparse
import contextlib
import copy
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from builders import (
    Springs,
    four_targets,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler
from lightning_scaler.tensors import InvalidStateError, digest, save_state, state_to_tensor

COMPATIBILITY = Path(__file__).parents[1] / "compatibility"
OLD_FILES = [COMPATIBILITY / "scaler_state_1.pt", COMPATIBILITY / "scaler_state_2.pt"]
# Dicts whose keys are names of targets, weights or terms of the loss, not fields.
NAMED = {"targets", "statistics", "weights", "fixed", "mean_squares"}


def collected(scale: float = 1.0) -> ScaleAccumulator:
    """Statistics of targets of every kind."""
    accumulator = ScaleAccumulator(
        intensive_targets=["alpha"],
        baseline=CompositionBaseline(),
        additive=Springs(k=0.75, names=("energy",)),
        system_labels="position",
    )
    accumulator.update(*four_targets(scale))
    return accumulator


def fitted(scale: float = 1.0) -> Scaler:
    fixed = {"charges": {1: 1.0, 6: 2.0, 8: 3.0, 9: 0.5}}
    return collected(scale).compute(fixed_scales=fixed, unseen_types="pooled")


# Damage of bytes, of a tensor and of a structure


def damage_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    data, n = bytearray(content), len(content)
    first, second = sorted((rng.randrange(n), rng.randrange(n)))
    second = min(second, first + 64)
    how = rng.choice(
        ["flip", "flip several", "byte", "truncate", "delete", "zero", "repeat", "add"]
    )
    if how.startswith("flip"):
        for _ in range(1 if how == "flip" else rng.randint(2, 20)):
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how == "byte":
        data[first] = rng.randrange(256)
    elif how == "truncate":
        del data[first:]
    elif how == "delete":
        del data[first:second]
    elif how == "zero":
        data[first:second] = bytes(second - first)
    elif how == "repeat":
        data[second:second] = data[first:second]
    else:
        data += rng.randbytes(rng.randint(1, 100))
    return how, bytes(data)


def damage_tensor(
    tensor: torch.Tensor, other: torch.Tensor, rng: random.Random
) -> tuple[str, torch.Tensor]:
    tensor = tensor.clone()
    # Most of the tensor is padding.
    n = int(tensor.nonzero().max()) + 1
    first, second = sorted((rng.randrange(n), rng.randrange(n)))
    how = rng.choice(
        [
            "bytes",
            "mix",
            "mix a part",
            "noise",
            "shift",
            "NaN",
            "half",
            "bfloat16",
            "ema",
            "reshape",
        ]
    )
    if how == "bytes":
        how, content = damage_bytes(bytes(tensor[:n].to(torch.uint8).numpy()), rng)
        padding = bytes(max(0, len(tensor) - len(content)) if how != "truncate" else 0)
        return f"{how} of a tensor", torch.tensor(list(content + padding), dtype=torch.float32)
    if how == "mix":
        tensor = tensor.lerp(other, rng.random())
    elif how == "mix a part":
        tensor[first:second] = other[first:second]
    elif how == "noise":
        tensor += rng.choice([0.1, 0.4, 0.6, 2.0]) * (torch.rand_like(tensor) - 0.5)
    elif how == "shift":
        tensor = tensor * rng.choice([0.999, 1.001, -1.0, 0.0, 2.0])
    elif how == "NaN":
        tensor[first] = rng.choice([torch.nan, torch.inf, -1.0, 256.0])
    elif how in ("half", "bfloat16"):
        tensor = tensor.to(getattr(torch, "float16" if how == "half" else how))
    elif how == "ema":
        decay = rng.choice([0.5, 0.9, 0.99, 0.999])
        tensor = tensor.to(rng.choice([torch.float32, torch.float16, torch.bfloat16]))
        for average, new in [(tensor.clone(), tensor)]:
            for _ in range(rng.randint(1, 30)):
                average.mul_(decay).add_(new, alpha=1 - decay)
            tensor = average
    else:
        tensor = tensor.reshape(2, -1)
    return how, tensor


def fields(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every field in a state: the dict that holds it, its name, and where that is."""
    if isinstance(state, dict):
        for name, part in state.items():
            if isinstance(name, str) and not (path and path[-1] in NAMED):
                yield state, name, ".".join(map(str, (*path, name)))
            yield from fields(part, (*path, name))
    elif isinstance(state, list):
        for i, part in enumerate(state):
            yield from fields(part, (*path, i))


def damage_structure(state: dict[str, Any], rng: random.Random) -> tuple[str, Any, bool]:
    """How a copy of the state was damaged, the copy, and whether it may load as another state."""
    state = copy.deepcopy(state)
    holder, name, where = rng.choice(list(fields(state)))
    how = rng.choice(["drop", "rename", "add", "replace"])
    if how == "drop":
        del holder[name]
    elif how == "rename":
        holder[rng.choice([f"{name}s", name[:-1], "", name.upper()])] = holder.pop(name)
    elif how == "add":
        holder[rng.choice(["extra", "scale", "Σ"])] = copy.deepcopy(holder[name])
    else:
        holder[name] = damaged_value(holder[name], rng)
    return f"{how} {where}", state, how == "replace"


def damaged_value(value: Any, rng: random.Random) -> Any:
    values = [None, "text", -1, 0.5, torch.nan, True, [], {}, [[]], {"a": 1}, b"\0", 10**30]
    if isinstance(value, torch.Tensor):
        changed = value.clone(memory_format=torch.contiguous_format)
        if changed.numel():
            index = rng.randrange(changed.numel())
            bad = [0, -1] + ([torch.nan, torch.inf, 1e-300] if changed.is_floating_point() else [7])
            if changed.dtype != torch.bool:
                changed.view(-1)[index] = rng.choice(bad)
        values += [changed] * 6
        values += [value[:-1] if value.dim() else value[None], value[..., None], value.reshape(-1)]
        values += [value.half(), value.float(), value.int(), value.bool(), value.repeat(2, 1)]
    elif isinstance(value, list) and value:
        values += [value[:-1], value + value[:1], value[::-1], value[0]] * 3
    elif isinstance(value, dict) and value:
        first = next(iter(value))
        values += [{k: v for k, v in value.items() if k != first}, list(value), value[first]] * 3
    elif isinstance(value, float):
        values += [torch.inf, -torch.inf, -value, str(value)] * 2
    return rng.choice(values)


# The objects that are damaged


class Case(NamedTuple):
    """A damaged object.

    Attributes:
        how: what was done to it.
        load: loads it, and returns the digest of what was loaded.
        original: digest of what was saved.
        may_differ: whether it may load as another state.
    """

    how: str
    load: Callable[[], str]
    original: str
    may_differ: bool = False


class Damage:
    """Draws damaged states and files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scaler, self.other, self.accumulator = fitted(), fitted(2.0), collected()
        self.digests = {path: digest(Scaler.load(path).state()) for path in OLD_FILES}
        self.check_undamaged()

    def check_undamaged(self) -> None:
        """Everything that is damaged below loads as what it is before."""
        path, of_scaler = self.folder / "undamaged", digest(self.scaler.state())
        assert restored(self.scaler.get_extra_state()) == of_scaler
        assert restored(self.scaler.state()) == of_scaler
        save_state(path, "Scaler", self.scaler.state())
        assert digest(Scaler.load(path).state()) == of_scaler
        for content in (saved_content(self.accumulator), None):
            if content is None:
                self.accumulator.save(path)
            else:
                save_state(path, "ScaleAccumulator", content)
            assert digest(loaded_statistics(path)) == digest(self.accumulator.state())

    def draw(self, rng: random.Random) -> Case:
        fields = [self.structure] * 3
        kinds = [self.tensor, self.file, self.statistics, self.old_file, *fields]
        return rng.choice(kinds)(rng)

    def tensor(self, rng: random.Random) -> Case:
        whole, other = self.scaler.get_extra_state(), self.other.get_extra_state()
        how, damaged = damage_tensor(whole, other, rng)
        return Case(f"tensor: bytes, {how}", lambda: restored(damaged), digest(self.scaler.state()))

    def file(self, rng: random.Random) -> Case:
        path = self.folder / "scaler"
        self.scaler.save(path)
        return self._damaged_file("file: bytes", path, path, rng, digest(self.scaler.state()))

    def old_file(self, rng: random.Random) -> Case:
        path = rng.choice(OLD_FILES)
        return self._damaged_file(
            "old file: bytes", path, self.folder / "old", rng, self.digests[path]
        )

    def statistics(self, rng: random.Random) -> Case:
        path = self.folder / "statistics"
        self.accumulator.save(path)
        how, content = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(content)
        original = digest(self.accumulator.state())
        return Case(f"statistics: bytes, {how}", lambda: digest(loaded_statistics(path)), original)

    def structure(self, rng: random.Random) -> Case:
        """Fields changed in what is then written with a correct checksum."""
        kind = rng.choice(["dict", "old dict", "tensor", "file", "statistics"])
        path, original = self.folder / "changed", digest(self.scaler.state())
        state = self.scaler.state()
        if kind == "old dict":
            old = rng.choice(OLD_FILES)
            state, original = torch.load(old, weights_only=True), self.digests[old]
        elif kind == "statistics":
            original = digest(self.accumulator.state())
            state = saved_content(self.accumulator)
        how, state, may_differ = damage_structure(state, rng)
        how = f"{kind}: fields, {how}"
        if kind == "tensor":
            tensor = state_to_tensor(state)
            return Case(how, lambda: restored(tensor), original, may_differ)
        if kind == "file":
            save_state(path, "Scaler", state)
            return Case(how, lambda: digest(Scaler.load(path).state()), original, may_differ)
        if kind == "statistics":
            save_state(path, "ScaleAccumulator", state)
            return Case(how, lambda: digest(loaded_statistics(path)), original, may_differ)
        return Case(how, lambda: restored(state), original, may_differ)

    def _damaged_file(
        self, name: str, source: Path, path: Path, rng: random.Random, original: str
    ) -> Case:
        how, content = damage_bytes(source.read_bytes(), rng)
        path.write_bytes(content)
        return Case(f"{name}, {how}", lambda: digest(Scaler.load(path).state()), original)


def saved_content(accumulator: ScaleAccumulator) -> dict[str, Any]:
    settings = {
        "targets": None,
        "intensive_targets": ["alpha"],
        "baseline": asdict(accumulator.baseline),
        "additive": accumulator.additive.state(),
    }
    return {"settings": settings, "collected": copy.deepcopy(accumulator.state())}


def loaded_statistics(path: Path) -> dict[str, Any]:
    accumulator = ScaleAccumulator.load(path)
    with contextlib.suppress(ValueError):  # valid statistics that no fit has
        accumulator.compute()
    return accumulator.state()


def restored(state: Any) -> str:
    """The digest of a scaler after it has loaded the state; after an error it is as before."""
    scaler = fitted(3.0)
    before = digest(scaler.state())
    try:
        scaler.set_extra_state(state)
    except InvalidStateError:
        assert digest(scaler.state()) == before
        raise
    return digest(scaler.state())


def run(n_cases: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """The outcomes of some cases, and a line for each that is not allowed."""
    damage, outcomes, failures = Damage(folder), Counter(), []
    for i in range(n_cases):
        case = damage.draw(random.Random(f"{seed}:{i}"))
        what = case.how.split(",")[0]
        try:
            same = case.load() == case.original
            outcome = "the same" if same else "another"
            if not same and not case.may_differ:
                failures.append(f"seed {seed}, case {i}, {case.how}: loads as another state")
        except InvalidStateError:
            outcome = "an error"
        except Exception as error:
            outcome = "another error"
            failures.append(f"seed {seed}, case {i}, {case.how}: {type(error).__name__}: {error}")
        outcomes[what, outcome] += 1
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures = run(options.cases, options.seed, Path(folder))
    print(f"seed {options.seed}, {options.cases} cases")
    for (what, outcome), count in sorted(outcomes.items()):
        print(f"{what:20} {outcome:15} {count:6}")
    print(*failures, sep=os.linesep)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
