"""The loader of training, set up by Lightning and shared with the data pass."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from .pass_loaders import is_map_style
from .processes import FitProcesses
from .random_states import RandomStates
from .samplers import loses_subset


class TrainingLoader:
    """The loader that the fit loop will iterate.

    ``train_dataloader()`` is called once, here or by the fit loop before, as often as without a
    data pass.

    Args:
        trainer: trainer that is starting a fit, after the restoration of any checkpoint.
        processes: processes of the fit.

    Attributes:
        combined: its ``CombinedLoader``.
        injected: whether Lightning has put a distributed sampler into all loaders.
    """

    def __init__(self, trainer: Trainer, processes: FitProcesses) -> None:
        self._fit_loop = trainer.fit_loop
        self._states: RandomStates | None = None
        connector = trainer._accelerator_connector
        self.injected = connector.use_distributed_sampler and connector.is_distributed
        source = self._fit_loop._data_source
        request = source.dataloader

        def recorded() -> Any:
            loaders = request()
            # Lightning waits for all processes next, which would hide that one of them has failed.
            processes.barrier()
            flattened = flat_loaders(loaders)
            self._states = RandomStates(flattened)
            if self.injected and trainer.is_global_zero:
                _warn_of_lost_subsets(flattened)
            return loaders

        source.dataloader = recorded  # type: ignore[method-assign]
        try:
            with _training_stage(trainer):
                self._fit_loop.setup_data()
                combined: Any = self._fit_loop._combined_loader
                if combined is None:  # with limit_train_batches=0
                    combined = source.dataloader()
        finally:
            del source.dataloader
        if not hasattr(combined, "flattened"):
            combined = CombinedLoader(combined, "max_size_cycle")
        self.combined = combined

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
        warnings.warn(
            f"Lightning replaces the sampler inside the batch sampler {names[0]} by a distributed "
            "one over the whole dataset, so that training and the target scales use samples that "
            "it would leave out, or repeat; give the subset as the dataset, or set "
            "Trainer(use_distributed_sampler=False) and distribute the samples in the batch "
            "sampler",
            stacklevel=2,
        )
