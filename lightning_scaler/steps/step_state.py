"""Which step of a module is running, on which batch, and the predictions that are found in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ..plain_tensors import Declaration, DeclaredBatch


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
        checkpoints_explained: whether a line has said what checkpoints hold.
        gradients_checked: whether predicted gradients were compared with derivatives.
    """

    def __init__(self, at: str) -> None:
        self.at = at
        self.running = False
        self.in_forward = False
        self.found: set[str] = set()
        self.checkpoints_explained = False
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
        if self.running or torch._C._current_graph_task_id() != -1:
            return self._stage, self._batch
        return None, None

    def __getstate__(self) -> dict[str, Any]:
        return {"at": self.at}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["at"])  # type: ignore[misc]


def find_batch(
    module: Any, declaration: Declaration, arguments: list[Any], of_step: Any
) -> DeclaredBatch:
    """The batch among the arguments of ``forward``; otherwise that of the step.

    A step may call ``forward`` with another batch than its own.

    Args:
        module: module that is called.
        declaration: declared targets.
        arguments: arguments of the call.
        of_step: batch of the step; ``None`` outside of steps.

    Raises:
        RuntimeError: if there is none.
    """
    problem: Exception | None = None
    for argument in arguments:
        declared = DeclaredBatch(argument, declaration)
        try:
            _ = declared.atoms
        except (TypeError, ValueError) as error:
            problem = problem or error
        else:
            return declared
    if of_step is not None:
        return DeclaredBatch(of_step, declaration)
    raise RuntimeError(
        f"{type(module).__name__} was called outside of its steps without a batch, so its output "
        "cannot be converted to the units of the data; call it with the batch of a loader, or use "
        "trainer.predict"
    ) from problem


def check_found(module: Any, step: str, stage: str, batch: Any, output: Any) -> None:
    """Check that the predictions of a step were found, and so converted.

    A step may do without those of some targets, and ``predict_step`` without all: then a warning
    names the targets that are in the batch, or in what ``predict_step`` returns.

    Args:
        module: module with :class:`ScaledSteps`, after the step.
        step: name of the step.
        stage: stage of the step.
        batch: batch of the step.
        output: what the step returned.

    Raises:
        RuntimeError: if a step other than ``predict_step`` had none.
    """
    found, declaration = module._scaling_state.found, module.target_scaler.declaration
    if declaration is None:
        return
    declared = DeclaredBatch(batch, declaration)
    needed = declared.names_in_output(output) if stage == "predict" else declared.names_in_batch()
    missing = sorted(needed - found) if found or stage == "predict" else [*declaration.targets]
    if not missing:
        return
    targets, at = ", ".join(map(repr, missing)), module._scaling_state.at
    words = (
        f"{type(module).__name__}.{step}: no prediction of {targets} was found in the output of "
        f"'{at}' during the step, so the units of what it computed are unknown; give the addresses "
        "in the output as prediction=, or, if the step does not call forward, name the submodule "
        "whose output holds the predictions: TargetScaler(at='…')"
    )
    if found or stage == "predict":
        rank_zero_warn(words)
    else:
        raise RuntimeError(words)
