"""The metrics that are logged for a target, their names and values, and logged losses."""

import copy
import math

import pytest
import torch
from builders import atom_samples, spherical, structure_target
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from metatensor.torch import multiply
from small_training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback
from torch.utils.data import DataLoader, Subset
from torchmetrics import (
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    R2Score,
)
from torchmetrics.wrappers import BootStrapper, MinMaxMetric

from lightning_scaler import PhysicalUnits
from lightning_scaler.metrics import MeanOfSums, SharedSums
from lightning_scaler.steps.metric_logging import metric_scopes
from lightning_scaler.steps.metric_outputs import MetricOutput, copy_metrics, output_names
from lightning_scaler.tensors import TargetLayout


def test_metrics_are_copied_in_float64_and_must_be_a_collection():
    metrics = MetricCollection({"mae": MeanAbsoluteError()})
    first, second = (copy_metrics(metrics)["mae"] for _ in range(2))
    assert first is not second
    first.update(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-9, dtype=torch.float64))
    assert first.compute() == torch.tensor(1e-9, dtype=torch.float64)
    assert not second.update_called
    with pytest.raises(TypeError, match=r"expected a torchmetrics MetricCollection.*MeanAbsolute"):
        copy_metrics(MeanAbsoluteError())


def test_metrics_in_physical_units_already_are_not_wrapped():
    metrics = MetricCollection({"r2": PhysicalUnits(R2Score(), "energy", baseline=True)})
    with pytest.raises(TypeError, match=r"got PhysicalUnits as 'r2'; .* give the metric inside it"):
        copy_metrics(metrics)


# The blocks of the polarizability, and where their components are in the data.
BLOCKS = {"o3_lambda_0": (0, slice(0, 1)), "o3_lambda_2": (2, slice(1, 6))}


class PerBlock(SmallNet):
    metrics_per_block = ("polarizability",)


@pytest.fixture(scope="module", params=[False, True], ids=["intensive", "extensive"])
def evaluated(request, tmp_path_factory):
    """What is logged, by stage; differences of predictions and data by block; the suffix."""
    intensive_targets = ["dipole"] if request.param else ["dipole", "polarizability"]
    callback = scaler_callback(intensive_targets=intensive_targets)
    trainer = quiet_trainer(tmp_path_factory.mktemp("evaluated"), callbacks=[callback])
    net, data = PerBlock(), SmallData()
    trainer.fit(net, data)
    logged = {
        "val": trainer.validate(net, data, verbose=False)[0],
        "test": trainer.test(net, data, verbose=False)[0],
    }
    differences = {name: [] for name in BLOCKS}
    predictions = trainer.predict(net, data)
    for of_batch, start in zip(predictions, range(0, 9, 4), strict=True):
        for row, (molecule, numbers) in enumerate(data.held_out.items[start : start + 4]):
            for name, (o3_lambda, columns) in BLOCKS.items():
                block = of_batch["polarizability"].block({"o3_lambda": o3_lambda})
                predicted, truth = block.values[row, :, 0], numbers["polarizability"][0, columns]
                n_atoms = len(molecule) if request.param else 1
                differences[name] += ((predicted - truth) / n_atoms).tolist()
    return logged, differences, "_per_atom" if request.param else ""


def mae(differences):
    return math.fsum(map(abs, differences)) / len(differences)


def rmse(differences):
    return math.sqrt(math.fsum(x * x for x in differences) / len(differences))


@pytest.mark.parametrize(("stage", "metric"), [("val", mae), ("test", rmse)])
def test_metrics_per_block_are_those_of_each_block_alone(evaluated, stage, metric):
    logged, differences, suffix = evaluated
    expected = {name: metric(of_block) for name, of_block in differences.items()}
    for name, value in expected.items():
        path = f"{stage}/polarizability/{name}/{metric.__name__}{suffix}"
        # Predictions pass through float32 once, in model space.
        assert logged[stage][path] == pytest.approx(value, rel=1e-5), name
    # One block and five components, which could not be told apart if they were equal.
    values = list(expected.values())
    assert abs(values[0] - values[1]) > 0.05 * max(values)
    together = metric([x for of_block in differences.values() for x in of_block])
    path = f"{stage}/polarizability/{metric.__name__}{suffix}"
    assert logged[stage][path] == pytest.approx(together, rel=1e-5)


class Recording(SmallNet):
    """Remembers the loss and the number of systems of every step, by stage."""

    def __init__(self, lr=0.05):
        super().__init__(lr=lr)
        self.steps = {"train": [], "val": [], "test": []}
        self.stage = None

    def unpack_batch(self, batch):
        self.n_systems = len(batch["system"])
        return super().unpack_batch(batch)

    def compute_loss(self, predictions, targets):
        loss = super().compute_loss(predictions, targets)
        self.steps[self.stage].append((self.n_systems, loss.item()))
        return loss

    def training_step(self, batch, batch_idx):
        self.stage = "train"
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.stage = "val"
        super().validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.stage = "test"
        super().test_step(batch, batch_idx, dataloader_idx)


class Uneven(SmallData):
    """Batches of the given sizes, in training and in evaluation."""

    def __init__(self, sizes):
        super().__init__(size=sum(sizes))
        self.held_out = type(self.held_out)(sum(sizes), 1)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.batches = [list(range(s, s + n)) for s, n in zip(starts, sizes, strict=True)]

    def train_dataloader(self):
        return DataLoader(self.train, batch_sampler=self.batches, collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_sampler=self.batches, collate_fn=collate)


def test_losses_of_an_epoch_are_weighted_by_the_systems_of_each_batch(tmp_path):
    sizes = [3, 1, 7, 2]
    net, data = Recording(), Uneven(sizes)
    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(unseen_types="pooled")], num_sanity_val_steps=0
    )
    trainer.fit(net, data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    logged["test/loss"] = trainer.test(net, data, verbose=False)[0]["test/loss"]
    for stage, steps in net.steps.items():
        assert [n_systems for n_systems, _ in steps] == sizes
        weighted = math.fsum(n * loss for n, loss in steps) / sum(sizes)
        unweighted = math.fsum(loss for _, loss in steps) / len(steps)
        assert logged[f"{stage}/loss"] == pytest.approx(weighted, rel=1e-6)
        assert abs(weighted - unweighted) > 1e-3 * weighted  # the two can be told apart


def without_targets(batch):
    return {"system": batch["system"]}


def with_missing_values_alone(batch):
    missing = {n: multiply(t, torch.nan) for n, t in batch.items() if n != "system"}
    return {"system": batch["system"], **missing}


@pytest.mark.parametrize("change", [without_targets, with_missing_values_alone])
def test_evaluation_batches_without_targets_do_not_lower_the_loss(tmp_path, change):
    """Batches of 4, 4 and 1 systems, of which the first has no targets."""

    def without_targets_in_the_first(items):
        batch = collate(items)
        return change(batch) if items[0] is data.held_out.items[0] else batch

    data = SmallData()
    net, trainer = SmallNet(), quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    others = DataLoader(Subset(data.held_out, range(4, 9)), batch_size=4, collate_fn=collate)
    expected = trainer.validate(net, others, verbose=False)[0]
    data.collate_fn = without_targets_in_the_first
    found = trainer.validate(net, data, verbose=False)[0]
    assert found == pytest.approx(expected, rel=1e-12)


class WithOtherMetrics(SmallNet):
    """Metrics that are not a function of the difference, and metrics that return a dict."""

    def configure_metrics(self):
        return MetricCollection(
            {
                "mae": MeanAbsoluteError(),
                "mape": MeanAbsolutePercentageError(),
                "r2": R2Score(),
                "over_epochs": MinMaxMetric(MeanAbsoluteError()),
                "bootstrap": BootStrapper(MeanAbsoluteError(), num_bootstraps=3),
            }
        )


@pytest.mark.slow
def test_percentage_errors_and_r2_are_logged_for_targets_with_their_baseline(tmp_path):
    """By a plain loop over predictions and data, in physical units."""
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    net, data = WithOtherMetrics(), SmallData()
    trainer.fit(net, data)
    logged = trainer.validate(net, data, verbose=False)[0]
    predicted, truth = [], []
    for of_batch, start in zip(trainer.predict(net, data), range(0, 9, 4), strict=True):
        for row, (molecule, numbers) in enumerate(data.held_out.items[start : start + 4]):
            predicted.append(of_batch["energy"].block().values[row].item() / len(molecule))
            truth.append(numbers["energy"].item() / len(molecule))
    pairs = list(zip(predicted, truth, strict=True))
    mape = math.fsum(abs(p - y) / abs(y) for p, y in pairs) / len(pairs)
    mean = math.fsum(truth) / len(truth)
    r2 = 1 - math.fsum((p - y) ** 2 for p, y in pairs) / math.fsum((y - mean) ** 2 for y in truth)
    # Without the baseline, of about -1000 per unit of k, both would be of order one.
    assert mape < 0.01
    assert logged["val/energy/mape_per_atom"] == pytest.approx(mape, rel=1e-4)
    assert logged["val/energy/r2_per_atom"] == pytest.approx(r2, rel=1e-9)


@pytest.mark.slow
def test_metrics_that_return_a_dict_are_logged_under_its_keys(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3)
    maes = []

    class Recorded(WithOtherMetrics):
        def on_train_epoch_end(self):
            maes.append(self.trainer.callback_metrics["val/charges/mae"].item())

    net = Recorded()
    trainer.fit(net, SmallData())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for name in ("val/energy/positions/", "val/charges/", "train/dipole/"):
        mae = logged[f"{name}mae"]
        # Metrics of torchmetrics add the values in another order.
        assert logged[f"{name}over_epochs/raw"] == pytest.approx(mae, rel=1e-14)
        assert 0 < logged[f"{name}bootstrap/mean"] < 3 * mae
        assert logged[f"{name}bootstrap/std"] > 0
    # Over all epochs, without the sanity check.
    assert len(maes) == len(set(maes)) == 3
    assert logged["val/charges/over_epochs/min"] == pytest.approx(min(maes), rel=1e-14)
    assert logged["val/charges/over_epochs/max"] == pytest.approx(max(maes), rel=1e-14)


class Tally(Metric):
    """The number of values, under two keys."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("n", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.n = self.n + target.numel()

    def compute(self):
        return {"n": self.n, "double": 2 * self.n}


def test_a_metric_with_several_keys_sees_every_value_once(tmp_path):
    class Counting(SmallNet):
        def configure_metrics(self):
            return MetricCollection({"tally": Tally()})

    net, data = Counting(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    found = trainer.validate(net, data, verbose=False)[0]
    n_charges = sum(len(numbers["charges"]) for _, numbers in data.held_out.items)
    assert found["val/charges/tally/n"] == n_charges
    assert found["val/charges/tally/double"] == 2 * n_charges


def test_keys_of_a_dict_are_found_without_drawing_random_numbers():
    before = torch.random.get_rng_state()
    bootstrap = BootStrapper(MeanAbsoluteError(), num_bootstraps=3, quantile=0.5, raw=True)
    assert output_names(bootstrap) == ["mean", "std", "quantile"]  # not the list of all values
    assert not any(metric.update_called for metric in bootstrap.metrics)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert output_names(R2Score()) is None


def test_an_entry_is_on_the_device_of_the_metric_that_it_shares():
    """Lightning moves what is logged to the device that it has already."""
    shared = SharedSums(["energy"], 2).to("meta")
    for entry in (MetricOutput(shared, "energy"), MeanOfSums(shared, ["energy"])):
        entry.to(entry.device)
        assert shared.sums.device.type == "meta"


def test_a_prefix_may_end_with_a_dot(tmp_path):
    class Net(SmallNet):
        def configure_metrics(self):
            return MetricCollection({"mae": MeanAbsoluteError()}, prefix="p.")

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(Net(), SmallData())
    assert "val/energy/p_mae_per_atom" in trainer.logged_metrics


def test_names_with_colons_are_logged_for_file_names_of_checkpoints(tmp_path):
    """ModelCheckpoint reads a field of its file name up to the first colon."""

    class Renamed(SmallNet):
        def forward(self, systems):
            predictions = super().forward(systems)
            return {**predictions, "mtt::charges": predictions.pop("charges")}

    def renamed(items):
        batch = collate(items)
        return {**batch, "mtt::charges": batch.pop("charges")}

    checkpoint = ModelCheckpoint(
        tmp_path,
        "{epoch}-{val/mtt/charges/mae:.4f}",
        monitor="val/mtt/charges/mae",
        auto_insert_metric_name=False,
    )
    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(), checkpoint], enable_checkpointing=True
    )
    trainer.fit(Renamed(), SmallData(collate_fn=renamed))
    mae = trainer.callback_metrics["val/mtt/charges/mae"].item()
    assert mae > 0
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"0-{mae:.4f}.ckpt"]
    assert not any(":" in name for name in trainer.callback_metrics)


def test_a_target_may_have_the_name_of_a_loss_term(tmp_path):
    class Net(SmallNet):
        def forward(self, systems):
            predictions = super().forward(systems)
            return {**predictions, "term::energy": predictions.pop("charges")}

    def renamed(items):
        batch = collate(items)
        return {**batch, "term::energy": batch.pop("charges")}

    net = Net()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, SmallData(collate_fn=renamed))
    logged = trainer.callback_metrics
    assert logged["train/loss/energy"] > 0.0
    assert logged["train/loss/term/energy"] > 0.0
    assert logged["train/term/energy/mae"] > 0.0


class ByTorchmetrics(SmallNet):
    """Metrics of its own beside those that are logged, updated in every step by torchmetrics."""

    metrics_per_block = ("polarizability",)

    def __init__(self):
        super().__init__()
        self.calls = []
        self.own = torch.nn.ModuleDict()
        for name, where in {
            "energy/{}_per_atom": {"target": "energy"},
            "energy/positions/{}": {"target": "energy", "gradient": "positions"},
            "charges/{}": {"target": "charges"},
            "polarizability/{}": {"target": "polarizability"},
            "polarizability/o3_lambda_2/{}": {
                "target": "polarizability",
                "block": {"o3_lambda": 2},
            },
        }.items():
            for metric, of in {
                "mae": MeanAbsoluteError(),
                "rmse": MeanSquaredError(squared=False),
            }.items():
                self.own[name.format(metric)] = PhysicalUnits(of, **where)

    def log(self, name, value, **options):
        self.calls.append(name)
        super().log(name, value, **options)

    def update_metrics(self, stage, systems, predictions, targets, dataloader_idx=0):
        super().update_metrics(stage, systems, predictions, targets, dataloader_idx)
        for metric in self.own.values():
            metric.update(self.scaler, systems, predictions, targets)


class EveryEpoch(Callback):
    """Compares what is logged at the end of every epoch, of training and of validation."""

    def __init__(self):
        self.epochs = {"train": 0, "val": 0}
        self.values = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.forget(pl_module)

    def on_validation_epoch_start(self, trainer, pl_module):
        # Those of the training epoch, which the validation interrupts.
        self.saved, pl_module.own = pl_module.own, copy.deepcopy(pl_module.own)
        self.forget(pl_module)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.compare("val", trainer, pl_module)
        pl_module.own = self.saved

    def on_train_epoch_end(self, trainer, pl_module):
        self.compare("train", trainer, pl_module)

    def forget(self, net):
        for metric in net.own.values():
            metric.reset()
        if not net.trainer.validating:
            net.calls.clear()

    def compare(self, stage, trainer, net):
        self.epochs[stage] += 1
        for name, metric in net.own.items():
            logged = trainer.callback_metrics[f"{stage}/{name}"]
            torch.testing.assert_close(logged, metric.compute(), rtol=1e-13, atol=0.0)
            self.values.append(logged.item())


def some_are_missing(items):
    """The first charge of a batch is missing; every other batch is without the polarizability."""
    batch = collate(items)
    batch["charges"].block().values[0] = torch.nan
    if len(batch["system"][0]) % 2:
        batch.pop("polarizability")
    return batch


@pytest.mark.slow
def test_logged_errors_are_those_of_torchmetrics_at_every_end_of_an_epoch(tmp_path):
    net, compared = ByTorchmetrics(), EveryEpoch()
    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(), compared], max_epochs=2, val_check_interval=2
    )
    trainer.fit(net, SmallData(collate_fn=some_are_missing))
    assert compared.epochs == {"train": 2, "val": 6}
    assert len(compared.values) == 8 * len(net.own)
    assert len(set(compared.values)) > 6 * len(net.own)  # they change from epoch to epoch
    # Six training batches of an epoch, and three validations of three.
    assert net.calls.count("train/energy/mae_per_atom") == 1
    assert net.calls.count("train/loss") == 1
    assert net.calls.count("train/loss/energy/positions") == 1
    assert net.calls.count("val/energy/mae_per_atom") == 3


def test_targets_without_any_value_are_not_logged(tmp_path):
    def all_charges_missing(items):
        batch = collate(items)
        batch["charges"].block().values.fill_(torch.nan)
        return batch

    net, data = SmallNet(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    data.collate_fn = all_charges_missing
    logged = trainer.validate(net, data, verbose=False)[0]
    assert "val/dipole/mae" in logged
    assert not [name for name in logged if name.startswith("val/charges")]


@pytest.mark.slow
def test_an_interrupted_run_does_not_enter_the_metrics_of_the_next(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("interrupted")

    nets = [SmallNet(lr=0.0), SmallNet(lr=0.0)]
    data = SmallData(shuffle=False)
    with pytest.raises(RuntimeError, match="interrupted"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback(), Interrupt()]).fit(nets[0], data)
    logged = []
    for net in nets:
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
        trainer.fit(net, data)
        logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert logged[0] == logged[1]


@pytest.mark.slow
def test_a_trainer_that_was_interrupted_logs_its_next_run(tmp_path):
    class InterruptOnce(Callback):
        interrupted = False

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if not self.interrupted:
                self.interrupted = True
                raise RuntimeError("interrupted")

    net, data = SmallNet(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(), InterruptOnce()])
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(net, data)
    assert "train/loss" not in trainer.callback_metrics
    trainer.fit(net, data)
    expected = {"train/loss", "train/loss/energy", "train/energy/mae_per_atom", "val/loss"}
    assert expected <= trainer.callback_metrics.keys()


def logged_names(tensor, extensive, per_block=()):
    layout = TargetLayout.of("t", tensor)
    return [scope.logged_name("mae") for scope in metric_scopes(layout, extensive, per_block)]


def test_only_position_gradients_of_extensive_targets_are_not_per_atom():
    gradient = {"positions": [[[1.0, 0, 0]]], "strain": [[[1.0, 0, 0]] * 3]}
    energy = structure_target([1.0], gradient=gradient)
    assert logged_names(energy, True) == [
        "t/mae_per_atom",
        "t/positions/mae",
        "t/strain/mae_per_atom",
    ]
    assert logged_names(energy, False) == ["t/mae", "t/positions/mae", "t/strain/mae"]


def test_names_of_blocks_consist_of_their_keys_without_a_sigma_of_one():
    values = {(0, 1): [[[1.0]]], (1, -1): [[[1.0], [2.0], [3.0]]]}
    tensor = spherical(values, atom_samples(1))
    assert logged_names(tensor, False) == ["t/mae"]
    blocks = ["t/o3_lambda_0/mae", "t/o3_lambda_1_o3_sigma_-1/mae"]
    assert logged_names(tensor, False, per_block=["t"]) == ["t/mae", *blocks]
