"""The parts that a configuration names."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig


def build(config: DictConfig, **arguments: Any) -> Any:
    """Instantiate a part of the configuration; say which package is missing, if one is."""
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        # Hydra's message names the class alone; what to install is in the chained exception.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ModuleNotFoundError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise InstantiationException(str(cause)) from error
