"""The command ``lightning-scaler-fit``: statistics of the training data, configured with Hydra."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import get_class, instantiate, to_absolute_path
from omegaconf import DictConfig, ListConfig, OmegaConf

from .config_files import command_configs
from .running import hydra_errors, prepare_run

# Settings of this command, which the configs of another application do not have.
OWN_SETTING = re.compile(r"(out|shard|shards)=")
# Names under which applications have the datamodule.
DATA = ("data", "datamodule")


def main() -> None:
    """Run the command with the arguments in ``sys.argv``."""
    sys.argv[1:] = [f"++{word}" if OWN_SETTING.match(word) else word for word in sys.argv[1:]]
    _run()


@hydra.main(version_base="1.3", config_path=str(command_configs()), config_name="fit")
def _run(config: DictConfig) -> None:
    """Collect the statistics that a composed configuration describes; see ``configs/fit.yaml``."""
    with hydra_errors("lightning-scaler-fit"):
        run_fit(config)


def run_fit(config: DictConfig) -> None:
    """Collect the statistics of the training data and write them to a file.

    Args:
        config: configuration of the training, with ``out``, ``shard`` and ``shards``.

    Raises:
        OSError: if the file cannot be written, before any data are read.
        ValueError: for a configuration without data, without a TargetScaler or with several, and
            for a shard that does not exist.
    """
    # Importing these takes seconds, which --help and misspelled overrides need not wait for.
    from ..reports import print_tables, print_text
    from ..tensors import check_writable
    from ..training import collect_statistics

    shard, shards = OmegaConf.select(config, "shard"), OmegaConf.select(config, "shards", default=1)
    out = OmegaConf.select(config, "out")
    if out in (None, ""):
        raise ValueError("out: expected a file to write; add out=statistics.safetensors")
    out = output_file(Path(to_absolute_path(str(out))), shard, shards)
    check_writable(out)
    prepare_run(config)
    callback = instantiate(_config_of_scaler(config))
    data = instantiate(_config_of_data(config))
    statistics = collect_statistics(data, callback, shard or 0, shards)
    if shards == 1:
        # Before the file is written: this checks that the data suit the settings.
        scaler = statistics.compute(callback.fixed_scales, callback.unseen_types, callback.enabled)
        if statistics.sample is not None:
            print_text(f"Of the data, {statistics.sample}")
        print_tables(scaler.table(), scaler.baselines_table())
    statistics.save(out)
    parts = "; ".join(map(str, statistics.parts)) or "data that cannot be identified"
    print_text(f"The statistics are in {out}: {parts}")


def output_file(out: Path, shard: Any, shards: Any) -> Path:
    """The file of a shard: several shards do not write to the same one.

    Args:
        out: file for all data.
        shard: index of the shard, from 0; ``None`` if there is only one.
        shards: number of shards.

    Raises:
        ValueError: if there is no such shard.

    Example:
        >>> output_file(Path("statistics.safetensors"), 1, 4).name
        'statistics.1-of-4.safetensors'
    """
    from ..fitting import DataPart

    for name, value in (("shard", 0 if shard is None else shard), ("shards", shards)):
        if not isinstance(value, int):
            raise ValueError(f"{name}: expected an integer, got {value!r}")
    if shard is None and shards > 1:
        raise ValueError(
            f"shards={shards}: expected shard=0 to shard={shards - 1} too, got none; add it, or "
            f"run all of them with --multirun shard={','.join(map(str, range(shards)))}"
        )
    DataPart({}, shard or 0, shards)
    return out if shards == 1 else out.with_name(f"{out.stem}.{shard}-of-{shards}{out.suffix}")


def _config_of_data(config: DictConfig) -> DictConfig:
    for name in DATA:
        if isinstance(config.get(name), DictConfig) and "_target_" in config[name]:
            found: DictConfig = config[name]
            return found
    raise ValueError(
        f"expected a datamodule with _target_ under one of {list(DATA)}, got a configuration with "
        f"{sorted(map(str, config))}"
    )


def _config_of_scaler(config: DictConfig) -> DictConfig:
    found = [node for node in _nodes(config) if _is_scaler(node)]
    if len(found) != 1:
        raise ValueError(
            "expected one TargetScaler in the configuration, such as callbacks.target_scaler, got "
            f"{len(found)}; add callbacks=[default,target_scaler]"
        )
    return found[0]


def _is_scaler(node: DictConfig) -> bool:
    from ..training import TargetScaler

    name = node.get("_target_") if OmegaConf.is_dict(node) else None
    if not isinstance(name, str) or not name.endswith("TargetScaler"):
        return False
    return issubclass(get_class(name), TargetScaler)


def _nodes(part: Any) -> Iterator[DictConfig]:
    """All mappings of a configuration, without resolving any interpolation."""
    if isinstance(part, DictConfig):
        yield part
    if isinstance(part, (DictConfig, ListConfig)) and not part._is_none():
        keys: Iterable[Any] = part if isinstance(part, DictConfig) else range(len(part))
        for key in keys:
            if not (OmegaConf.is_interpolation(part, key) or OmegaConf.is_missing(part, key)):
                yield from _nodes(part[key])


if __name__ == "__main__":
    main()
