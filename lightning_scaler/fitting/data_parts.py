"""Which part of which data statistics were collected from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

from .random_sample import RandomSample

# Shards that a message lists.
MOST_LISTED = 20


def package_version() -> str:
    """The version of this package, which is part of the identity of statistics."""
    return str(import_module(__name__.partition(".")[0]).__version__)


@dataclass(frozen=True)
class DataPart:
    """A shard of some data, or all of them.

    Args:
        data: what identifies the data, by name, such as ``{"samples": "839"}``; equal for equal
            data. See ``data_pass.data_fingerprint`` for that of a training loader.
        shard: index of the shard, from 0.
        n_shards: number of shards into which the data are divided; 1: all data.
        version: version of this package that collected the statistics; default: this one.

    Raises:
        ValueError: if there is no such shard.

    Example:
        >>> str(DataPart({"samples": "839"}, shard=1, n_shards=4))
        'shard 1 of 4 (samples: 839)'
    """

    data: dict[str, str]
    shard: int = 0
    n_shards: int = 1
    version: str = ""

    def __post_init__(self) -> None:
        """Check the shard, and fill in the version."""
        if not 0 <= self.shard < self.n_shards:
            raise ValueError(
                f"shard: expected a number from 0 to shards - 1, got shard={self.shard} with "
                f"shards={self.n_shards}"
            )
        object.__setattr__(self, "version", self.version or package_version())

    def __str__(self) -> str:
        which = "all data" if self.n_shards == 1 else f"shard {self.shard} of {self.n_shards}"
        shown = [f"{name}: {value}" for name, value in self.data.items() if len(value) < 40]
        return which + (f" ({', '.join(shown)})" if shown else "")

    def differences(self, other: "DataPart") -> list[str]:
        """What differs in the data or the version, in words; empty if both are of equal data."""
        pairs = {
            name: (self.data.get(name, "unknown"), other.data.get(name, "unknown"))
            for name in {**self.data, **other.data}
        }
        pairs["version of lightning_scaler"] = (self.version, other.version)
        return [
            f"{name} ({one} and {two})" if max(len(one), len(two)) < 40 else name
            for name, (one, two) in pairs.items()
            if one != two
        ]


def merge_parts(
    ours: Sequence[DataPart], theirs: Sequence[DataPart], names: Sequence[str] = ("", "")
) -> tuple[DataPart, ...]:
    """The parts of merged statistics; all shards of some data together become all of the data.

    Args:
        ours: parts of some statistics, sorted.
        theirs: parts of others.
        names: what the messages call the two.

    Raises:
        ValueError: if data would count twice, or shards are not of the same data.
    """
    one, two = (f"{name}: " if name else "" for name in names)
    for a in ours:
        for b in theirs:
            pair = f"{one}{a}, and {two}{b}"
            if a.version != b.version:
                raise ValueError(
                    "expected statistics of one version of lightning_scaler, got "
                    f"{one}version {a.version}, and {two}version {b.version}; collect both with "
                    "the same version"
                )
            differences = a.differences(b)
            if not differences and (a.n_shards != b.n_shards or a.shard == b.shard):
                raise ValueError(
                    f"expected each part of the data once, got {pair}, of the same data; leave "
                    "out one of them"
                )
            if differences and a.n_shards + b.n_shards > 2:
                raise ValueError(
                    f"expected shards of the same data, got {pair}, which differ in "
                    f"{'; '.join(differences)}; merge all shards of each data set first, then the "
                    "results"
                )
    parts = sorted([*ours, *theirs], key=lambda part: part.shard)
    if parts and len(parts) == parts[0].n_shards:
        return (DataPart(parts[0].data, version=parts[0].version),)
    return tuple(parts)


class Origin(NamedTuple):
    """Where some statistics are from.

    Attributes:
        parts: the data that they are of, if that is known.
        sample: how precise they are, if they are of a random sample of the data.
        is_empty: whether there are none.
    """

    parts: Sequence[DataPart]
    sample: RandomSample | None
    is_empty: bool


def merge_origins(ours: Origin, theirs: Origin) -> tuple[tuple[DataPart, ...], RandomSample | None]:
    """The parts and the sample of merged statistics.

    Raises:
        ValueError: as :func:`merge_parts`; if only one of them says which data it is of; and if one
            of them is of a random sample.
    """
    sample = ours.sample or theirs.sample
    if not (ours.is_empty or theirs.is_empty):
        for one in (ours.sample, theirs.sample):
            if one is not None and not one.complete:
                raise ValueError(
                    "expected statistics of all of some data, got those of a random sample "
                    f"({one.n_batches} of {one.n_all_batches} batches), which would count for "
                    "too little; collect them without relative_error"
                )
        sample = None
    parts = merge_parts(ours.parts, theirs.parts)
    if parts and any(not one.is_empty and not one.parts for one in (ours, theirs)):
        raise ValueError(
            "expected two accumulators that say which data they hold, got one with parts="
            f"{[str(part) for part in parts]} and one without; set the parts of both or of "
            "neither"
        )
    return parts, sample


def missing_shards(parts: Iterable[DataPart]) -> str:
    """The shards that are missing, in words; empty if none is.

    Example:
        >>> missing_shards([DataPart({}, 1, 4), DataPart({}, 3, 4)])
        'shards 0, 2 of 4'
    """
    parts = list(parts)
    n_shards = max((part.n_shards for part in parts), default=1)
    missing = sorted({*range(n_shards)} - {part.shard for part in parts})
    if n_shards == 1 or not missing:
        return ""
    more = f" and {len(missing) - MOST_LISTED} more" if len(missing) > MOST_LISTED else ""
    listed = ", ".join(map(str, missing[:MOST_LISTED]))
    return f"shard{'' if len(missing) == 1 else 's'} {listed}{more} of {n_shards}"
