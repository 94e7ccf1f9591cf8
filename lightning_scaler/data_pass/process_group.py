"""The processes of a Trainer during a fit, and what each of them raises when one fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from lightning.pytorch import Trainer

from .connections import ProcessEndedError
from .processes import FitProcesses, OtherProcessFailedError, ProcessesDisagreeError


@contextmanager
def fit_processes(trainer: Trainer) -> Iterator[FitProcesses]:
    """The processes of a fit; an error of one of them inside the context stops all.

    Args:
        trainer: in a fit, after the process group has been set up.

    Raises:
        RuntimeError: on every process, if one fails: with its message and its rank. Also if the
            strategy runs several processes without a process group of ``torch.distributed``.
    """
    if trainer.world_size == 1:
        yield FitProcesses()
        return
    processes = _from_process_group(trainer)
    try:
        yield processes
    except ProcessesDisagreeError:
        raise
    except torch.distributed.DistError as error:
        reason = processes.wait_for_reason() or (
            "because the connection to the other processes was lost, probably because one of them "
            "has ended; see its output"
        )
        raise RuntimeError(f"fitting the target scales failed {reason}") from error
    except Exception as error:
        message = f"fitting the target scales failed {processes.report_failure(error)}"
        others = isinstance(error, OtherProcessFailedError | ProcessEndedError)
        raise RuntimeError(message) from (None if others else error)
    except BaseException as error:
        processes.report_failure(error)
        raise
    finally:
        processes.close()


def _from_process_group(trainer: Trainer) -> FitProcesses:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise RuntimeError(
            "TargetScaler: expected a process group of torch.distributed for "
            f"{trainer.world_size} processes, but {type(trainer.strategy).__name__} has none; fit "
            "in one process and start the training from its checkpoint"
        )
    # There is no public access to the store that every process group has.
    store = torch.distributed.distributed_c10d._get_default_store()
    rank = trainer.global_rank
    fit = store.add(f"lightning_scaler/fits of rank {rank}", 1)
    on_cpu = "gloo" in torch.distributed.get_backend() or trainer.strategy.root_device is None
    return FitProcesses(
        rank,
        trainer.world_size,
        torch.distributed.distributed_c10d.PrefixStore(f"lightning_scaler/fit {fit}", store),
        torch.device("cpu") if on_cpu else trainer.strategy.root_device,
        trainer.strategy.broadcast,
    )
