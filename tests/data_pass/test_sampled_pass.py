"""``TargetScaler(relative_error=...)`` in runs of a real Trainer."""

import itertools
import multiprocessing
import re
import warnings

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    Stream,
    assert_same_scales,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_scaler import PerStructure, ScaleAccumulator, TargetScaler
from lightning_scaler.data_pass.pass_statistics import SampledPass
from lightning_scaler.data_pass.processes import FitProcesses
from lightning_scaler.training import collect_statistics

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

SIZE = 1200  # 300 batches
# Without the energies, whose forces have heavy tails here.
SETTINGS = {"targets": ["charges", "dipole"], "intensive_targets": ["dipole"]}


class OfTwo(SmallNet):
    """Predicts only the targets that are fitted; knows sulfur as well as oxygen."""

    def forward(self, systems):
        types = [system.types.clone() for system in systems]
        for system in systems:
            system.types[system.types == 16] = 8
        outputs = super().forward(systems)
        for system, own in zip(systems, types, strict=True):
            system.types[:] = own
        return {name: outputs[name] for name in SETTINGS["targets"]}


def fitted(folder, data, options=None, net=None, **settings):
    """A network after its fit, without training."""
    net = net or OfTwo()
    options = {"max_epochs": 0, "limit_val_batches": 0, **(options or {})}
    callback = scaler_callback(**{**SETTINGS, **settings})
    quiet_trainer(folder, callbacks=[callback], **options).fit(net, data)
    return net


def line(capsys):
    """What was printed about the sample, and the table."""
    printed = capsys.readouterr().out
    (found,) = re.findall(r"TargetScaler: (\w+ .*batches were read.*)\n", printed)
    return found, printed


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The network after a fit to all data."""
    return fitted(tmp_path_factory.mktemp("exact"), SmallData(SIZE))


def largest_difference(net, exact):
    """The largest relative difference of the scales of the types."""
    found = 0.0
    for name, scales in net.scaler.targets.items():
        n_types = len(scales.types)
        ratio = scales.per_target[:n_types] / exact.scaler.targets[name].per_target[:n_types]
        found = max(found, float((ratio - 1.0).abs().max()))
    return found


@pytest.mark.slow
def test_random_samples_are_read_until_every_scale_has_its_error(tmp_path, capsys, exact):
    data = SmallData(SIZE)
    net = fitted(tmp_path, data, relative_error=0.03)
    reads, (found, printed) = data.train.reads, line(capsys)
    n_batches, largest = re.match(
        r"(\d+) of 300 batches were read, in random order; the standard error of the scales is at "
        r"most ([\d.]+) % of each \(relative_error=0.03\)$",
        found,
    ).groups()
    assert 100 <= int(n_batches) < 300
    assert len(reads) == len(set(reads)) == 4 * int(n_batches)
    # Spread over all data, and not in their order.
    assert 0.45 < sum(reads) / len(reads) / SIZE < 0.55
    assert sum(later > earlier for earlier, later in itertools.pairwise(reads)) < 330
    errors = [net.scaler.targets[name].relative_errors for name in ("charges", "dipole")]
    assert [len(of_target) for of_target in errors] == [3, 1]
    assert float(largest) <= 3.0
    assert float(torch.cat(errors).max()) == pytest.approx(float(largest) / 100, rel=0.06)
    assert " Error" in printed
    # Four scales: five standard errors would be a fault.
    assert 0.0 < largest_difference(net, exact) < 5 * float(largest) / 100


@pytest.mark.slow
def test_the_pass_ends_after_100_batches_if_these_are_enough(tmp_path, capsys):
    data = SmallData(SIZE)
    fitted(tmp_path, data, relative_error=0.2)
    assert len(data.train.reads) == 400
    assert line(capsys)[0].startswith("100 of 300 batches")


@pytest.mark.slow
def test_every_fit_reads_the_same_samples(tmp_path):
    reads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = SmallData(SIZE)
        fitted(tmp_path, data, relative_error=0.2)
        reads.append(data.train.reads)
    assert reads[0] == reads[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, SIZE])
def test_all_data_are_read_if_it_takes_them_and_the_scales_are_exact(tmp_path, capsys, size):
    """Of 75 batches, which are fewer than 100; and for an error that no sample has."""
    data = SmallData(size)
    net = fitted(tmp_path, data, relative_error=0.2 if size == 300 else 1e-4)
    assert sorted(data.train.reads) == list(range(size))
    found, printed = line(capsys)
    assert found.startswith(f"all {size // 4} batches were read, so that the scales have no error")
    assert " Error " not in printed
    assert_same_scales(net.scaler, fitted(tmp_path, SmallData(size)).scaler, rtol=1e-11)


@pytest.mark.slow
def test_training_is_left_as_it_was(tmp_path):
    """The same order of samples in the epoch, from the same random states."""
    orders = []
    for relative_error in (None, 0.2):
        torch.manual_seed(3)
        data = SmallData(SIZE)
        options = {"max_epochs": 1, "limit_train_batches": 5}
        fitted(tmp_path, data, options, relative_error=relative_error)
        orders.append((data.train.reads[-20:], torch.get_rng_state().tolist()))
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_workers_end_with_the_pass(tmp_path):
    class Watched(OfTwo):
        alive = None

        def on_train_start(self):
            super().on_train_start()
            self.alive = len(multiprocessing.active_children())

    data = SmallData(SIZE)
    loader = DataLoader(data.train, 4, collate_fn=collate, num_workers=2, persistent_workers=True)
    net = Watched()
    before = len(multiprocessing.active_children())
    options = {"max_epochs": 1, "limit_train_batches": 0}
    fitted(tmp_path, loader, options, net, relative_error=0.2)
    assert (net.alive or before) == before == len(multiprocessing.active_children())


@pytest.mark.slow
def test_batches_of_a_batch_sampler_are_read_whole(tmp_path):
    """They may be of structures that fit together."""
    data = SmallDataset(SIZE)

    class Pairs(BatchSampler):
        """Structures i and SIZE - 1 - i together."""

        def __iter__(self):
            return iter([i, SIZE - 1 - i] for i in range(SIZE // 2))

    batches = Pairs(SequentialSampler(data), 2, drop_last=False)
    fitted(
        tmp_path,
        DataLoader(data, batch_sampler=batches, collate_fn=collate),
        relative_error=0.3,
        unseen_types="pooled",
    )
    pairs = list(zip(data.reads[::2], data.reads[1::2], strict=True))
    assert len(pairs) == 100
    assert all(sum(pair) == SIZE - 1 for pair in pairs)
    assert pairs != sorted(pairs)


@pytest.mark.slow
def test_equal_parts_of_several_loaders_are_read(tmp_path):
    """Of 300 batches of four, and of 600 samples in 150 batches, which are made smaller."""
    large, small = SmallDataset(SIZE, 0), SmallDataset(600, 1)
    loaders = [DataLoader(d, 4, collate_fn=collate) for d in (large, small)]
    fitted(tmp_path, CombinedLoader(loaders, "max_size_cycle"), relative_error=0.2)
    assert (len(large.reads), len(small.reads)) == (400, 200)


def test_loaders_of_which_no_equal_parts_can_be_read_are_an_error(tmp_path):
    loaders = [DataLoader(SmallDataset(n), 4, collate_fn=collate) for n in (SIZE, 50)]
    message = "relative_error: expected loaders of which equal parts .* 50 and 300 batches"
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, CombinedLoader(loaders, "max_size_cycle"), relative_error=0.2)


def test_a_stream_has_no_random_order(tmp_path):
    loader = DataLoader(Stream(SmallDataset(40).items), 4, collate_fn=collate)
    message = r"relative_error: expected a loader .*, got a stream \(DataLoader of Stream\).*limit_"
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, loader, relative_error=0.2)
    # The ways out.
    for way_out in ({"limit_batches": 5}, {}):
        loader = DataLoader(Stream(SmallDataset(40).items), 4, collate_fn=collate)
        assert fitted(tmp_path, loader, **way_out).scaler.fitted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "n_reads"), [({"overfit_batches": 3}, 12), ({"fast_dev_run": 2}, 8)]
)
def test_overfit_batches_and_fast_dev_run_come_first(tmp_path, options, n_reads):
    data = SmallData(SIZE, shuffle=False)
    options = {"max_epochs": 1, **options}
    net = fitted(tmp_path, data, options, relative_error=0.2, unseen_types="pooled")
    assert len(data.train.reads) == 2 * n_reads  # the pass and the epoch
    assert net.scaler.targets["charges"].relative_errors is None


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(TypeError, match=r"relative_error: expected a number, .* got '1 %'"):
        TargetScaler(relative_error="1 %")
    with pytest.raises(TypeError, match=r"relative_error: expected a number, .* got True"):
        TargetScaler(relative_error=True)
    for value in (0, 1.0, -0.01, 5, float("nan")):
        with pytest.raises(ValueError, match=rf"between 0 and 1, such as 0.01 .*, got {value}"):
            TargetScaler(relative_error=value)
    with pytest.raises(ValueError, match=r"relative_error=0.1 and limit_batches=5; leave out one"):
        TargetScaler(relative_error=0.1, limit_batches=5)
    with pytest.raises(ValueError, match=r"relative_error is for a fit of all .* refit='types'"):
        TargetScaler(relative_error=0.1, refit="types")
    shown = "TargetScaler(relative_error=0.1, refit=True)"
    assert repr(TargetScaler(relative_error=0.1, refit=True)) == shown


def with_rare_type(n_rare):
    """A dataset of H, C and O in which some structures have a sulfur atom instead."""
    data = SmallData(SIZE)
    rare = torch.randperm(SIZE, generator=torch.Generator().manual_seed(2))[:n_rare].tolist()
    for index in rare:
        system, _ = data.train.items[index]
        system.types[0] = 16
    return data, rare


@pytest.mark.slow
def test_a_type_that_is_too_rare_is_named(tmp_path, capsys):
    """It is in the first 100 batches, as one of 1200 atoms."""
    data, (index,) = with_rare_type(1)
    reads = SmallData(SIZE)
    fitted(tmp_path, reads, relative_error=0.2)
    in_sample = reads.train.reads[7]
    data.train.items[index], data.train.items[in_sample] = (
        data.train.items[in_sample],
        data.train.items[index],
    )
    capsys.readouterr()
    with (
        pytest.warns(UserWarning, match="zero, or below their rounding noise"),
        pytest.warns(UserWarning, match=r"few samples .*'charges', S \(16\) in 1 atom"),
    ):
        fitted(tmp_path, data, relative_error=0.2)
    found, printed = line(capsys)
    assert found.startswith("100 of 300 batches")
    assert found.endswith(
        "too few values in the data: type 16 of 'charges' (unknown); fixed_scales gives these, "
        "and without relative_error all data are read"
    )
    assert re.search(r" S \(16\) +[\d.]+ +–\n", printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "settings", "ways_out"),
    [
        ("scale", {"baseline": "none"}, ["pooled", "identity"]),
        ("baseline", {"unseen_types": "pooled"}, ["identity"]),
    ],
)
def test_a_type_that_is_not_in_the_sample_is_an_unseen_type(tmp_path, missing, settings, ways_out):
    """The error in the first step that has it says why, and names ways out that work."""
    reads = SmallData(SIZE)
    fitted(tmp_path, reads, relative_error=0.2)
    unread = next(i for i in range(8) if i not in reads.train.reads)

    def fit(**changed):
        data = SmallData(SIZE, shuffle=False)
        data.train.items[unread][0].types[0] = 16
        options = {"max_epochs": 1, "limit_train_batches": 2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one atom has no residual
            return fitted(tmp_path, data, options, **{**settings, **changed})

    message = (
        rf"no {missing} for the atomic types \[16\], which were not in the random sample of the "
        r"data that was read \(relative_error=None reads all data\)"
    )
    with pytest.raises(ValueError, match=message):
        fit(relative_error=0.2)
    assert len(fit().losses) == 2
    for unseen_types in ways_out:
        assert len(fit(relative_error=0.2, unseen_types=unseen_types).losses) == 2


CACHED = {
    "coarser": (0.1, 0.2, True),
    "the same": (0.1, 0.1, True),
    "finer": (0.2, 0.1, False),
    "all data": (None, 0.1, True),
    "all data needed": (0.1, None, False),
    "a sample of all": (1e-4, None, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CACHED)
def test_a_cached_sample_serves_fits_that_ask_for_no_more(tmp_path, capsys, case):
    first, second, used = CACHED[case]
    settings = {"cache": tmp_path / "cache.st"}
    writes = fitted(tmp_path, SmallData(SIZE), relative_error=first, **settings)
    capsys.readouterr()
    data = SmallData(SIZE)
    reads = fitted(tmp_path, data, relative_error=second, **settings)
    printed = capsys.readouterr().out
    assert ("is used, without a data pass" in printed) == used
    assert (len(data.train.reads) == 32) == used
    if used:
        assert_same_scales(reads.scaler, writes.scaler)
        assert ("batches were read" in printed) == (first is not None)
    else:
        assert f"differ in relative_error ({first} and {second}); it is kept" in printed


@pytest.mark.slow
def test_statistics_without_a_module_are_those_of_the_same_sample(tmp_path):
    collected = collect_statistics(SmallData(SIZE), scaler_callback(relative_error=0.2, **SETTINGS))
    net = fitted(tmp_path, SmallData(SIZE), relative_error=0.2)
    assert_same_scales(collected.compute(), net.scaler)
    collected.save(tmp_path / "file")
    assert str(ScaleAccumulator.load(tmp_path / "file").sample) == str(collected.sample)
    with pytest.raises(ValueError, match="shards=2: expected shards that are read in whole"):
        collect_statistics(SmallData(SIZE), scaler_callback(relative_error=0.2), 0, 2)


@pytest.mark.slow
def test_a_checkpoint_keeps_the_errors(tmp_path):
    net, callback = OfTwo(), scaler_callback(relative_error=0.2, **SETTINGS)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0)
    trainer.fit(net, SmallData(SIZE))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    restored = OfTwo.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    for name, scales in net.scaler.targets.items():
        assert restored.scaler.targets[name].relative_errors.equal(scales.relative_errors)


def test_the_meaning_of_labels_is_decided_for_all_groups_together():
    one = SampledPass(ScaleAccumulator(), 0.1, FitProcesses(), 300, shared=True)
    assert one.next_group().system_labels == "auto"
    one.next_group().system_labels = "id"
    assert [one.next_group().system_labels for _ in range(30)] == ["id"] * 30


def test_what_the_first_batch_shows_is_not_said_again_for_each_group():
    """Energies per atom are declared as totals, and later batches have other residuals."""
    one = SampledPass(
        ScaleAccumulator({"energy": PerStructure()}), 0.1, FitProcesses(), 300, shared=True
    )
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for seed in range(30):
            generator = torch.Generator().manual_seed(seed)
            counts = torch.randint(1, 9, (24, 2), generator=generator)
            types = [torch.tensor([1] * h + [8] * o) for h, o in counts.tolist()]
            noise = torch.randn(24, generator=generator)
            energies = counts.float() @ torch.tensor([10.0, 70.0]) / counts.sum(1) + noise
            batch = {"z": torch.cat(types), "n_atoms": counts.sum(1), "energy": energies}
            one.next_group().update(batch)
    found = [warning for warning in given if "totals are expected" in str(warning.message)]
    assert len(found) == 1
