"""The report after a fit: pictures in the folder of the run, and in its loggers."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ..data_pass import DataSample
from ..reports import draw_distributions, draw_terms, print_text, write_png
from ..scaling import Scaler, scales_to_draw
from ..steps import logged_path


def write_report(trainer: Trainer, scaler: Scaler, sample: DataSample) -> None:
    """Write the pictures of a fit, and log them and the scales; on rank 0 alone.

    A failure is a warning: it must not stop a training whose scales are fitted.

    Args:
        trainer: trainer of the run.
        scaler: scaler after the fit.
        sample: sample of the data; empty if they were not read.
    """
    written: list[Path] = []
    try:
        folder = report_folder(trainer)
        if folder is None and not any(map(_takes_pictures, trainer.loggers)):
            print_text(
                "TargetScaler: no pictures of the fit, because the folder of the run is not on "
                "this machine, and no logger takes pictures; add one that does, such as "
                "TensorBoardLogger"
            )
        else:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            for name, figure in _pictures(scaler, sample):
                path = None if folder is None else folder / f"target_{name}.png"
                pixels = write_png(figure, path or os.devnull)
                written += [path] if path else []
                _log_picture(trainer, f"target_scaler/{name}", path, pixels)
        for logger in trainer.loggers:
            logger.log_metrics(_logged_scales(scaler), step=trainer.global_step)
    except Exception as error:
        warnings.warn(
            f"TargetScaler: the report of the fit is not complete: {type(error).__name__}: {error}",
            stacklevel=2,
        )
    if written:
        names = ", ".join(path.name for path in written)
        print_text(f"TargetScaler: pictures of the fit in {written[0].parent}: {names}")


def run_folder(trainer: Trainer) -> Path | None:
    """The folder in which a run keeps what people read; ``None`` if it has none.

    Under Hydra, this is the run folder of the job; otherwise that of the first logger that writes
    files for people, such as ``CSVLogger`` and ``TensorBoardLogger``. A Trainer without a logger
    has none: its working directory belongs to the user.

    Args:
        trainer: trainer of the run, on rank 0.
    """
    folders = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
    hydra: Any = sys.modules.get("hydra.core.hydra_config")
    if hydra is not None and hydra.HydraConfig.initialized():
        # Missing where a notebook composes a config.
        folders.insert(0, hydra.HydraConfig.get().runtime.get("output_dir"))
    return next((Path(one) for one in folders if isinstance(one, str) and _is_local(one)), None)


def report_folder(trainer: Trainer) -> Path | None:
    """The folder for the pictures of a run, or that of its first logger, where checkpoints are too.

    ``None`` if that folder is not on this machine: only the loggers get the pictures then.

    Args:
        trainer: trainer of the run, on rank 0.
    """
    folder = run_folder(trainer)
    if folder is not None:
        return folder
    logger = next(iter(trainer.loggers), None)
    root, names = trainer.default_root_dir, []
    if logger is not None:
        root, names = logger.save_dir or root, [str(logger.name), str(logger.version)]
    return Path(root, *names) if _is_local(str(root)) else None


def _is_local(folder: str) -> bool:
    """Whether a folder is on this machine: the path of a bucket would make a folder ``s3:``."""
    return "://" not in folder


def _pictures(scaler: Scaler, sample: DataSample) -> Iterator[tuple[str, Any]]:
    """Each picture with its name."""
    if scales_to_draw(scaler.targets):
        yield "scales", scaler.plot()[0]
    terms = sample.terms(scaler)
    if terms:
        yield "distributions", draw_distributions(terms, scaler.units)
    missing = sample.missing_values(scaler)
    if scaler.mean_squares or missing:
        yield "loss_terms", draw_terms(scaler.mean_squares, missing or None)


def _log_picture(trainer: Trainer, tag: str, path: Path | None, pixels: Any) -> None:
    """Add a picture to those loggers that take any, such as TensorBoard and W&B."""
    loggers: Any = filter(_takes_pictures, trainer.loggers)
    step = trainer.global_step
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[str(path) if path else pixels], step=step)
        else:
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")


def _takes_pictures(logger: Any) -> bool:
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_image")


def _logged_scales(scaler: Scaler) -> dict[str, float]:
    """The per-target scales by logged name: ``scale/energy``, ``scale/forces/O``."""
    logged = {}
    for drawn in scales_to_draw(scaler.targets):
        scales = scaler.targets[drawn.name].per_target.tolist()
        for label, scale in zip(drawn.types or [""], scales, strict=False):
            path = f"scale/{logged_path(drawn.name)}"
            logged[f"{path}/{label}" if label else path] = scale
    return logged
