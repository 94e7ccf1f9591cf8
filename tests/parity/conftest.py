"""Comparison with metatrain; collected only where it is installed (extra ``parity``)."""

from collections import defaultdict
from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = ["conftest.py"] if find_spec("metatrain") else ["*.py"]

WORST: dict[str, float] = defaultdict(float)


@pytest.fixture
def agree():
    """Compare values with those of metatrain, and record the largest relative difference."""

    def check(kind: str, ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-12) -> None:
        assert ours.shape == theirs.shape
        scale = torch.where(theirs == 0.0, 1.0, theirs.abs())
        difference = ((ours - theirs).abs() / scale).nan_to_num()
        WORST[kind] = max(WORST[kind], float(difference.max()) if difference.numel() else 0.0)
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0.0, equal_nan=True)

    return check


def pytest_terminal_summary(terminalreporter):
    if WORST:
        terminalreporter.section("largest relative difference from metatrain")
        for kind, difference in WORST.items():
            terminalreporter.write_line(f"{kind:45s} {difference:.1e}")
