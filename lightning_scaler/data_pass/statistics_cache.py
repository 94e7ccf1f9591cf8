"""The file in which a callback keeps the statistics of the training data between runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ..fitting import DataPart, ScaleAccumulator, missing_shards
from ..reports import print_text
from ..tensors import InvalidStateError, check_writable
from .processes import FitProcesses

STREAM = (
    "data that are read as a stream cannot be identified without reading all of them (give the "
    "dataset an attribute `fingerprint`, a string that changes with its content)"
)


class StatisticsCache:
    """A statistics file, used if it is of the data and settings of a fit, and never replaced.

    A file of other data or settings may have taken long to collect, on many machines.

    Rank 0 reads and writes the file, decides, and prints one line about it; the other processes
    follow.

    Args:
        path: file of a :class:`ScaleAccumulator`, which need not exist yet.
        processes: processes of the fit.
    """

    def __init__(self, path: str, processes: FitProcesses) -> None:
        self._path = Path(path)
        self._processes = processes
        self._writable = False

    def fill(
        self,
        accumulator: ScaleAccumulator,
        data: Mapping[str, str] | None,
        relative_error: float | None,
    ) -> bool:
        """Fill an empty accumulator from the file, if it is the right one.

        Args:
            accumulator: accumulator with the settings of the fit.
            data: what identifies the training data; ``None`` if nothing does.
            relative_error: relative error of the scales that is enough; ``None``: a file of a
                random sample does not serve.

        Returns:
            Whether the accumulator is filled, the same on all processes.

        Raises:
            OSError: if the file exists and cannot be read.
            ValueError: if it is damaged, or not a statistics file.
        """
        state = self._processes.broadcast_from_rank_zero(
            lambda: self._read(accumulator, data, relative_error)
        )
        if state is not None:
            accumulator.merge_state(state)
        return state is not None

    def save(self, accumulator: ScaleAccumulator, data: Mapping[str, str] | None) -> None:
        """Write the statistics of all training data; a failure is a warning.

        Args:
            accumulator: accumulator after the data pass.
            data: what identifies the data; ``None``: nothing, and nothing is written.
        """
        if self._processes.rank != 0 or data is None or not self._writable:
            return
        accumulator.parts = (DataPart(dict(data)),)
        try:
            accumulator.save(self._path)
        except OSError as error:
            rank_zero_warn(f"TargetScaler: the statistics could not be written to a cache: {error}")

    def report_unused(self, reason: str) -> None:
        """Print why the file is neither read nor written."""
        self._report(f"is not used: {reason}")

    def _read(
        self,
        accumulator: ScaleAccumulator,
        data: Mapping[str, str] | None,
        relative_error: float | None,
    ) -> Any:
        """The state of the statistics in the file, or ``None``; says which."""
        try:
            cached = ScaleAccumulator.load(self._path)
        except FileNotFoundError:
            cached = None
        except InvalidStateError as error:
            raise ValueError(
                f"cache: {error}; delete the file, or name another one in TargetScaler(cache=...)"
            ) from error
        if data is None:
            self.report_unused(STREAM)
            return None
        if cached is not None:
            reasons = _differences(cached, accumulator, DataPart(dict(data)), relative_error)
            if not reasons:
                self._report(f"is used, without a data pass (samples: {data['samples']})")
                return cached.state()
            self._report(
                f"is not used: {'; '.join(reasons)}; it is kept as it is (to have the statistics "
                "of this fit written, delete it or name another file)"
            )
            return None
        try:
            check_writable(self._path)
            self._writable = True
            self._report("does not exist yet; it is written after the data pass")
        except OSError as error:
            self._report(f"does not exist yet; it cannot be written: {error.strerror}")
        return None

    def _report(self, text: str) -> None:
        if self._processes.rank == 0:
            print_text(f"TargetScaler: the cache '{self._path}' {text}")


def _differences(
    cached: ScaleAccumulator,
    requested: ScaleAccumulator,
    part: DataPart,
    relative_error: float | None,
) -> list[str]:
    """Why cached statistics are not those of a fit: what the file has, and what the fit needs."""
    if not cached.parts:
        return ["it does not say of which data it is"]
    missing = missing_shards(cached.parts)
    if missing:
        return [f"it does not have {missing}"]
    if len(cached.parts) > 1:
        return [f"it is of {len(cached.parts)} data sets together"]
    differences = cached.settings_differences(requested) + cached.parts[0].differences(part)
    if cached.sample is not None and not cached.sample.serves(relative_error):
        differences.append(f"relative_error ({cached.sample.relative_error} and {relative_error})")
    return [f"the file and this fit differ in {'; '.join(differences)}"] if differences else []
