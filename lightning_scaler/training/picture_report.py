"""The report after a fit: pictures in the folder of the run, and in its loggers."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ..data_pass import DataSample
from ..reports import draw_distributions, draw_terms, print_text, write_png
from ..scaling import Scaler, scales_to_draw
from .metric_scopes import logged_path
from .run_folder import run_folder


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
        step, folder = trainer.global_step, report_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _pictures(scaler, sample):
            path = folder / f"target_{name}.png"
            pixels = write_png(figure, path)
            written.append(path)
            _log_picture(trainer, f"target_scaler/{name}", path, pixels, step)
        for logger in trainer.loggers:
            logger.log_metrics(_logged_scales(scaler), step=step)
    except Exception as error:
        warnings.warn(
            f"TargetScaler: the report of the fit is not complete: {type(error).__name__}: {error}",
            stacklevel=2,
        )
    if written:
        names = ", ".join(path.name for path in written)
        print_text(f"TargetScaler: pictures of the fit in {written[0].parent}: {names}")


def report_folder(trainer: Trainer) -> Path:
    """The folder for the pictures of a run, or that of its first logger, where checkpoints are too.

    Args:
        trainer: trainer of the run, on rank 0.
    """
    folder = run_folder(trainer)
    if folder is not None:
        return folder
    logger = next(iter(trainer.loggers), None)
    if logger is None:
        return Path(trainer.default_root_dir)
    root = logger.save_dir or trainer.default_root_dir
    return Path(root, str(logger.name), str(logger.version))


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


def _log_picture(trainer: Trainer, tag: str, path: Path, pixels: Any, step: int) -> None:
    """Add a picture to those loggers that take any, such as TensorBoard and W&B."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[str(path)], step=step)
        elif hasattr(experiment, "add_image"):
            experiment.add_image(tag, pixels, step, dataformats="HWC")


def _logged_scales(scaler: Scaler) -> dict[str, float]:
    """The per-target scales by logged name: ``scale/energy``, ``scale/forces/O``."""
    logged = {}
    for drawn in scales_to_draw(scaler.targets):
        scales = scaler.targets[drawn.name].per_target.tolist()
        for label, scale in zip(drawn.types or [""], scales, strict=False):
            path = f"scale/{logged_path(drawn.name)}"
            logged[f"{path}/{label}" if label else path] = scale
    return logged
