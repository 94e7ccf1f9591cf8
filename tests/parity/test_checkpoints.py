"""Scales read from the checkpoints of metatrain give the conversions of metatrain."""

import copy

import pytest
import torch
from builders import structure_target
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput
from metatrain.composition import CompositionModel
from metatrain.composition.trainer import Trainer
from metatrain.pet import PET
from metatrain.scaler import Scaler as MetatrainScaler, train_or_load_scaler
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import Dataset, DatasetInfo
from metatrain.utils.data.target_info import TargetInfo
from reference import layout_of
from target_kinds import BATCHES, KINDS, random_numbers

from lightning_scaler import Scaler

TYPES = [1, 6, 8]
CPU = [torch.device("cpu")]
SYSTEMS = [one for batch in BATCHES for one in batch]
OF_CHECKPOINT = {
    "energy": "energy",
    "alpha": "irreps of structures",
    "quadrupoles": "rank 2 of atoms",
    "charges": "charges",
    "forces": "forces",
    "orbitals": "atomic basis",
}


def rows_of(tensor, position):
    """The rows of one system, labelled by its position in the dataset."""
    blocks = []
    for block in tensor.blocks():
        keep = block.samples.values[:, 0] == position
        samples = Labels(block.samples.names, block.samples.values[keep])
        values = block.values[keep]
        blocks.append(TensorBlock(values, samples, block.components, block.properties))
    return TensorMap(tensor.keys, blocks)


def dataset(names):
    numbers = random_numbers(seed=5)
    whole = {name: KINDS[OF_CHECKPOINT[name]](SYSTEMS, numbers) for name in names}
    fields = {"system": SYSTEMS}
    for name, tensor in whole.items():
        fields[name] = [rows_of(tensor, position) for position in range(len(SYSTEMS))]
    fields["mtt::aux::system_index"] = [
        structure_target([float(position)], [position]) for position in range(len(SYSTEMS))
    ]
    info = DatasetInfo(
        length_unit="angstrom",
        atomic_types=TYPES,
        targets={name: TargetInfo(layout_of(tensor)) for name, tensor in whole.items()},
    )
    return Dataset.from_dict(fields), info, whole


def fit_composition(model, data, folder, fixed=None):
    hypers = get_default_hypers("composition")["training"]
    hypers |= {"batch_size": 3, "num_workers": 0, "atomic_baseline": fixed or {}}
    Trainer(hypers).train(model, torch.float64, CPU, [data], [data], checkpoint_dir=folder)


def fit_scaler(model, data, additive, folder, fixed=None):
    train_or_load_scaler(
        model,
        [data],
        additive,
        batch_size=3,
        is_distributed=False,
        fixed_weights=fixed,
        per_structure_targets=["alpha"],
        trainer_hypers={"num_workers": 0},
        checkpoint_dir=folder,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("metatrain"))
    data, info, whole = dataset(OF_CHECKPOINT)
    composition = CompositionModel.from_valid_targets(info, TYPES)
    fit_composition(composition, data, folder)
    scaler = MetatrainScaler(get_default_hypers("scaler")["model"], info)
    fit_scaler(scaler, data, [composition], folder)
    return folder, scaler, composition, whole


def physical_by_metatrain(scaler, composition, name, tensor):
    """Multiply by the scales of every sample and add the composition, as models of metatrain do."""
    kind = "atom" if "atom" in tensor.sample_names else "system"
    outputs = {name: ModelOutput(sample_kind=kind)}
    scales = scaler.eval()(SYSTEMS, outputs)[name]
    added = {}
    if name in composition.outputs:
        added = composition.eval()(SYSTEMS, outputs)[name]
    blocks = []
    for row, key in enumerate(tensor.keys):
        block = tensor.block_by_id(row)
        values = block.values * scales.block(key).values
        if added and key in added.keys:
            values = values + added.block(key).values
        blocks.append(TensorBlock(values, block.samples, block.components, block.properties))
    return TensorMap(tensor.keys, blocks)


@pytest.mark.parametrize("name", OF_CHECKPOINT)
def test_predictions_with_standalone_checkpoints(agree, fitted, name):
    folder, scaler, composition, _ = fitted
    ours = Scaler.from_metatrain(f"{folder}/scaler.ckpt", f"{folder}/composition_model.ckpt")
    assert list(ours.targets) == list(OF_CHECKPOINT)
    tensor = KINDS[OF_CHECKPOINT[name]](SYSTEMS, random_numbers(seed=17))
    mine = ours.convert(SYSTEMS, {name: tensor}, "model", "physical")[name]
    yours = physical_by_metatrain(scaler, composition, name, tensor)
    for one, other in zip(mine.blocks(), yours.blocks(), strict=True):
        agree(f"from_metatrain: {name}", one.values, other.values)


def test_settings_of_the_checkpoints(fitted):
    folder, *_ = fitted
    ours = Scaler.from_metatrain(f"{folder}/scaler.ckpt", f"{folder}/composition_model.ckpt")
    assert ours.settings.baseline == "composition"
    assert ours.settings.enabled
    extensive = {name for name, scales in ours.targets.items() if scales.extensive}
    assert extensive == {"energy"}


def test_loaded_checkpoints_give_the_same_scales_as_their_files(fitted):
    # torch.load returns objects of metatrain here, since it is installed.
    folder, *_ = fitted
    files = [f"{folder}/scaler.ckpt", f"{folder}/composition_model.ckpt"]
    loaded = [torch.load(file, weights_only=False) for file in files]
    one, other = Scaler.from_metatrain(*files), Scaler.from_metatrain(*loaded)
    for name, scales in one.scales.items():
        for mine, yours in zip(scales.blocks(), other.scales[name].blocks(), strict=True):
            assert torch.equal(mine.values, yours.values)


def test_targets_in_loss_space(agree, fitted):
    # Orbitals are left out: in training metatrain converts them in a layout for all types.
    folder, scaler, composition, whole = fitted
    ours = Scaler.from_metatrain(f"{folder}/scaler.ckpt", f"{folder}/composition_model.ckpt")
    for name in ("energy", "charges", "forces"):
        left = whole[name]
        if name in composition.outputs:
            kind = "atom" if "atom" in left.sample_names else "system"
            outputs = {name: ModelOutput(sample_kind=kind)}
            added = composition.eval()(SYSTEMS, outputs)[name].block()
            block = left.block()
            values = block.values - added.values
            block = TensorBlock(values, block.samples, block.components, block.properties)
            left = TensorMap(left.keys, [block])
        yours = scaler.apply_scales(SYSTEMS, {name: left}, True, use_per_property_scales=False)
        mine = ours.convert(SYSTEMS, {name: whole[name]}, "physical", "loss")[name]
        agree(f"from_metatrain: {name}", mine.block().values, yours[name].block().values)


def test_fixed_scales_and_fixed_baseline(tmp_path):
    data, info, _ = dataset(["energy", "forces"])
    atomic = {1: -13.6, 6: -1030.5, 8: -2041.8}
    composition = CompositionModel.from_valid_targets(info, TYPES)
    fit_composition(composition, data, str(tmp_path), {"energy": atomic})
    scaler = MetatrainScaler(get_default_hypers("scaler")["model"], info)
    fixed = {"energy": 0.5, "forces": {1: 0.2, 6: 0.7, 8: 1.1}}
    fit_scaler(scaler, data, [composition], str(tmp_path), fixed)
    ours = Scaler.from_metatrain(tmp_path / "scaler.ckpt", tmp_path / "composition_model.ckpt")
    assert ours.targets["energy"].fixed == 0.5
    assert ours.targets["energy"].fixed_weights == atomic
    assert ours.targets["forces"].fixed == fixed["forces"]
    assert ours.scales["forces"].block().values[:, 0].tolist() == [0.2, 0.7, 1.1]


def small_pet(info, **changes):
    hypers = copy.deepcopy(get_default_hypers("pet")["model"])
    hypers |= {"d_pet": 4, "d_node": 4, "d_head": 4, "d_feedforward": 4, "num_heads": 1}
    hypers |= {"num_attention_layers": 1, "num_gnn_layers": 1}
    return PET(hypers | changes, info)


def test_predictions_with_the_checkpoint_of_a_whole_model(agree, tmp_path):
    data, info, _ = dataset(["energy", "forces", "orbitals"])
    model = small_pet(info)
    fit_composition(model.additive_models[0], data, "")
    fit_scaler(model.scaler, data, list(model.additive_models), "")
    torch.save(model.get_checkpoint(), tmp_path / "model.ckpt")
    ours = Scaler.from_metatrain(tmp_path / "model.ckpt")
    for name in ("energy", "forces", "orbitals"):
        tensor = KINDS[OF_CHECKPOINT[name]](SYSTEMS, random_numbers(seed=17))
        mine = ours.convert(SYSTEMS, {name: tensor}, "model", "physical")[name]
        yours = physical_by_metatrain(model.scaler, model.additive_models[0], name, tensor)
        for one, other in zip(mine.blocks(), yours.blocks(), strict=True):
            agree(f"from_metatrain, whole model: {name}", one.values, other.values)
    with pytest.raises(ValueError, match="contains its composition weights"):
        Scaler.from_metatrain(tmp_path / "model.ckpt", tmp_path / "model.ckpt")


def test_a_model_with_zbl_is_refused(tmp_path):
    _, info, _ = dataset(["forces"])
    energy = TargetInfo(layout_of(structure_target([0.0])), quantity="energy", unit="eV")
    info.targets["energy"] = energy
    torch.save(small_pet(info, zbl=True).get_checkpoint(), tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"after subtracting the additive models .*additive_models\.1"
    ):
        Scaler.from_metatrain(tmp_path / "model.ckpt")


def test_predictions_with_state_dicts(agree, fitted):
    _, scaler, composition, whole = fitted
    with pytest.raises(ValueError, match="does not say whether additive models were subtracted"):
        Scaler.from_metatrain(scaler.state_dict())
    layouts = {"charges": whole["charges"], "forces": whole["forces"]}
    ours = Scaler.from_metatrain(scaler.state_dict(), composition.state_dict(), layouts=layouts)
    tensor = KINDS["irreps of structures"](SYSTEMS, random_numbers(seed=17))
    mine = ours.convert(SYSTEMS, {"alpha": tensor}, "model", "physical")["alpha"]
    yours = physical_by_metatrain(scaler, composition, "alpha", tensor)
    for one, other in zip(mine.blocks(), yours.blocks(), strict=True):
        agree("from_metatrain: alpha", one.values, other.values)
    # A state dict has orbitals only in the layout of metatrain for all types.
    assert ours.targets["orbitals"].layout.key_names == ("o3_lambda", "o3_sigma")
