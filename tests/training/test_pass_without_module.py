"""The data pass without a module."""

import pytest
from lightning.pytorch import seed_everything
from small_training import (
    SmallData,
    SmallNet,
    Stream,
    assert_same_scales,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_scaler.fitting import merge_files
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.training import collect_statistics


def fitted(folder, data, **options):
    net = SmallNet()
    callback = scaler_callback(**options)
    trainer = quiet_trainer(folder, callbacks=[callback], max_epochs=0, limit_val_batches=0)
    trainer.fit(net, data)
    return net.scaler


def test_it_gives_the_scales_of_a_training_to_the_bit(tmp_path):
    collected = collect_statistics(SmallData(), scaler_callback())
    assert_same_scales(collected.compute(), fitted(tmp_path, SmallData()))


def test_a_training_uses_the_file_as_its_cache(tmp_path, capsys):
    collect_statistics(SmallData(50), scaler_callback()).save(tmp_path / "statistics")
    data = SmallData(50)
    fitted(tmp_path, data, cache=tmp_path / "statistics")
    assert "is used, without a data pass" in capsys.readouterr().out
    assert len(data.train.reads) == 32


class InOtherUnits(SmallData):
    """A transfer hook of the datamodule changes the targets."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        from metatensor.torch import multiply

        return {**batch, "dipole": multiply(batch["dipole"], 2.0)}


def test_the_hooks_of_the_datamodule_run(tmp_path):
    collected = collect_statistics(InOtherUnits(), scaler_callback())
    assert_same_scales(collected.compute(), fitted(tmp_path, InOtherUnits()))
    plain = collect_statistics(SmallData(), scaler_callback()).compute()
    ratio = collected.compute().per_target_scales["dipole"][0].values
    assert float(ratio / plain.per_target_scales["dipole"][0].values) == pytest.approx(2.0)


@pytest.mark.parametrize("batch_sizes", [(4, 4, 4), (1, 5, 22)])
def test_shards_give_the_scales_of_one_pass(tmp_path, batch_sizes):
    """Each is read with a batch size of its own."""
    paths, reads = [], []
    for shard, batch_size in enumerate(batch_sizes):
        data = SmallData(22, batch_size)
        collected = collect_statistics(data, scaler_callback(), shard, 3)
        paths.append(tmp_path / f"{shard}")
        collected.save(paths[-1])
        reads.append(data.train.reads[22:])  # after those that identify the data, here all 22
    assert [sorted(r) for r in reads] == [list(range(7)), list(range(7, 14)), list(range(14, 22))]
    merged = merge_files(paths)
    whole = collect_statistics(SmallData(), scaler_callback())
    assert merged.parts == whole.parts
    # Energies of -1e3 per atom with residuals of about 1: eps * 1e3 / 1 and a few roundings.
    assert_same_scales(merged.compute(), whole.compute(), rtol=2e-12)


def test_more_shards_than_samples_leave_some_empty(tmp_path):
    paths = []
    for shard in range(4):
        paths.append(tmp_path / f"{shard}")
        collect_statistics(SmallData(3), scaler_callback(), shard, 4).save(paths[-1])
    merged = merge_files(paths)
    (part,) = merged.parts
    assert (part.shard, part.n_shards, part.data["samples"]) == (0, 1, "3")
    assert merged.state()["statistics"]["energy"] is not None


class Weighted(SmallData):
    """Draws samples with repetitions from the global generator."""

    def train_dataloader(self):
        sampler = WeightedRandomSampler([1.0 + i % 3 for i in range(22)], 30)
        return DataLoader(self.train, 4, sampler=sampler, collate_fn=collate)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_shards_of_drawn_samples_need_the_same_draw(tmp_path, seeds):
    paths = []
    for shard, seed in enumerate(seeds):
        seed_everything(seed, verbose=False)
        paths.append(tmp_path / f"{shard}")
        collect_statistics(Weighted(), scaler_callback(), shard, 2).save(paths[-1])
    if seeds[0] == seeds[1]:
        assert merge_files(paths).parts[0].data["samples"] == "30"
    else:
        with pytest.raises(ValueError, match=r"shards of the same data, .*differ in selected samp"):
            merge_files(paths)


class Streamed(SmallData):
    def train_dataloader(self):
        return DataLoader(Stream(self.train.items), 4, collate_fn=collate)


def test_a_stream_cannot_be_divided_and_says_what_to_do(tmp_path):
    message = r"shards=2: expected a loader of a dataset .*got a stream \(DataLoader of Stream\)"
    with pytest.raises(ValueError, match=message):
        collect_statistics(Streamed(), scaler_callback(), 0, 2)
    # The way out: jobs whose data are parts of their own.
    paths = []
    for size in (20, 22):
        paths.append(tmp_path / f"{size}")
        collect_statistics(Streamed(size), scaler_callback()).save(paths[-1])
    merged = merge_files(paths)
    assert merged.parts == ()
    assert float(merged.state()["statistics"]["energy"]["blocks"][0][1]["counts"].sum()) == 42


class OwnBatches(SmallData):
    def __init__(self):
        super().__init__(collate_fn=lambda items: [collate(items)["system"]])


def test_batches_that_only_a_module_could_unpack_are_refused_with_a_way_out():
    with pytest.raises(TypeError, match=r"no module here whose unpack_batch .*cache=\.\.\."):
        collect_statistics(OwnBatches(), scaler_callback())


def test_limit_batches_selects_the_batches_of_all_shards_together(tmp_path):
    read = []
    for shard in range(2):
        data = SmallData(40)
        callback = scaler_callback(limit_batches=5)
        collected = collect_statistics(data, callback, shard, 2)
        read.append(data.train.reads[20:])
        assert collected.parts[0].data["samples"] == "20"
    assert len(read[0]) == len(read[1]) == 10
    assert len({*read[0], *read[1]}) == 20


def test_a_missing_target_is_found_when_the_scales_are_computed():
    callback = scaler_callback(targets=["enrgy"], intensive_targets=[])
    collected = collect_statistics(SmallData(), callback)
    with pytest.raises(ValueError, match=r"'enrgy' was requested .*did you mean 'energy'"):
        collected.compute()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these data are zero")
def test_systems_of_the_embedded_molecules_have_no_neighbor_lists():
    data = MoleculesDataModule()
    statistics = collect_statistics(data, scaler_callback(intensive_targets=["dipole"]))
    assert not data.dataset("train").systems[0].known_neighbor_lists()
    with_lists = MoleculesDataModule()
    assert with_lists.dataset("train").systems[0].known_neighbor_lists()
    assert statistics.parts[0].data["samples"] == str(len(with_lists.dataset("train")))


def test_a_shard_that_does_not_exist_is_refused_before_any_data_are_read():
    data = SmallData()
    with pytest.raises(ValueError, match="got shard=2 with shards=2"):
        collect_statistics(data, scaler_callback(), 2, 2)
    assert data.train.reads == []
