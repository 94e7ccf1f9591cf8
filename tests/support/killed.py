"""Runs that are killed in the middle, for test_resume.py.

A program of its own: it imports everything once, forks for every run, and nothing that a test has
started gets into the forks.
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

EPOCHS = 3


class Killed(Callback):
    """Kills the process in the middle of an epoch, or while a checkpoint is written."""

    def __init__(self, when):
        self.when = when

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.when == "training" and (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.when == "writing" and trainer.current_epoch == 1:
            # The kernel kills a process that writes more than this number of bytes to a file.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


class KillingDataset(SmallDataset):
    """Kills the process when the data pass reads the fourteenth structure."""

    def __getitem__(self, index):
        if len(self.reads) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def run(folder, when=None):
    """Run, or continue the run in the same folder; return the network and its data."""
    data, net = SmallData(shuffle=False), SmallNet()
    if when == "pass":
        data.train.__class__ = KillingDataset
    # The callback that kills is called before the one that writes.
    callbacks = [Killed(when), scaler_callback(), ModelCheckpoint(folder, save_last=True)]
    options = {"max_epochs": EPOCHS, "enable_checkpointing": True}
    trainer = quiet_trainer(folder, callbacks=callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*there is no last checkpoint available")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        trainer.fit(net, data, ckpt_path="last", weights_only=True)
    return net, data


def main(folder):
    """Start all runs at the same time, and print the signal that ended each of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    children = {}
    for when in ("pass", "training", "writing"):
        children[when] = os.fork()
        if children[when] == 0:
            run(Path(folder) / when, when)
            os._exit(0)
    for when, child in children.items():
        status = os.waitpid(child, 0)[1]
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else "not killed"
        print(f"killed: {when} {ended_by}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
