"""Nothing a test logs or prints depends on the terminal."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet_lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
