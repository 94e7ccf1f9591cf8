"""Nothing a test logs or prints depends on the terminal."""

import logging

import pytest
import torch
from lightning_utilities.core import rank_zero

# Run by hand: python tests/benchmarks/speed.py
collect_ignore = ["benchmarks"]
# Their modules have one name, so that only one of them could be searched for doctests.
collect_ignore_glob = ["*conftest.py"]


@pytest.fixture(autouse=True)
def quiet_lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def one_thread():
    """Waking a second thread takes longer than the work on very small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def messages(caplog):
    """What Lightning logs, whatever has been imported and has configured the loggers before."""
    # The distribution of Lightning that was imported last has set its own logger.
    logger = rank_zero.log
    before = logger.disabled, logger.propagate
    logger.disabled = logger.propagate = False
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger=logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)
    logger.disabled, logger.propagate = before
