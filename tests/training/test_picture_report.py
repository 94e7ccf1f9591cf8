"""``TargetScaler(report=True)`` in runs of a real Trainer, with a real TensorBoard."""

import io
import math
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.image import imread
from plain_module import DECLARED, OtherModule, batches, loader_of
from small_training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

import lightning_scaler.settings.checks
from lightning_scaler import PerStructure, TargetScaler
from lightning_scaler.training import picture_report

PICTURES = ["target_distributions.png", "target_loss_terms.png", "target_scales.png"]


def run(folder, logger=False, net=None, data=None, callback=None, **options):
    net = net or SmallNet()
    callback = callback or scaler_callback(report=True)
    trainer = quiet_trainer(folder, callbacks=[callback], logger=logger, **options)
    trainer.fit(net, data or SmallData())
    return net, trainer


def run_with_one_target(folder, logger=False, net=None, report=True, cache=None, **options):
    """A run whose pictures take less time to draw."""
    net, data = net or OtherModule().double(), loader_of(batches())
    callback = TargetScaler(targets={"energy": PerStructure(unit="eV")}, report=report, cache=cache)
    trainer = quiet_trainer(folder, callbacks=[callback], logger=logger, **options)
    trainer.fit(net, data, data)
    return net, trainer


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def with_tensorboard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    logger = TensorBoardLogger(folder, name="net", version="first")
    data = SmallData()
    net, _ = run(folder, logger, data=data, max_epochs=2)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0})
    return net, data, folder, events.Reload()


@pytest.mark.slow
def test_pictures_are_in_the_folder_of_the_logger_and_in_its_events(with_tensorboard):
    _, _, folder, events = with_tensorboard
    assert pictures(folder / "net" / "first") == PICTURES
    assert events.Tags()["images"] == [
        "target_scaler/scales",
        "target_scaler/distributions",
        "target_scaler/loss_terms",
    ]
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        name = f"target_{tag.split('/')[1]}.png"
        logged = imread(io.BytesIO(event.encoded_image_string))
        np.testing.assert_array_equal(logged[..., :3], imread(folder / "net/first" / name)[..., :3])
        assert logged.std() > 0.05  # not blank


@pytest.mark.slow
def test_scales_are_logged(with_tensorboard):
    net, _, _, events = with_tensorboard
    charges = net.scaler.per_target_scales["charges"].block().values[:, 0].tolist()
    expected = {f"scale/charges/{z}": s for z, s in zip("HCO", charges, strict=True)}
    for name in ("energy", "dipole", "polarizability"):
        values = net.scaler.per_target_scales[name].block(0).values
        expected[f"scale/{name}"] = values[0, 0].item()
    found = [tag for tag in events.Tags()["scalars"] if tag.startswith("scale/")]
    assert sorted(found) == sorted(expected)
    for tag, scale in expected.items():
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([scale])


@pytest.mark.slow
def test_the_rms_of_the_validation_targets_is_logged_at_each_validation(with_tensorboard):
    """By a plain loop over the numbers of the validation data."""
    net, data, _, events = with_tensorboard
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/rms/")]
    assert sorted(tags) == [
        f"val/rms/{name}" for name in ("charges", "dipole", "energy", "polarizability")
    ]
    scaler, rows = net.scaler, data.held_out.items
    scale = scaler.per_target_scales["dipole"].block().values.item()
    dipoles = [x for _, numbers in rows for x in numbers["dipole"].flatten().tolist()]
    dipole = math.sqrt(math.fsum(x * x for x in dipoles) / len(dipoles)) / scale
    energies = scaler.targets["energy"]
    (weights,) = energies.weights.values()
    weight = dict(zip(energies.baseline_types.tolist(), weights[:, 0].tolist(), strict=True))
    residuals = []
    for system, numbers in rows:
        baseline = math.fsum(weight[z] for z in system.types.tolist())
        residuals.append((numbers["energy"].item() - baseline) / len(system))
    scale = scaler.per_target_scales["energy"].block().values.item()
    energy = math.sqrt(math.fsum(x * x for x in residuals) / len(rows)) / scale
    assert [e.value for e in events.Scalars("val/rms/dipole")] == pytest.approx([dipole] * 2)
    assert [e.value for e in events.Scalars("val/rms/energy")] == pytest.approx([energy] * 2)
    # The validation data have another composition, so it is not 1 by construction.
    assert abs(energy - 1.0) > 0.01


def test_without_a_report_nothing_is_drawn_or_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="net", version="first")
    _, trainer = run_with_one_target(tmp_path, logger, report=False)
    assert pictures(tmp_path) == []
    text = (tmp_path / "net" / "first" / "metrics.csv").read_text()
    assert "scale/" not in text
    assert not [name for name in trainer.callback_metrics if "/rms/" in name]


def test_csv_files_have_the_numbers_and_the_folder_the_pictures(tmp_path):
    run_with_one_target(tmp_path, CSVLogger(tmp_path, name="net"))
    assert pictures(tmp_path / "net" / "version_0") == PICTURES
    header = (tmp_path / "net" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"scale/energy", "val/rms/energy"} <= {*header}


class Gallery(Logger):
    """A logger like that of W&B: it takes pictures from files, and has no ``log_dir``."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.images = folder, {}

    name, version = "project", "run 1"

    @property
    def save_dir(self):
        return str(self.folder)

    def log_image(self, key, images, step=None):
        self.images[key] = (images, step)

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params, *args, **kwargs): ...


def test_loggers_that_take_files_get_the_paths(tmp_path):
    logger = Gallery(tmp_path)
    run_with_one_target(tmp_path, logger)
    folder = tmp_path / "project" / "run 1"
    assert logger.images == {
        f"target_scaler/{name}": ([str(folder / f"target_{name}.png")], 0)
        for name in ("scales", "distributions", "loss_terms")
    }
    assert pictures(folder) == PICTURES


class Remote(Gallery):
    """One whose folder is a bucket."""

    @property
    def save_dir(self):
        return "s3://bucket"


def test_a_folder_that_is_not_of_this_machine_is_not_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logger = Remote(tmp_path)
    run_with_one_target(tmp_path, logger)
    assert list(tmp_path.iterdir()) == []
    assert "pictures of the fit" not in capsys.readouterr().out
    assert len(logger.images) == 3
    for (pixels,), _ in logger.images.values():
        assert pixels.shape[2] == 3
        assert pixels.std() > 10  # not blank


def test_pictures_that_end_nowhere_are_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, trainer = run_with_one_target(tmp_path, CSVLogger("memory://bucket"))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.count("TargetScaler: no pictures of the fit, because") == 1
    assert "scale/energy" in trainer.logger.experiment.metrics_keys


def test_without_a_logger_pictures_are_in_the_root_folder_of_the_trainer(tmp_path, capsys):
    run_with_one_target(tmp_path)
    assert pictures(tmp_path) == PICTURES
    assert f"TargetScaler: pictures of the fit in {tmp_path}: " in capsys.readouterr().out


def test_a_dev_run_writes_nothing(tmp_path):
    run_with_one_target(tmp_path, fast_dev_run=True)
    assert pictures(tmp_path) == []


def test_scales_that_are_kept_are_not_drawn_again(tmp_path):
    net, _ = run_with_one_target(tmp_path / "first")
    run_with_one_target(tmp_path / "second", net=net)
    assert pictures(tmp_path / "second") == []


@pytest.mark.slow
def test_data_that_are_not_read_are_not_drawn(tmp_path, monkeypatch):
    cache, found = tmp_path / "cache.st", drawn(monkeypatch)
    for number in (1, 2):
        run_with_one_target(tmp_path / str(number), cache=cache)
    assert pictures(tmp_path / "1") == PICTURES
    assert pictures(tmp_path / "2") == ["target_loss_terms.png", "target_scales.png"]
    (_, missing) = found["draw_terms"]
    assert missing == {"energy": (0.0, [0.0])}  # known from the cache


def drawn(monkeypatch):
    """What the pictures of the data are drawn from, by function."""
    found = {}
    for name in ("draw_distributions", "draw_terms"):
        original = getattr(picture_report, name)

        def record(*args, original=original, name=name):
            found[name] = args
            return original(*args)

        monkeypatch.setattr(picture_report, name, record)
    return found


def collate_with_missing_values(items):
    """Every third charge of a batch is missing."""
    batch = collate(items)
    charges = batch["charges"].block().values
    charges[::3] = torch.nan
    return batch


@pytest.mark.slow
def test_missing_values_are_counted_and_left_out_of_the_distributions(tmp_path, monkeypatch):
    found = drawn(monkeypatch)
    data = SmallData(collate_fn=collate_with_missing_values, shuffle=False)
    net, _ = run(tmp_path, data=data)
    sizes = [len(system) for system, _ in data.train.items]
    in_batches = [sum(sizes[start : start + 4]) for start in range(0, len(sizes), 4)]
    n_missing = sum(math.ceil(n / 3) for n in in_batches)
    mean_squares, missing = found["draw_terms"]
    assert mean_squares == net.scaler.mean_squares
    assert missing["charges"].share == pytest.approx(n_missing / sum(sizes))
    assert missing["charges"].by_property == pytest.approx([n_missing / sum(sizes)])
    assert missing["polarizability"].by_property == [0.0, 0.0]
    (terms, _) = found["draw_distributions"]
    charges = {term.name: term for term in terms}["charges"]
    assert sorted(charges.before) == ["C", "H", "O"]
    drawn_values = [value for values in charges.before.values() for value in values]
    assert len(drawn_values) == sum(sizes) - n_missing


@pytest.mark.slow
def test_distributions_are_those_of_the_data_before_and_after(tmp_path, monkeypatch):
    """All 22 structures are in the sample. Without a baseline, after = before / scale."""
    found = drawn(monkeypatch)
    data = SmallData()
    net, _ = run(tmp_path, data=data, callback=scaler_callback(report=True, baseline="none"))
    terms = {term.name: term for term in found["draw_distributions"][0]}
    assert [*terms] == ["energy", "energy/positions", "dipole", "polarizability", "charges"]
    rows = data.train.items
    energies = sorted(numbers["energy"].item() for _, numbers in rows)
    assert sorted(terms["energy"].before[""]) == pytest.approx(energies)
    gradients = [x for _, numbers in rows for x in numbers["gradient"].flatten().tolist()]
    assert sorted(terms["energy/positions"].before[""]) == pytest.approx(sorted(gradients))
    of_oxygen = [
        charge
        for system, numbers in rows
        for z, charge in zip(system.types.tolist(), numbers["charges"].tolist(), strict=True)
        if z == 8
    ]
    assert sorted(terms["charges"].before["O"]) == pytest.approx(sorted(of_oxygen))
    scale = net.scaler.per_target_scales["charges"].block().values[2].item()
    scaled = [charge / scale for charge in terms["charges"].before["O"]]
    assert terms["charges"].after["O"] == pytest.approx(scaled)
    square = math.fsum(x * x for x in terms["energy/positions"].after[""]) / len(gradients)
    assert square == pytest.approx(net.scaler.mean_squares["energy/positions"])


@pytest.mark.slow
def test_a_module_with_steps_of_its_own_has_a_report_with_its_units(tmp_path, monkeypatch):
    found = drawn(monkeypatch)
    energy = PerStructure(gradients={"positions": "-forces"}, unit="eV")
    callback = TargetScaler(targets={**DECLARED, "energy": energy}, report=True)
    data = batches()
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    trainer.fit(OtherModule().double(), loader_of(data), loader_of(data))
    assert pictures(tmp_path) == PICTURES
    terms, units = found["draw_distributions"]
    assert [term.name for term in terms] == ["energy", "energy/positions", "populations"]
    assert units == {"energy": "eV"}
    # Validation has the data of the fit.
    logged = trainer.callback_metrics
    for name in ("energy", "populations"):
        assert logged[f"val/rms/{name}"].item() == pytest.approx(1.0)


@pytest.mark.slow
def test_several_validation_loaders_have_an_rms_each(tmp_path):
    class Two(SmallData):
        def val_dataloader(self):
            return [
                DataLoader(items, batch_size=4, collate_fn=collate)
                for items in (self.train, self.held_out)
            ]

    _, trainer = run(tmp_path, data=Two())
    logged = trainer.callback_metrics
    assert logged["val/rms/dipole/dataloader_idx_0"].item() == pytest.approx(1.0)
    assert abs(logged["val/rms/dipole/dataloader_idx_1"].item() - 1.0) > 0.01


class WithoutServer(Gallery):
    """A logger that asks a server for the name of the run, in vain."""

    @property
    def version(self):
        raise ConnectionError("no server")


def test_a_logger_without_a_folder_does_not_stop_the_training(tmp_path):
    message = "the report of the fit is not complete: ConnectionError: no server"
    with pytest.warns(UserWarning, match=message):
        _, trainer = run_with_one_target(tmp_path, WithoutServer(tmp_path))
    assert trainer.global_step > 0


def test_a_report_that_cannot_be_written_does_not_stop_the_training(tmp_path):
    (tmp_path / "file").write_text("in the way of the folder")
    with pytest.warns(UserWarning, match=r"the report of the fit is not complete: \w+Error"):
        net, _ = run_with_one_target(tmp_path / "file")
    assert net.target_scaler.fitted
    assert net.global_step > 0


@pytest.mark.slow
def test_validation_on_something_else_is_left_out_with_one_warning(tmp_path):
    class Other(OtherModule):
        def validation_step(self, batch, batch_idx):
            self(self.seen[0])

    callback = TargetScaler(targets=DECLARED, report=True)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=0)
    others = DataLoader([1.0, 2.0, 3.0], batch_size=1)
    with pytest.warns(UserWarning, match="the RMS of a validation batch in loss space") as caught:
        trainer.fit(Other().double(), loader_of(batches()), others)
    assert len([w for w in caught if "validation batch" in str(w.message)]) == 1


@pytest.mark.slow
def test_validation_batches_are_read_by_the_step_alone(tmp_path):
    class Counting(SmallNet):
        n_read = 0

        def unpack_batch(self, batch):
            self.n_read += not self.training
            return super().unpack_batch(batch)

    net, trainer = run(tmp_path, net=Counting(), num_sanity_val_steps=0)
    before = net.n_read
    trainer.validate(net, SmallData(), verbose=False)
    assert net.n_read - before == 3
    assert net._scaling_observer is None
    assert trainer.callback_metrics["val/rms/dipole"] > 0.0


@pytest.mark.slow
def test_targets_may_be_converted_before_the_first_batch_of_a_validation(tmp_path):
    class Early(SmallNet):
        def on_validation_epoch_start(self):
            batch = next(iter(self.trainer.datamodule.val_dataloader()))
            self.targets_to_loss(*self.unpack_batch(batch))

    _, trainer = run(tmp_path, net=Early())
    assert trainer.callback_metrics["val/rms/dipole"] > 0.0


@pytest.mark.slow
def test_a_callback_that_has_reported_does_not_keep_its_trainer(tmp_path):
    callback = scaler_callback(report=True)
    run(tmp_path, callback=callback)
    assert b"Trainer" not in pickle.dumps(callback)


@pytest.mark.slow
def test_a_step_without_targets_has_no_rms(tmp_path):
    class Other(SmallNet):
        def validation_step(self, batch, batch_idx): ...

    _, trainer = run(tmp_path, net=Other())
    assert not [name for name in trainer.callback_metrics if "/rms/" in name]


def test_without_matplotlib_a_report_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(lightning_scaler.settings.checks, "find_spec", lambda name: None)
    TargetScaler()
    with pytest.raises(
        ModuleNotFoundError, match=r"reports of a fit need the extra 'plot': pip install"
    ):
        TargetScaler(report=True)


def test_report_is_true_or_false():
    with pytest.raises(TypeError, match="report: expected True or False, got 'folder'"):
        TargetScaler(report="folder")
