"""Runs with declared targets in less usual settings."""

import pytest
import torch
from hydra.utils import instantiate
from hydra_zen import builds
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from small_training import quiet_trainer
from torch.utils.data import DataLoader

from lightning_scaler import PerAtom, PerStructure, TargetScaler, TargetScalingMixin
from lightning_scaler.plain_tensors import GradientTensor

DECLARED = {
    "energy": PerStructure(gradients={"positions": "-forces"}),
    "charges": PerAtom(),
}


class Net(TargetScalingMixin, LightningModule):
    """Energies and forces of springs between the atoms and the origin, and constant charges."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.Embedding(10, 3)

    def forward(self, batch):
        weights, x = self.weights(batch["z"]), batch["positions"]
        x = x.to(weights.dtype)
        atomic = weights[:, 0] + weights[:, 1] * x.square().sum(1)
        owner = batch["batch"]
        energy = atomic.new_zeros(int(owner[-1]) + 1).index_add(0, owner, atomic)
        forces = -2 * weights[:, 1:2] * x
        return {"energy": energy, "forces": forces, "charges": weights[:, 2]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(n_batches=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_batches):
        owner = torch.repeat_interleave(torch.tensor([3, 1, 2]))
        z = torch.tensor([8, 1])[torch.randint(2, (6,), generator=generator)]
        x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        atomic = z * (x.square().sum(1) - 1000.0)
        energy = atomic.new_zeros(3).index_add(0, owner, atomic)
        yield {
            "z": z,
            "batch": owner,
            "positions": x,
            "energy": energy,
            "forces": -2 * z[:, None] * x,
            "charges": 0.1 * z + 0.1 * x[:, 0],
        }


def loader(**changes):
    return DataLoader([{**batch, **changes} for batch in batches()], batch_size=None)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_rounds_targets_before_they_are_scaled_is_refused(precision, tmp_path):
    """Energies of -2e4 would have errors of 50 with bfloat16, and the network would learn these."""
    trainer = quiet_trainer(
        tmp_path, callbacks=[TargetScaler(targets=DECLARED)], precision=precision
    )
    with pytest.raises(TypeError, match=r"target 'energy', .* got b?float16, .*='bf16-mixed'"):
        trainer.fit(Net(), loader(), loader())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint after one epoch, and the predictions then."""
    folder = tmp_path_factory.mktemp("run")
    trainer = quiet_trainer(folder, max_epochs=1, callbacks=[TargetScaler(targets=DECLARED)])
    net = Net()
    trainer.fit(net, loader(), loader())
    trainer.save_checkpoint(folder / "net.ckpt")
    return folder / "net.ckpt", trainer.predict(net, loader())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_addresses_may_be_given_for_the_checkpoint_of_an_evaluation(
    checkpoint, tmp_path, stage
):
    energy = PerStructure("E", "energy", gradients={"positions": "-forces"})
    data = [{("E" if n == "energy" else n): v for n, v in batch.items()} for batch in batches()]
    results = []
    for targets, of_stage in (
        (DECLARED, loader()),
        ({**DECLARED, "energy": energy}, DataLoader(data, batch_size=None)),
    ):
        trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=targets)])
        run = getattr(trainer, stage)
        results += run(Net(), of_stage, ckpt_path=checkpoint[0], verbose=False)
    prefix = "val" if stage == "validate" else "test"
    assert f"{prefix}/energy/positions/rmse" in results[0]
    assert results[0] == results[1]


OTHER_VALUES = {
    "unit": PerStructure(gradients={"positions": "-forces"}, unit="Ha"),
    "per_atom": PerStructure(gradients={"positions": "-forces"}, per_atom=True),
}


@pytest.mark.parametrize(("argument", "energy"), OTHER_VALUES.items(), ids=OTHER_VALUES)
def test_other_units_than_those_of_restored_scales_are_refused(
    checkpoint, tmp_path, argument, energy
):
    net = Net.load_from_checkpoint(checkpoint[0])
    callback = TargetScaler(targets={**DECLARED, "energy": energy})
    if argument == "unit":
        # The unit is not known to the checkpoint, and may be added.
        quiet_trainer(tmp_path, callbacks=[callback]).validate(net, loader(), verbose=False)
        callback = TargetScaler(targets={**DECLARED, "energy": PerStructure(unit="eV")})
    with pytest.raises(ValueError, match=f"'energy': the scales .* are for {argument}=.*refit=Tr"):
        quiet_trainer(tmp_path, callbacks=[callback]).validate(net, loader(), verbose=False)


def test_a_list_of_names_means_tensormaps_also_for_a_checkpoint_of_declared_targets(
    checkpoint, tmp_path
):
    callback = TargetScaler(targets=["energy", "charges"])
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2)
    with pytest.raises(TypeError, match=r"'system'.*TargetScaler\(targets=\{'energy': PerS"):
        trainer.fit(Net(), loader(), loader(), ckpt_path=checkpoint[0])


STRESS = GradientTensor("stress", prediction="+virial", volume="cell")
IN_CONFIGS = {
    "energy": PerStructure(gradients={"positions": "-forces", "strain": STRESS}, unit="eV"),
    "alpha": PerStructure(("y", 3), components={"spherical": 2}),
    "charges": PerAtom(),
}
CONFIG = """
_target_: lightning_scaler.TargetScaler
targets:
  energy:
    _target_: lightning_scaler.PerStructure
    gradients:
      positions: "-forces"
      strain: {tensor: stress, prediction: "+virial", volume: cell}
    unit: eV
  alpha: {per: structure, tensor: [y, 3], components: {spherical: 2}}
  charges: {_target_: lightning_scaler.PerAtom}
batch: {types: [inputs, z], structure: [inputs, 0]}
"""


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_a_declaration_in_a_config_of_hydra_is_that_of_python(convert):
    callback = instantiate(OmegaConf.create(CONFIG), _convert_=convert)
    addresses = {"types": ("inputs", "z"), "structure": ("inputs", 0)}
    assert callback.declaration == TargetScaler(targets=IN_CONFIGS, batch=addresses).declaration


def test_hydra_zen_builds_the_callback_from_declared_targets():
    callback = instantiate(builds(TargetScaler, targets=IN_CONFIGS))
    assert callback.declaration == TargetScaler(targets=IN_CONFIGS).declaration


def test_declarations_in_a_list_or_without_an_address_are_refused():
    with pytest.raises(TypeError, match=r"targets: expected a list of names, got \{'energy': "):
        TargetScaler(targets=[{"energy": {"per": "structure"}}])
    message = (
        r"PerStructure\(gradients=\{'positions': …\}\), tensor: expected the address .*got None"
    )
    with pytest.raises(TypeError, match=message):
        TargetScaler(targets={"energy": {"per": "structure", "gradients": {"positions": None}}})
