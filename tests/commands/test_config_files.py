"""The configs: every choice composes and builds what it names."""

import inspect

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import instantiate
from launching import composed
from omegaconf import OmegaConf

from lightning_scaler import TargetScaler
from lightning_scaler.commands.config_files import command_configs, configs_folder

CHOICES = sorted(
    (group.name, choice.stem)
    for group in command_configs().iterdir()
    if group.is_dir()
    for choice in group.glob("*.yaml")
)
BUILT = {
    ("callbacks", "checkpoint"): "ModelCheckpoint",
    ("callbacks", "progress_bar"): "RichProgressBar",
    ("data", "molecules"): "MoleculesDataModule",
    ("logger", "csv"): "CSVLogger",
    ("logger", "tensorboard"): "TensorBoardLogger",
    ("metrics", "default"): "MetricCollection",
    ("model", "molecules"): "MoleculesModel",
    ("trainer", "cpu"): "Trainer",
    ("trainer", "ddp"): "Trainer",
    ("trainer", "default"): "Trainer",
    ("trainer", "gpu"): "Trainer",
}


def test_every_choice_is_built_below():
    assert sorted(BUILT) == CHOICES


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), BUILT)
def test_every_choice_composes_and_builds(tmp_path, group, choice):
    override = f"{group}={choice}"
    if group == "callbacks":
        override = f"callbacks=[target_scaler,{choice}]"
    with composed(tmp_path, override) as config:
        part = OmegaConf.to_container(config[group], resolve=True)
    if group == "callbacks":
        part = part[choice]
    elif group == "metrics":
        part = part["collection"]
    elif group == "trainer" and part.get("accelerator") == "gpu":
        part["accelerator"] = "cpu"  # machines without a GPU refuse the name
    assert type(instantiate(part)).__name__ == BUILT[group, choice]


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("trainer=tpu", MissingConfigException, "Could not find 'trainer/tpu'"),
        ("modle.lr=1", ConfigCompositionException, "Could not override 'modle.lr'"),
    ],
)
def test_misspelled_overrides_are_refused(tmp_path, override, error, message):
    with pytest.raises(error, match=message), composed(tmp_path, override):
        pass


def test_the_shared_config_lists_every_argument_of_the_callback_with_its_default():
    shared = OmegaConf.load(configs_folder() / "callbacks" / "target_scaler.yaml").target_scaler
    parameters = inspect.signature(TargetScaler.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    listed = {name: value for name, value in shared.items() if not name.startswith("_")}
    assert listed.keys() == defaults.keys()
    for name, default in defaults.items():
        expected = list(default) if isinstance(default, tuple) else default
        assert listed[name] == expected, name
