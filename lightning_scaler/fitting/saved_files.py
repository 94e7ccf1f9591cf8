"""Files of statistics and of scalers: read as they come, and merged."""

import os
from collections.abc import Sequence

from ..scaling import Scaler
from ..tensors import digest, saved_kind
from .accumulator import ScaleAccumulator
from .data_parts import merge_parts, missing_shards

StrPath = str | os.PathLike[str]


def load_saved(path: StrPath) -> Scaler | ScaleAccumulator:
    """Read a file of either kind.

    Raises:
        OSError: if the file cannot be read.
        InvalidStateError: naming the file, if it is damaged or something else.
    """
    return Scaler.load(path) if saved_kind(path) == "Scaler" else ScaleAccumulator.load(path)


def merge_files(paths: Sequence[StrPath]) -> ScaleAccumulator:
    """Read statistics files and merge them: all shards of some data, or several data sets.

    Args:
        paths: at least one file of :meth:`.ScaleAccumulator.save`.

    Returns:
        The statistics of all data together, the same to the bit for any order of shards.

    Raises:
        OSError: if a file cannot be read.
        InvalidStateError: naming the file, if it is damaged or something else.
        ValueError: naming the files, for statistics of other settings, layouts or versions, for the
            same data twice, and for missing shards.
    """
    loaded = [(os.fspath(path), ScaleAccumulator.load(path)) for path in paths]
    for i, (path, accumulator) in enumerate(loaded):
        for other_path, other in loaded[:i]:
            _check_pair(other_path, other, path, accumulator)
    loaded.sort(key=lambda one: [(part.shard, sorted(part.data.items())) for part in one[1].parts])
    (first_path, merged), *others = loaded
    for path, accumulator in others:
        try:
            merged.merge(accumulator)
        except ValueError as error:
            raise ValueError(f"{path}, merged into {first_path}: {error}") from error
    missing = missing_shards(merged.parts)
    if missing:
        raise ValueError(
            f"expected all shards of the data, got them without {missing}; add what is missing"
        )
    return merged


def _check_pair(one_path: str, one: ScaleAccumulator, two_path: str, two: ScaleAccumulator) -> None:
    differences = one.settings_differences(two)
    if differences:
        raise ValueError(
            f"expected statistics with the same settings, got {one_path} and {two_path}, which "
            f"differ in {'; '.join(differences)}; collect both with the same settings"
        )
    merge_parts(one.parts, two.parts, (one_path, two_path))
    if not one.parts and not two.parts and digest(one.state()) == digest(two.state()):
        raise ValueError(
            f"expected different data, got the same statistics in {one_path} and {two_path}; leave "
            "out one of them"
        )
