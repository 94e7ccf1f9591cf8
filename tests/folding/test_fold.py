"""Scales and baselines in the layers of a module, which then needs no scaler."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from plain_module import batches, loader_of
from small_training import quiet_trainer

from lightning_scaler import (
    CompositionBaseline,
    PerAtom,
    PerStructure,
    ScaleAccumulator,
    ScaledSteps,
    TargetScaler,
    fold,
)

ENERGY = {"energy": PerStructure(gradients={"positions": "-forces"}, unit="eV")}
LAYERS = {"energy": {"scales": "factor", "shifts": "references"}}


class Theirs(LightningModule):
    """E = Σ_i factor · (w_0 + w_1 x_i²) + references[z_i], with forces by autograd."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = torch.nn.Linear(2, 1)
        self.embedding = torch.nn.Embedding(9, 2)
        self.register_buffer("factor", torch.ones(1))
        self.register_buffer("references", torch.zeros(9))

    def forward(self, batch):
        with torch.enable_grad():
            positions = batch["positions"].to(self.factor.dtype).detach().requires_grad_()
            weights = self.embedding(batch["z"]) * positions.square().sum(1, keepdim=True)
            atomic = self.factor * self.out(weights)[:, 0] + self.references[batch["z"]]
            energy = atomic.new_zeros(len(batch["n_atoms"]))
            energy = energy.index_add(0, torch.repeat_interleave(batch["n_atoms"]), atomic)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy, "forces": -gradient}

    def training_step(self, batch, batch_idx):
        output = self(batch)
        return sum((output[n] - batch[n]).square().mean() for n in ("energy", "forces"))

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Ours(ScaledSteps, Theirs):
    pass


def scaled(data, targets=ENERGY, net=None, **options):
    accumulator = ScaleAccumulator(targets, **{"baseline": CompositionBaseline(), **options})
    for batch in data:
        accumulator.update(batch)
    net = Ours().double() if net is None else net
    net.target_scaler.update(accumulator.compute())
    return net


def with_totals_of(per_atom):
    """Batches with energies of about this much for every atom and unit of its type."""
    data = batches()
    for batch in data:
        owner = torch.repeat_interleave(batch["n_atoms"])
        batch["energy"].index_add_(0, owner, (per_atom + 100.0) * batch["z"].double())
    return data


def assert_same(first, second):
    for name in ("energy", "forces"):
        largest = first[name].abs().max().item()
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-12 * largest)


class ByIndex(Theirs):
    """Its table holds oxygen first."""

    def forward(self, batch):
        return super().forward({**batch, "z": 8 - batch["z"]})


class OursByIndex(ScaledSteps, ByIndex):
    pass


SYMBOLS = ["O", "N", "C", "B", "Be", "Li", "He", "H", 0]
LAST_LAYER = {"scales": ["out.weight", "out.bias"], "shifts": "references"}


@pytest.mark.parametrize(
    ("cls", "layers"),
    [
        (Ours, LAYERS),
        (Ours, {"energy": LAST_LAYER}),
        (OursByIndex, {"energy": {**LAST_LAYER, "types": SYMBOLS}}),
    ],
)
def test_the_folded_module_alone_predicts_in_physical_units(cls, layers):
    data = batches()
    net = scaled(data, net=cls().double())
    before, state = net(data[0]), copy.deepcopy(net.state_dict())
    assert (before["energy"] - data[0]["energy"]).abs().max() < 100.0
    folded = fold(net, data[0], layers)
    assert type(folded) is cls.__bases__[1]
    assert_same(before, folded(data[0]))
    assert not any("scale" in name for name in folded.state_dict())
    # The module itself is as it was.
    after = net.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)
    assert_same(before, net(data[0]))


@pytest.mark.parametrize("training", [True, False])
def test_a_module_stays_in_training_or_evaluation_mode(training):
    data = batches()
    net = scaled(data).train(training)
    folded = fold(net, data[0], LAYERS)
    assert {part.training for part in (*net.modules(), *folded.modules())} == {training}


def test_scale_and_shifts_are_those_of_the_fit():
    data = batches()
    net = scaled(data)
    folded = fold(net, data[0], LAYERS)
    scales = net.target_scaler.targets["energy"]
    assert folded.factor.item() == scales.per_target[0].item()
    shifts = folded.references[scales.baseline_types]
    assert torch.equal(shifts, scales.weights[(0,)][:, 0])
    # A second scale and earlier shifts are multiplied: 2 σ, 3 σ + w.
    net.factor.fill_(2.0)
    net.references.fill_(3.0)
    again = fold(net, data[0], LAYERS)
    assert again.factor.item() == 2.0 * folded.factor.item()
    expected = 3.0 * folded.factor + shifts
    torch.testing.assert_close(
        again.references[scales.baseline_types], expected, rtol=1e-15, atol=0
    )


def test_types_that_were_not_in_the_data_are_not_predicted_in_silence():
    data = batches()
    for batch in data:
        batch["z"] = batch["z"].clamp(max=3)
    folded = fold(scaled(data), data[0], LAYERS)
    unseen = {**data[0], "z": data[0]["z"].clone()}
    unseen["z"][0] = 8
    energy = folded(unseen)["energy"]
    assert energy[0].isnan()
    assert not energy[1:].isnan().any()


@pytest.mark.slow
def test_a_folded_checkpoint_is_read_by_the_class_itself(tmp_path, messages):
    data, net = batches(), Theirs().double()
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=ENERGY)])
    trainer.fit(net, loader_of(data))
    (expected, *_) = trainer.predict(net, loader_of(data))
    path, out = tmp_path / "net.ckpt", tmp_path / "folded.ckpt"
    trainer.save_checkpoint(path)
    trainer.save_checkpoint(path)
    said = ["checkpoints of ScaledTheirs have scales" in text for text in messages.messages]
    assert sum(said) == 1
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"target_scaler"):
        Theirs.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"class of the module in '.*net.ckpt' is not known"):
        fold(path, data[0], LAYERS, out)

    class Double(Theirs):
        def __init__(self):
            super().__init__()
            self.double()

    class Resets(Double):
        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"]["factor"] = torch.ones(1)

    with pytest.raises(ValueError, match=r"Resets.load_from_checkpoint does not restore the fold"):
        fold(path, data[0], LAYERS, out, module_class=Resets)
    assert list(tmp_path.glob("folded*")) == []
    fold(path, data[0], LAYERS, out, module_class=Double)
    loaded = Double.load_from_checkpoint(out, weights_only=True)
    (found, *_) = quiet_trainer(tmp_path, inference_mode=False).predict(loaded, loader_of(data))
    assert_same(expected, found)
    assert any("largest differences: energy " in text for text in messages.messages)
    assert [one.name for one in tmp_path.glob("folded*")] == ["folded.ckpt"]


def test_a_checkpoint_in_double_precision_is_folded_in_double_precision(tmp_path):
    """Its class makes modules in the default dtype, and tensors too when it runs."""

    class Sums(Theirs):
        def forward(self, batch):
            energy, forces = super().forward(batch).values()
            return {"energy": torch.zeros(len(energy)).add_(energy), "forces": forces}

    data, net = batches(), Sums()
    callback = TargetScaler(targets=ENERGY)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], precision="64-true")
    trainer.fit(net, loader_of(data))
    (expected, *_) = trainer.predict(net, loader_of(data))
    path, out = tmp_path / "net.ckpt", tmp_path / "folded.ckpt"
    trainer.save_checkpoint(path)
    for folded in (
        fold(net, data[0], LAYERS),
        fold(path, data[0], LAYERS, out, module_class=Sums),
    ):
        assert torch.get_default_dtype() == torch.float32
        assert folded.references.dtype == torch.float64
        assert_same(expected, Theirs.forward(folded, data[0]))
    weights = torch.load(out, weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float64}


def test_rounding_of_single_precision_is_refused_unless_allowed():
    """Totals of 1e6 in float32 are rounded to 0.06; the scale is 1 to 10."""
    data = with_totals_of(-1e5)
    net = scaled(data).float()
    with pytest.raises(ValueError, match=r"more than 0\.001 of the scale .* allow_rounding=True"):
        fold(net, data[0], LAYERS)
    folded = fold(net, data[0], LAYERS, allow_rounding=True)
    error = (folded(data[0])["energy"] - net(data[0])["energy"]).abs().max()
    assert 1e-3 < error < 1.0
    assert folded.references.dtype == torch.float32
    with pytest.raises(ValueError, match="more than rounding"):
        fold(
            net,
            data[0],
            {"energy": {"scales": "references", "shifts": "references"}},
            None,
            None,
            True,
        )
    # Smaller totals are within a thousandth of the scale.
    data = batches()
    net = scaled(data).float()
    assert fold(net, data[0], LAYERS).factor.dtype == torch.float32


def test_rounding_of_single_precision_counts_per_atom():
    """A structure of all atoms has a total of 2e6, whose rounding is far from 1e-3 of an atom."""
    data = with_totals_of(2000.0)
    whole = {name: torch.cat([batch[name] for batch in data]) for name in ("z", "positions")}
    whole["n_atoms"] = torch.tensor([len(whole["z"])])
    net = scaled(data).float()
    folded = fold(net, whole, LAYERS)
    error = (folded(whole)["energy"] - net(whole)["energy"]).abs().item()
    scale = net.target_scaler.targets["energy"].per_target[0].item()
    assert 1e-3 * scale < error < 1e-3 * scale * len(whole["z"])


def test_forces_in_single_precision_may_differ_by_rounding_in_a_double_module():
    """As from autograd with respect to positions in single precision."""

    class SingleForces(Theirs):
        def forward(self, batch):
            output = super().forward(batch)
            return {**output, "forces": output["forces"].float()}

    class OursSingleForces(ScaledSteps, SingleForces):
        pass

    data = batches()
    net = scaled(data, net=OursSingleForces().double())
    folded = fold(net, data[0], {"energy": LAST_LAYER})
    before, after = (one(data[0])["forces"].double() for one in (net, folded))
    error, largest = (before - after).abs().max(), before.abs().max()
    assert 1e-12 * largest < error < 1e-6 * largest
    wrong = {"energy": {"scales": "out.weight", "shifts": "references"}}
    with pytest.raises(ValueError, match="predicts something else"):
        fold(net, data[0], wrong)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "layers of Theirs are not known; name those that multiply"),
        ({"enrgy": {}}, r"layers names the target 'enrgy'.* did you mean 'energy'"),
        ({"energy": {"shifts": "references"}}, r"'energy': expected a dict such as {'scales'"),
        ({"energy": {"scales": "factr"}}, r"has no parameter or buffer 'factr'; did you mean 'fac"),
        ({"energy": {"scales": "factor"}}, "has a baseline; name the table .* as 'shifts'"),
        ({"energy": {"scales": "factor", "shift": "references"}}, "unknown name 'shift'; did you"),
        (
            {"energy": {"scales": "factor", "shifts": "references", "types": [1, 8]}},
            r"one number for each of 2 atomic types, got the shape \(9,\)",
        ),
        # The baseline is lost if the scale does not multiply the prediction.
        ({"energy": {"scales": "out.weight", "shifts": "references"}}, "predicts something else"),
    ],
)
def test_layers_that_do_not_serve_are_refused(layers, message):
    data = batches()
    with pytest.raises(ValueError, match=message):
        fold(scaled(data), data[0], layers)


def test_scales_that_layers_cannot_hold_are_refused():
    data = batches()

    class Shift(torch.nn.Module):
        def forward(self, systems, names):
            return {}

    populations = scaled(data, {"populations": PerAtom(properties=2)})
    with pytest.raises(ValueError, match=r"'populations': expected one scale .* each of 8 atomic"):
        fold(populations, data[0], LAYERS)
    net = scaled(data)
    net.target_scaler.additive = type("Additive", (), {"name": "ZBL"})()
    with pytest.raises(ValueError, match="additive module ZBL cannot be written into layers"):
        fold(net, data[0], LAYERS)
    with pytest.raises(ValueError, match=r"expected a batch of a loader"):
        fold(scaled(data), layers=LAYERS)
    with pytest.raises(TypeError, match=r"trained with ScaledSteps, .* got Theirs"):
        fold(Theirs(), data[0], LAYERS)
    with pytest.raises(TypeError, match=r"got OptimizedModule; pass its \._orig_mod"):
        fold(torch.compile(net), data[0], LAYERS)
    with pytest.raises(ValueError, match="out= needs the path of a checkpoint"):
        fold(scaled(data), data[0], LAYERS, "folded.ckpt")
    with pytest.raises(RuntimeError, match="no target scales"):
        fold(Ours(), data[0], LAYERS)


class Tied(Theirs):
    """Its last layer has two names; its embedding is used a second time in the prediction."""

    def __init__(self):
        super().__init__()
        self.head = self.out
        self.table = torch.nn.Linear(2, 9)
        self.table.weight = self.embedding.weight

    def forward(self, batch):
        output = super().forward(batch)
        extra = self.table.weight.square().sum() - self.table.weight.detach().square().sum()
        return {**output, "energy": output["energy"] + extra}


class OursTied(ScaledSteps, Tied):
    pass


def test_tied_weights_are_found_under_each_of_their_names():
    data = batches()
    net = scaled(data, net=OursTied().double())
    before = net(data[0])
    for name in ("head", "out"):
        last = {"scales": [f"{name}.weight", f"{name}.bias"], "shifts": "references"}
        assert_same(before, fold(net, data[0], {"energy": last})(data[0]))
    twice = {"scales": ["out.weight", "head.weight", "out.bias"], "shifts": "references"}
    message = r"'energy': 'out.weight' and 'head.weight' are one tensor, .* name it once"
    with pytest.raises(ValueError, match=message):
        fold(net, data[0], {"energy": twice})
    tied = {"scales": ["table.weight"], "shifts": "references"}
    message = r"predicts something else.*; 'table.weight' is tied to 'embedding.weight', which is"
    with pytest.raises(ValueError, match=message):
        fold(net, data[0], {"energy": tied})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("out.weight", r"layers: expected {'energy': {'scales': .*, got 'out.weight'"),
        ({"energy": {"scales": 3}}, r"'energy', 'scales': expected a list of names, got 3"),
        ({"energy": {"scales": [["factor"]]}}, r"expected a list of names, got \['factor'\] among"),
        (
            {"energy": {"scales": "factor", "shifts": None}},
            "the name of a parameter or buffer, got",
        ),
        ({"energy": {**LAST_LAYER, "types": "HO"}}, r"as 'types', such as \['H', 8\], got 'HO'"),
        ({"energy": {**LAST_LAYER, "types": 9}}, r"as 'types', such as \['H', 8\], got 9"),
    ],
)
def test_layers_of_another_type(layers, message):
    data = batches()
    with pytest.raises(TypeError, match=message):
        fold(scaled(data), data[0], layers)


def test_batches_and_modules_of_another_type():
    data = batches()
    net = scaled(data)
    with pytest.raises(
        TypeError, match=r"expected a batch of the loader, .* give next\(iter\(load"
    ):
        fold(net, loader_of(data), LAYERS)
    assert fold(net, next(iter(loader_of(data))), LAYERS)
    with pytest.raises(TypeError, match=r"expected the atomic types of the batch .*got a list of"):
        fold(net, data, LAYERS)
    with pytest.raises(TypeError, match="got the class Ours"):
        fold(Ours, data[0], LAYERS)
    with pytest.raises(TypeError, match=r"pass its \.module\._orig_mod"):
        fold(torch.optim.swa_utils.AveragedModel(torch.compile(net)), data[0], LAYERS)


def write_nothing(path):
    path.write_bytes(b"")


def write_weights(path):
    torch.save(Theirs().state_dict(), path)


def write_scaler(path):
    scaled(batches()).target_scaler.save(path)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (write_nothing, "got an empty one"),
        (write_weights, "got one with something else, such as weights alone"),
        (write_scaler, "got one that Scaler.save has written"),
    ],
)
def test_files_that_are_no_checkpoints(write, found, tmp_path):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(ValueError, match=rf"/file': expected a checkpoint of Lightning, {found}"):
        fold(path, batches()[0], LAYERS, module_class=Theirs)


def test_a_checkpoint_of_another_module_and_places_that_cannot_be_written(tmp_path):
    class Other(Theirs):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    trainer = quiet_trainer(tmp_path, max_epochs=0)
    trainer.fit(scaled(batches()), loader_of(batches()))
    path = tmp_path / "net.ckpt"
    trainer.save_checkpoint(path)

    def fold_as(module_class, out=None):
        return fold(path, batches()[0], LAYERS, out, module_class)

    message = r"net\.ckpt': expected the weights of ScaledOther, .*module_class=Other is not the"
    with pytest.raises(ValueError, match=message):
        fold_as(Other)
    for wrong, name in (("Theirs", "'Theirs'"), (Theirs(), "Theirs"), (dict, "the class dict")):
        with pytest.raises(TypeError, match=f"LightningModule's class as module_class, .*{name}$"):
            fold_as(wrong)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fold_as(Theirs, tmp_path / "nowhere" / "folded.ckpt")
    with pytest.raises(IsADirectoryError):
        fold_as(Theirs, tmp_path)
    with pytest.raises(TypeError, match=r"expected the path of a file to write, .* got 3"):
        fold_as(Theirs, 3)
    assert fold_as(Theirs, tmp_path / "folded.ckpt")
    assert {one.name for one in tmp_path.glob("*.ckpt")} == {"net.ckpt", "folded.ckpt"}


def test_an_unknown_baseline_is_refused():
    """The only structure with oxygen has no energy."""
    batch = {
        "z": torch.tensor([1, 1, 1, 1, 8]),
        "n_atoms": torch.tensor([1, 2, 2]),
        "positions": torch.ones(5, 3).double(),
        "energy": torch.tensor([-1.0, -3.0, float("nan")]).double(),
        "forces": torch.ones(5, 3).double(),
    }
    with pytest.warns(UserWarning, match="some atomic types have no data for a property"):
        net = scaled([batch])
    with pytest.raises(ValueError, match=r"weights of the atomic types \[8\] are unknown; give"):
        fold(net, batch, LAYERS)
