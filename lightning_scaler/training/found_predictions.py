"""The batch that a module is called with, and the predictions that a step has computed."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ..plain_tensors import Declaration, DeclaredBatch


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
    found, declaration = module._scaled_state.found, module.target_scaler.declaration
    if declaration is None:
        return
    declared = DeclaredBatch(batch, declaration)
    needed = declared.names_in_output(output) if stage == "predict" else declared.names_in_batch()
    missing = sorted(needed - found) if found or stage == "predict" else [*declaration.targets]
    if not missing:
        return
    targets, at = ", ".join(map(repr, missing)), module._scaled_state.at
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
