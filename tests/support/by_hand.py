"""Numbers that tests derive by hand, in double precision."""

import math
from typing import Any

import pytest
import torch


def double(values: Any) -> torch.Tensor:
    """A float64 tensor."""
    return torch.as_tensor(values, dtype=torch.float64)


def rms(*numbers: float) -> float:
    """The uncentred root mean square, without rounding errors of the sum."""
    return math.sqrt(math.fsum(x * x for x in numbers) / len(numbers))


def near(*numbers: float, rel: float = 1e-13) -> Any:
    """A list that is compared up to a relative error."""
    return pytest.approx(list(numbers), rel=rel)
