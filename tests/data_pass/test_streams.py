"""Data that come as a stream: read once, without an end, or without a length."""

import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    assert_same_scales,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, IterableDataset, Sampler

OPTIONS = {"limit_val_batches": 0, "num_sanity_val_steps": 0}

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def batches_of(data, size=4):
    return [
        collate([data[i] for i in range(start, min(start + size, len(data)))])
        for start in range(0, len(data), size)
    ]


class Once(IterableDataset):
    """An iterator that was made once."""

    def __init__(self, data):
        self.rest = iter([data[i] for i in range(len(data))])

    def __iter__(self):
        return self.rest


class Counted:
    """An endless loader, or a long one, that counts the batches drawn by each iterator."""

    def __init__(self, data, number=None):
        self.batches, self.number, self.drawn = batches_of(data), number, []

    def __iter__(self):
        index = len(self.drawn)
        self.drawn.append(0)
        endless = itertools.cycle(self.batches)
        for batch in endless if self.number is None else itertools.islice(endless, self.number):
            self.drawn[index] += 1
            yield batch


def fit(folder, loader, net=None, callback=None, **options):
    net = net or SmallNet()
    callbacks = [callback or scaler_callback()]
    quiet_trainer(folder, callbacks=callbacks, **{**OPTIONS, **options}).fit(net, loader)
    return net


READ_ONCE = {
    "iterator of batches": lambda data: iter(batches_of(data)),
    "generator": lambda data: (batch for batch in batches_of(data)),
    "iterable dataset": lambda data: DataLoader(Once(data), 4, collate_fn=collate),
    "length": lambda data: WithLength(iter(batches_of(data))),
}


class WithLength:
    """An iterator with a length."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __iter__(self):
        return self.iterator

    def __len__(self):
        return 6


@pytest.mark.parametrize("kind", READ_ONCE)
def test_data_that_can_be_read_only_once_are_an_error(tmp_path, kind):
    loader = READ_ONCE[kind](SmallDataset(22))
    message = r"can be read only once: .* nothing is left to train on; .*limit_batches=\.\.\."
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, loader)


@pytest.mark.parametrize("kind", READ_ONCE)
def test_the_first_batches_of_such_data_can_be_fitted_to(tmp_path, kind):
    """The way out that the error names: some of the six batches are left for training."""
    loader = READ_ONCE[kind](SmallDataset(22))
    callback = scaler_callback(limit_batches=3, unseen_types="pooled")
    net = fit(tmp_path, loader, callback=callback)
    assert 1 <= len(net.losses) <= 3


@pytest.mark.parametrize(
    ("options", "n_batches"),
    [
        ({"max_steps": 7, "max_epochs": -1}, 7),
        ({"max_steps": 7, "max_epochs": -1, "accumulate_grad_batches": 2}, 14),
        ({"limit_train_batches": 5}, 5),
        ({"limit_train_batches": 5, "max_steps": 4}, 4),
    ],
)
def test_a_loader_without_an_end_is_an_error_after_what_training_could_use(
    tmp_path, options, n_batches
):
    message = (
        rf"the training loader \(Counted\) has no length and continues after {n_batches} batches, "
        r"more than training could use .*TargetScaler\(limit_batches=\.\.\.\)"
    )
    loader = Counted(SmallDataset(22))
    with pytest.raises(RuntimeError, match=message):
        fit(tmp_path, loader, **options)
    # And the one that shows that there are more.
    assert loader.drawn[-1] == n_batches + 1


class Forever(Sampler):
    def __iter__(self):
        return itertools.cycle(range(22))


def test_a_sampler_without_an_end_is_an_error_too(tmp_path):
    loader = DataLoader(SmallDataset(22), 4, sampler=Forever(), collate_fn=collate)
    with pytest.raises(RuntimeError, match="continues after 8 batches, more than training could"):
        fit(tmp_path, loader, max_steps=8)
    net = fit(tmp_path, loader, max_steps=8, callback=scaler_callback(limit_batches=6))
    assert len(net.losses) == 8


@pytest.mark.parametrize("limit", [1, 6])
def test_a_limit_draws_no_batch_more_than_it_uses(tmp_path, limit):
    loader = Counted(SmallDataset(22))
    callback = scaler_callback(limit_batches=limit, unseen_types="pooled")
    net = fit(tmp_path, loader, callback=callback, max_steps=8)
    # Lightning's first look at the loader, the data pass, and training.
    assert loader.drawn[1] == limit
    assert len(net.losses) == 8


def test_a_stream_with_an_end_before_the_steps_is_read_to_its_end(tmp_path):
    data, reference = SmallDataset(22), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS).fit(reference, SmallData())
    net = fit(tmp_path, Counted(data, number=6), max_steps=6)
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)


class Itself(IterableDataset):
    """Starts again at every ``iter`` and is its own iterator."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        self.next = 0
        return self

    def __next__(self):
        if self.next == len(self.data):
            raise StopIteration
        self.next += 1
        return self.data[self.next - 1]


def test_the_first_epoch_of_a_dataset_that_is_its_own_iterator_is_complete(tmp_path):
    data = SmallDataset(22)
    net = fit(tmp_path, DataLoader(Itself(data), 4, collate_fn=collate), max_epochs=2)
    assert len(net.losses) == 2 * 6
    assert data.reads[-44:] == 2 * list(range(22))


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_a_stream_is_read_up_to_its_own_length(tmp_path):
    """Training stops there too."""

    class Longer(Itself):
        def __len__(self):
            return 12

    data = SmallDataset(22)
    callback = scaler_callback(unseen_types="pooled")
    fit(tmp_path, DataLoader(Longer(data), 4, collate_fn=collate), callback=callback)
    assert data.reads[:12] == data.reads[-12:] == list(range(12))
    assert set(data.reads) == set(range(12))


def test_batches_that_are_none_are_left_out(tmp_path):
    """As in training, where Lightning warns of them."""

    class WithNone(Counted):
        def __iter__(self):
            for batch in super().__iter__():
                yield from (None, batch)

    reference = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS).fit(reference, SmallData())
    with pytest.warns(UserWarning, match="train_dataloader yielded None"):
        net = fit(tmp_path, WithNone(SmallDataset(22), number=6))
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)


@pytest.mark.parametrize("loader", [[], DataLoader(SmallDataset(0), 4, collate_fn=collate)])
@pytest.mark.filterwarnings("ignore:.*returned 0 length", "ignore:Total length of")
def test_a_loader_without_a_batch_is_an_error(tmp_path, loader):
    message = "the training loader gave no batch; check that train_dataloader"
    with pytest.raises(RuntimeError, match=message):
        fit(tmp_path, loader)


class Resumable(DataLoader):
    """A stateful loader: it goes on where a checkpoint was saved."""

    started = 0

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if index >= self.started:
                self.position = index + 1
                yield batch
        self.started = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.started = state["position"]


class StopAfter(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/middle.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("sanity", [False, True])
def test_a_stateful_loader_resumes_where_it_was_and_fits_what_the_checkpoint_has_not(
    tmp_path, sanity
):
    """Six batches an epoch; the checkpoint after four is that of a run with other scales."""
    losses = {}
    for name in ("whole", "resumed", "refitted"):
        data, net = SmallData(), SmallNet()
        loader = Resumable(data.train, 4, collate_fn=collate)
        path = None if name == "whole" else tmp_path / "middle.ckpt"
        callbacks = [scaler_callback(refit=name == "refitted")]
        callbacks += [StopAfter()] if name == "whole" else []
        options = {"num_sanity_val_steps": 1, "limit_val_batches": 1} if sanity else OPTIONS
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, **options)
        trainer.fit(net, loader, data.val_dataloader(), ckpt_path=path, weights_only=True)
        losses[name] = net.losses
        assert len(data.train.reads) >= (22 if name != "resumed" else 0)
    assert len(losses["whole"]) == 6
    assert losses["resumed"] == losses["refitted"] == losses["whole"][4:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the checkpoint has no target scales")
@pytest.mark.parametrize("sanity", [False, True])
def test_a_checkpoint_without_scales_is_resumed_with_the_random_states_of_a_plain_resume(
    tmp_path, sanity
):
    """The scales are then fitted after the restoration, before the first step."""
    options = {"num_sanity_val_steps": 1, "limit_val_batches": 1} if sanity else OPTIONS
    net = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options)
    trainer.fit(net, SmallData())
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    checkpoint = torch.load(tmp_path / "with.ckpt", weights_only=True)
    del checkpoint["target_scaler"], checkpoint["state_dict"]["scaler._extra_state"]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    losses = []
    for name in ("with", "without"):
        torch.manual_seed(5)
        again, data = SmallNet(), SmallData()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=2, **options)
        ckpt_path = tmp_path / f"{name}.ckpt"
        trainer.fit(again, data, ckpt_path=ckpt_path, weights_only=True)
        losses.append(again.losses)
        assert len(data.train.reads) == (22 if name == "with" else 44)
        assert_same_scales(again.scaler, net.scaler, rtol=1e-11)
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
