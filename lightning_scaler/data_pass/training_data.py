"""The training data of a Trainer, as a fit of the scales reads them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from tqdm.auto import tqdm

from ..batches import Batch
from ..fitting import ScaleAccumulator
from ..plain_tensors import Declaration
from .data_fingerprint import identify_data
from .data_sample import DataSample
from .pass_loaders import Limits, Stream, length, pass_loaders, training_batches
from .pass_statistics import SampledPass, merge_all
from .prediction_errors import PredictionErrors
from .processes import FitProcesses, ProcessesDisagreeError
from .random_states import preserve_rng
from .training_loader import LoaderRecord, TrainingLoader

# A shorter pass shows no progress bar.
SECONDS_WITHOUT_PROGRESS = 3.0


class TrainingData:
    """The data that training will see, read before it by all processes together.

    ``limit_train_batches`` does not limit them. ``overfit_batches`` restricts them to the batches
    that are trained on, ``fast_dev_run`` to the same number of evenly spaced batches. All random
    states are restored after each reading.

    Args:
        trainer: trainer that is starting a fit, after the restoration of any checkpoint.
        unpack: function that takes a batch of the loader apart, after doing to it what training
            does before a step; with the tensors on the CPU.
        processes: processes of the fit.
        record: record of the training loaders, which is closed.
        limit_batches: maximum number of batches of each loader, counted over all processes.
    """

    def __init__(
        self,
        trainer: Trainer,
        unpack: Callable[[Any], Batch],
        processes: FitProcesses,
        record: LoaderRecord,
        limit_batches: int | None = None,
    ) -> None:
        self._trainer, self._unpack, self._processes = trainer, unpack, processes
        self._loader = TrainingLoader(trainer, processes, record)
        self._limit_batches = limit_batches

    def read_layouts(self, accumulator: ScaleAccumulator) -> tuple[ScaleAccumulator, Batch | None]:
        """Read one batch, which shows the layouts of its targets; see :meth:`read`."""
        return self._read(accumulator, self._limits(1))

    def read(
        self,
        accumulator: ScaleAccumulator,
        shard: tuple[int, int] = (0, 1),
        relative_error: float | None = None,
        errors: PredictionErrors | None = None,
        sample: DataSample | None = None,
    ) -> tuple[ScaleAccumulator, Batch | None]:
        """Read all data, each sample once over all processes.

        Args:
            accumulator: empty accumulator with the settings of the fit.
            shard: index of the shard to read, from 0, and the number of shards.
            relative_error: read batches in random order until the standard error of every scale,
                relative to it, is below this; see :class:`SampledPass`. ``None``: read all. It has
                no effect beside ``overfit_batches`` and ``fast_dev_run``, and does not go with
                ``errors``.
            errors: collects the errors of predictions too; afterwards it holds those of all
                processes.
            sample: keeps some of the batches of this process.

        Returns:
            An accumulator with the data of all processes, the same on each of them; and the first
            batch that this process has read, if there is one.

        Raises:
            RuntimeError: on every process, if one of them fails or the layouts of targets differ.
            ValueError: without any batch, or if none would be left for training; and if the
                samples cannot be read in random order.
        """
        limits = self._limits(self._limit_batches)._replace(shard=shard)
        if limits.first is not None or limits.spread is not None:
            relative_error = None
        limits = limits._replace(random_order=relative_error is not None)
        return self._read(accumulator, limits, relative_error, errors, sample)

    def identify(
        self, accumulator: ScaleAccumulator, declaration: Declaration | None
    ) -> dict[str, str] | None:
        """What identifies the data that :meth:`read` would read.

        Args:
            accumulator: empty accumulator with the settings of the fit.
            declaration: declared targets, if they are plain tensors.

        Returns:
            Values by name; ``None`` for data that cannot be identified; see
            :func:`data_fingerprint.identify_data`.
        """
        with preserve_rng(self._loader.flattened), torch.no_grad():
            self._loader.restore_states()
            found = identify_data(
                self._loader,
                self._unpack,
                accumulator.targets,
                accumulator.additive is not None,
                self._processes,
                self._limits(self._limit_batches),
            )
        if found is not None:
            found["system_labels"] = accumulator.system_labels
            if declaration is not None:
                found["declared targets"] = repr(declaration.without_units.state())
        return found

    def restart(self) -> None:
        """Begin the first epoch of training again where its iterators have been used."""
        self._loader.restart_streams()

    def _read(
        self,
        accumulator: ScaleAccumulator,
        limits: Limits,
        relative_error: float | None = None,
        errors: PredictionErrors | None = None,
        sample: DataSample | None = None,
    ) -> tuple[ScaleAccumulator, Batch | None]:
        processes, loader = self._processes, self._loader
        sampled: SampledPass | None = None
        first_batch: Batch | None = None
        n_batches = 0
        with preserve_rng(loader.flattened), torch.no_grad():
            loader.restore_states()
            loaders = pass_loaders(loader.combined, processes, limits, loader.injected)
            batches = self._with_progress(training_batches(loaders), length(loaders))
            if relative_error is not None:
                n_own = length(loaders) or 0
                sampled = SampledPass(accumulator, relative_error, processes, n_own, loaders.shared)
                batches = sampled.batches(batches)
            for batch in batches:
                n_batches += 1
                unpacked = self._unpack(batch)
                first_batch = first_batch or unpacked
                into = accumulator if sampled is None else sampled.next_group()
                into.update(*unpacked, exact_labels=True)
                if errors is not None:
                    errors.update(unpacked, accumulator.system_labels)
                if sample is not None:
                    sample.update(unpacked)
                processes.check_for_failure()
            for one in loaders.flattened:
                if isinstance(one, Stream):
                    one.check_readable_again()
        if sampled is not None:
            accumulator, n_batches = sampled.result()
        elif errors is None:
            (accumulator,), n_batches = merge_all([accumulator], n_batches, processes)
        else:
            collected = [accumulator, errors.accumulator]
            (accumulator, errors.accumulator), n_batches = merge_all(
                collected, n_batches, processes
            )
        if not n_batches and limits.shard[1] == 1:
            raise ProcessesDisagreeError(
                "fitting the target scales: the training loader gave no batch"
                f"{'' if processes.world_size == 1 else ' on any process'}; check that "
                "train_dataloader() has data"
            )
        return accumulator, first_batch

    def _limits(self, limit_batches: int | None) -> Limits:
        trainer: Any = self._trainer
        if trainer.fast_dev_run:
            return Limits(spread=int(trainer.fast_dev_run))
        if trainer.overfit_batches:
            return Limits(first=int(self._loader.max_batches))
        if limit_batches is not None:
            return Limits(spread=limit_batches)
        usable = []
        if isinstance(trainer.limit_train_batches, int) and trainer.limit_train_batches:
            usable.append(trainer.limit_train_batches)
        if trainer.max_steps != -1:
            usable.append(trainer.max_steps * trainer.accumulate_grad_batches)
        return Limits(largest=min(usable, default=None))

    def _with_progress(self, batches: Iterable[Any], total: int | None) -> Iterable[Any]:
        """The batches, with a progress bar where the Trainer shows one."""
        hidden = self._trainer.progress_bar_callback is None or not self._trainer.is_global_zero
        yield from tqdm(
            batches,
            "Fitting target scales",
            total,
            leave=False,
            disable=hidden,
            delay=SECONDS_WITHOUT_PROGRESS,
        )
