"""The loader of training, set up by Lightning and shared with the data pass."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from .processes import FitProcesses
from .random_states import RandomStates
from .samplers import is_map_style, loses_subset


class LoaderRecord:
    """The state of the training loaders before their first epoch; recorded until closed.

    Args:
        trainer: trainer that is starting a fit.

    Attributes:
        states: random states when ``train_dataloader()`` had returned, if it has been called.
        processes: processes that wait for each other then, if there are any.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.states: RandomStates | None = None
        self.processes = FitProcesses()
        self._fresh: dict[int, Any] = {}
        self._injected = _distributes_samples(trainer)
        self._source = trainer.fit_loop._data_source
        self._request = self._source.dataloader
        self._source.dataloader = self._dataloader  # type: ignore[method-assign]

    def close(self) -> None:
        """Stop recording."""
        vars(self._source).pop("dataloader", None)

    def fresh(self, loader: Any) -> Any:
        """A loader as it was before a checkpoint was restored into it."""
        return self._fresh.get(id(loader), loader)

    def _dataloader(self) -> Any:
        loaders = self._request()
        # Lightning waits for all processes next, which would hide that one of them has failed.
        self.processes.barrier()
        flattened = flat_loaders(loaders)
        self.states = RandomStates(flattened)
        self._fresh = {
            id(loader): copy.copy(loader)
            for loader in flattened
            if hasattr(loader, "load_state_dict")
        }
        if self._injected:
            _warn_of_lost_subsets(flattened)
        return loaders


class TrainingLoader:
    """The loader that the fit loop will iterate.

    ``train_dataloader()`` is called once, here or by the fit loop before, as often as without a
    data pass.

    Args:
        trainer: trainer that is starting a fit, after the restoration of any checkpoint.
        processes: processes of the fit.
        record: record of the loaders, which is closed.

    Attributes:
        combined: a ``CombinedLoader`` of the same loaders, to be read by a data pass.
        injected: whether Lightning has put a distributed sampler into all loaders.
    """

    def __init__(self, trainer: Trainer, processes: FitProcesses, record: LoaderRecord) -> None:
        self._fit_loop = trainer.fit_loop
        self.injected = _distributes_samples(trainer)
        record.processes = processes
        try:
            with _training_stage(trainer):
                self._fit_loop.setup_data()
                combined: Any = self._fit_loop._combined_loader
                if combined is None:  # with limit_train_batches=0
                    combined = self._fit_loop._data_source.dataloader()
        finally:
            record.close()
        if not hasattr(combined, "flattened"):
            combined = CombinedLoader(combined, "max_size_cycle")
        self.combined = copy.copy(combined)
        self.combined.flattened = [record.fresh(loader) for loader in combined.flattened]
        self._states = record.states

    @property
    def flattened(self) -> list[Any]:
        """The single loaders."""
        return list(self.combined.flattened)

    @property
    def max_batches(self) -> int | float:
        """The number of training batches of one epoch, infinite if unknown."""
        return self._fit_loop.max_batches

    def restore_states(self) -> None:
        """Set all random states to what they were before the first epoch began, if known."""
        if self._states is not None:
            self._states.restore()

    def restart_streams(self) -> None:
        """Begin the first epoch of training again where the data pass has used its iterators.

        Streams may return themselves as their iterator. Samplers of map-style datasets have not
        been touched.
        """
        fetcher = self._fit_loop._data_fetcher
        if fetcher is None or all(map(is_map_style, self.flattened)):
            return
        self.restore_states()
        iter(fetcher)


def _distributes_samples(trainer: Trainer) -> bool:
    """Whether Lightning puts a distributed sampler into all loaders of map-style datasets."""
    connector = trainer._accelerator_connector
    return bool(connector.use_distributed_sampler and connector.is_distributed)


def flat_loaders(loaders: Any) -> list[Any]:
    """The single loaders in a ``CombinedLoader``, or in any nesting of loaders."""
    # Not `isinstance`: two distributions of Lightning have a CombinedLoader.
    return list((loaders if hasattr(loaders, "flattened") else CombinedLoader(loaders)).flattened)


@contextmanager
def _training_stage(trainer: Trainer) -> Iterator[None]:
    """Let hooks see that the loader is one for training, in the sanity check too."""
    stage = trainer.state.stage
    trainer.training = True
    try:
        yield
    finally:
        trainer.state.stage = stage


def _warn_of_lost_subsets(loaders: list[Any]) -> None:
    names = [type(loader.batch_sampler).__name__ for loader in loaders if loses_subset(loader)]
    if names:
        rank_zero_warn(
            f"Lightning replaces the sampler inside the batch sampler {names[0]} by a distributed "
            "one over the whole dataset, so that training and the target scales use samples that "
            "it would leave out, or repeat; give the subset as the dataset, or set "
            "Trainer(use_distributed_sampler=False) and distribute the samples in the batch "
            "sampler"
        )
