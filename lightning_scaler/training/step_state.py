"""Which step of a module is running, and on which batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepState:
    """The outermost step that a module runs.

    Copies and pickles of it start without a step and without a batch.

    Args:
        at: ``"forward"``, or the name of the submodule whose output is converted.

    Attributes:
        at: the same.
        running: whether a step is running.
        in_forward: whether the module's ``forward`` is running.
        found: names of the targets whose predictions were found in the last step.
        told: whether it was said what checkpoints hold.
        gradients_checked: whether predicted gradients were compared with derivatives.
    """

    def __init__(self, at: str) -> None:
        self.at = at
        self.running = False
        self.in_forward = False
        self.found: set[str] = set()
        self.told = False
        self.gradients_checked = False
        self._stage: str | None = None
        self._batch: Any = None

    @contextmanager
    def run(self, stage: str, batch: Any) -> Iterator[None]:
        """Run a step: ``"train"``, ``"validation"``, ``"test"`` or ``"predict"``."""
        self.running, self.found = True, set()
        self._stage, self._batch = stage, batch
        try:
            yield
        finally:
            self.running = False
            if stage != "train":
                self.forget()

    @contextmanager
    def inside_forward(self) -> Iterator[None]:
        """Run ``forward``, which may call itself by another name."""
        self.in_forward = True
        try:
            yield
        finally:
            self.in_forward = False

    def forget(self) -> None:
        """Forget the last training step, after whose backward pass nothing is computed again."""
        self._stage, self._batch = None, None

    def current(self) -> tuple[str | None, Any]:
        """The stage and the batch of the present step; ``None`` outside of steps.

        In a backward pass, where activation checkpointing computes outputs again, these are those
        of the last training step.
        """
        if self.running or _in_backward():
            return self._stage, self._batch
        return None, None

    def __getstate__(self) -> dict[str, Any]:
        return {"at": self.at}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["at"])  # type: ignore[misc]


def _in_backward() -> bool:
    graph_task: int = torch._C._current_graph_task_id()
    return graph_task != -1
