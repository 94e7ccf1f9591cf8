"""Runs that are killed in the middle, for test_resume.py.

A process of its own: it imports everything once and forks for every run, and nothing that a test
has started gets into the forks.
"""

import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_training import SmallData, SmallDataset, SmallNet, quiet_trainer, scaler_callback
from torch.utils.data import DataLoader

EPOCHS = 3


class Killed(Callback):
    """Ends the process without a word: amid an epoch, or amid the writing of a checkpoint."""

    def __init__(self, when):
        self.when = when

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.when == "training" and (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.when == "writing" and trainer.current_epoch == 1:
            # The kernel takes no more than these bytes of any file, and kills who writes more.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


class KillingDataset(SmallDataset):
    """Ends the process while the fourteenth structure is read, in the pass."""

    def __getitem__(self, index):
        if len(self.reads) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class InOrder(SmallData):
    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, collate_fn=self.collate_fn)


def run(folder, when=None):
    """A run that starts where an earlier one in the same folder ended; its network and data."""
    data, net = InOrder(), SmallNet()
    if when == "pass":
        data.train.__class__ = KillingDataset
    # The callback that kills comes before the one that writes.
    callbacks = [Killed(when), scaler_callback(), ModelCheckpoint(folder, save_last=True)]
    options = {"max_epochs": EPOCHS, "enable_checkpointing": True}
    trainer = quiet_trainer(folder, callbacks=callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*there is no last checkpoint available")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        trainer.fit(net, data, ckpt_path="last", weights_only=True)
    return net, data


def main(folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for when in ("pass", "training", "writing"):
        child = os.fork()
        if child == 0:
            run(Path(folder) / when, when)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(when, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "not killed")


if __name__ == "__main__":
    main(sys.argv[1])
