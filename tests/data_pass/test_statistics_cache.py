"""``TargetScaler(cache=...)`` in runs of a real Trainer."""

import re

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from small_training import (
    SmallData,
    SmallNet,
    Stream,
    assert_same_scales,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader

from lightning_scaler import ScaleAccumulator, Scaler, TargetScaler
from lightning_scaler.fitting import DataPart, data_parts

SIZE = 50  # more than the 32 samples that identify the data


def fitted(folder, data=None, net=None, fast_dev_run=False, **options):
    """A network after its fit, and the samples that were read for it."""
    net, data = net or SmallNet(), data or SmallData(SIZE)
    callback = scaler_callback(cache=folder / "cache.st", **options)
    trainer = quiet_trainer(
        folder,
        callbacks=[callback],
        max_epochs=0,
        limit_val_batches=0,
        fast_dev_run=fast_dev_run,
    )
    trainer.fit(net, data)
    return net, data.train.reads


def line(capsys):
    """What was printed about the cache."""
    (found,) = re.findall(r"TargetScaler: the cache '.*cache.st' (.*)\n", capsys.readouterr().out)
    return found


def test_a_second_fit_reads_a_few_samples_and_has_the_same_scales_to_the_bit(tmp_path, capsys):
    first, reads = fitted(tmp_path)
    assert line(capsys) == "does not exist yet; it is written after the data pass"
    assert sorted(reads)[-1] == SIZE - 1
    second, reads = fitted(tmp_path)
    assert line(capsys) == f"is used, without a data pass (samples: {SIZE})"
    assert len(reads) == 32
    assert_same_scales(first.scaler, second.scaler)
    plain = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=0).fit(plain, SmallData(SIZE))
    assert_same_scales(first.scaler, plain.scaler)


@pytest.mark.slow
def test_training_is_the_same_with_and_without_the_cache(tmp_path):
    losses = []
    for cache in (None, "cache.st", "cache.st"):
        torch.manual_seed(0)
        net = SmallNet()
        callback = scaler_callback(cache=cache and tmp_path / cache)
        quiet_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(net, SmallData(SIZE))
        losses.append(net.losses)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"unseen_types": "pooled"},
        {"fixed_scales": {"energy": 2.0}},
        {"enabled": False},
        {"loss_weights": {"dipole": 2.0}, "balance_loss": False},
    ],
    ids=str,
)
def test_settings_that_leave_the_statistics_alone_use_the_same_file(tmp_path, capsys, change):
    fitted(tmp_path)
    capsys.readouterr()
    net, _ = fitted(tmp_path, **change)
    assert "is used, without a data pass" in line(capsys)
    plain = SmallNet()
    callback = scaler_callback(**change)
    quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0).fit(plain, SmallData(SIZE))
    assert_same_scales(net.scaler, plain.scaler)


def larger(data):
    data.train.items[7][1]["charges"] *= 1.5


def with_another_type(data):
    types = data.train.items[7][0].types
    types[0] = 6 if types[0] == 1 else 1


# 50 samples, of which the middles of 32 equal parts are read: 7 = floor(9 / 64 * 50).
CHANGES = {
    "values": (lambda: changed(larger), {}, "differ in values of 32 samples; it is"),
    "types": (lambda: changed(with_another_type), {}, "differ in values of 32 samples"),
    "number": (
        lambda: SmallData(SIZE + 1),
        {},
        "the file and this fit differ in samples (50 and 51); ",
    ),
    "targets": (
        lambda: SmallData(SIZE, collate_fn=lambda items: without(items, "charges")),
        {},
        "targets (charges, dipole, energy, polarizability and dipole, energy, polarizability)",
    ),
    "requested": (None, {"targets": ["energy", "dipole", "polarizability"]}, "targets (None and ["),
    "intensive": (None, {"intensive_targets": ["dipole"]}, "intensive_targets (['dipole', 'polar"),
    "baseline": (None, {"baseline": "none"}, "baseline (CompositionBaseline(fixed={}) and None)"),
    "labels": (None, {"system_labels": "position"}, "system_labels (auto and position)"),
    "batches": (None, {"limit_batches": 3}, "samples (50 and 12)"),
}


def changed(change):
    data = SmallData(SIZE)
    change(data)
    return data


def without(items, name):
    from small_training import collate

    batch = collate(items)
    del batch[name]
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_other_data_and_settings_are_not_taken_from_the_file(tmp_path, capsys, change):
    make, options, reason = CHANGES[change]
    fitted(tmp_path)
    before = (tmp_path / "cache.st").read_bytes()
    capsys.readouterr()
    net, _ = fitted(tmp_path, make and make(), **options)
    printed = line(capsys)
    assert printed.startswith("is not used: ")
    assert reason in printed
    assert "it is kept as it is" in printed
    assert (tmp_path / "cache.st").read_bytes() == before
    plain = SmallNet()
    callback = scaler_callback(**options)
    data = make() if make else SmallData(SIZE)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0, limit_val_batches=0)
    trainer.fit(plain, data)
    assert_same_scales(net.scaler, plain.scaler)
    if change == "values":  # the way out
        (tmp_path / "cache.st").unlink()
        fitted(tmp_path, make(), **options)
        assert "is written" in line(capsys)
        fitted(tmp_path, make(), **options)
        assert "is used" in line(capsys)


def test_statistics_of_another_version_are_not_used(tmp_path, capsys, monkeypatch):
    fitted(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(data_parts, "package_version", lambda: "9.9")
    fitted(tmp_path)
    assert re.search(r"version of lightning_scaler \(\S+ and 9.9\)", line(capsys))


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        lambda: SmallData(SIZE, batch_size=7),
        lambda: SmallData(SIZE, shuffle=False),
        lambda: Workers(SIZE),
    ],
    ids=["batch size", "shuffle", "workers"],
)
def test_how_the_same_data_are_read_does_not_matter(tmp_path, capsys, data):
    fitted(tmp_path)
    capsys.readouterr()
    fitted(tmp_path, data())
    assert "is used" in line(capsys)


class Workers(SmallData):
    def train_dataloader(self):
        return DataLoader(self.train, 5, collate_fn=self.collate_fn, num_workers=1)


class Several(SmallData):
    """Two loaders, whose batches come in a dict."""

    def train_dataloader(self):
        loaders = {"a": super().train_dataloader(), "b": super().val_dataloader()}
        return CombinedLoader(loaders, "max_size_cycle")


@pytest.mark.slow
def test_several_loaders_are_identified_together(tmp_path, capsys):
    fitted(tmp_path, Several(SIZE))
    capsys.readouterr()
    other = Several(SIZE)
    other.held_out.items[0][1]["charges"] += 1.0
    fitted(tmp_path, other)
    assert "values of 32 samples" in line(capsys)
    fitted(tmp_path, Several(SIZE))
    assert line(capsys) == f"is used, without a data pass (samples: {SIZE} + 9)"


class Streamed(SmallData):
    def __init__(self, fingerprint=None):
        super().__init__(SIZE)
        self.train = Stream(self.train.items)
        self.train.reads = []
        if fingerprint:
            self.train.fingerprint = fingerprint

    def train_dataloader(self):
        return DataLoader(self.train, 4, collate_fn=self.collate_fn)


def test_a_stream_is_identified_by_its_fingerprint_alone(tmp_path, capsys):
    fitted(tmp_path, Streamed())
    assert "is not used: data that are read as a stream cannot be identified" in line(capsys)
    assert not (tmp_path / "cache.st").exists()
    first, _ = fitted(tmp_path, Streamed("of yesterday"))
    capsys.readouterr()
    second, _ = fitted(tmp_path, Streamed("of yesterday"))
    assert line(capsys) == "is used, without a data pass (samples: stream)"
    assert_same_scales(first.scaler, second.scaler)
    fitted(tmp_path, Streamed("of today"))
    assert "fingerprint of the dataset (of yesterday and of today)" in line(capsys)


@pytest.mark.slow
def test_training_continues_with_the_first_batch_of_a_stream_whose_pass_was_not_needed(tmp_path):
    losses = []
    for _ in range(2):
        net = SmallNet()
        callback = scaler_callback(cache=tmp_path / "cache.st")
        quiet_trainer(tmp_path, callbacks=[callback]).fit(net, Streamed("a"))
        losses.append(net.losses)
    assert losses[0] == losses[1]


def test_a_fast_dev_run_neither_uses_nor_writes_the_file(tmp_path, capsys):
    fitted(tmp_path, fast_dev_run=True)
    assert line(capsys) == "is not used: fast_dev_run"
    assert not (tmp_path / "cache.st").exists()


def test_scales_that_are_all_fixed_need_no_file(tmp_path, capsys):
    fixed = {
        "targets": ["dipole"],
        "fixed_scales": {"dipole": 1.0},
        "intensive_targets": ["dipole"],
    }
    fitted(tmp_path, **fixed)
    assert line(capsys) == "is not used: all scales are fixed"


def test_a_fit_of_some_targets_beside_kept_scales_does_not_replace_the_file(tmp_path, capsys):
    net, _ = fitted(tmp_path, targets=["energy", "dipole"], intensive_targets=["dipole"])
    before = (tmp_path / "cache.st").read_bytes()
    capsys.readouterr()
    fitted(tmp_path, net=net, targets=["energy", "dipole", "charges"], intensive_targets=["dipole"])
    assert line(capsys) == "is not used: other scales are kept"
    assert (tmp_path / "cache.st").read_bytes() == before


@pytest.mark.slow
def test_a_file_of_shards_that_are_incomplete_is_not_used(tmp_path, capsys):
    fitted(tmp_path)
    saved = ScaleAccumulator.load(tmp_path / "cache.st")
    (part,) = saved.parts
    for parts, reason in (
        ((), "it does not say of which data it is"),
        ((DataPart(part.data, 1, 3),), "it does not have shards 0, 2 of 3"),
        ((part, DataPart({"samples": "9"})), "it is of 2 data sets together"),
    ):
        saved.parts = parts
        saved.save(tmp_path / "cache.st")
        capsys.readouterr()
        fitted(tmp_path)
        assert line(capsys).startswith(f"is not used: {reason}; it is kept")


def test_a_damaged_file_is_an_error_that_says_to_delete_it(tmp_path):
    fitted(tmp_path)
    content = (tmp_path / "cache.st").read_bytes()
    (tmp_path / "cache.st").write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"cache: file '.*cache.st': truncated .*delete the file"):
        fitted(tmp_path)
    # Nothing was written.
    assert (tmp_path / "cache.st").read_bytes() == content[:-9]


def test_a_file_of_something_else_is_an_error_and_is_not_replaced(tmp_path):
    (tmp_path / "cache.st").write_text("the only copy of a thesis")
    with pytest.raises(ValueError, match=r"cache: file '.*cache.st': expected a file that"):
        fitted(tmp_path)
    assert (tmp_path / "cache.st").read_text() == "the only copy of a thesis"
    (tmp_path / "cache.st").unlink()
    Scaler().save(tmp_path / "cache.st")
    with pytest.raises(ValueError, match=r"holds a 'Scaler'; delete the file, or name another"):
        fitted(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_reported_and_the_fit_goes_on(tmp_path, capsys):
    callback = scaler_callback(cache="/proc/cache.st")
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0).fit(net, SmallData())
    assert "does not exist yet; it cannot be written: No such file" in line(capsys)
    assert net.scaler.fitted


def test_a_file_that_is_there_is_used_from_a_folder_that_cannot_be_written_to(
    tmp_path, capsys, monkeypatch
):
    first, _ = fitted(tmp_path)
    capsys.readouterr()
    # Root may write to any folder of a test: a file that exists needs no check.
    from lightning_scaler.data_pass import statistics_cache

    monkeypatch.setattr(statistics_cache, "check_writable", None)
    second, _ = fitted(tmp_path)
    assert "is used" in line(capsys)
    assert_same_scales(first.scaler, second.scaler)


def test_an_empty_name_is_no_cache(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(cache="")], max_epochs=0)
    net = SmallNet()
    trainer.fit(net, SmallData())
    assert net.scaler.fitted


def test_the_callback_shows_its_cache(tmp_path):
    assert repr(TargetScaler(cache=tmp_path)) == f"TargetScaler(cache={str(tmp_path)!r})"
    with pytest.raises(TypeError, match="expected str, bytes or os"):
        TargetScaler(cache=3)
