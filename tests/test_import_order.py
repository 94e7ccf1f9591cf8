"""PyTorch Geometric replaces functions of torch that metatensor compiles when it is imported."""

import subprocess
import sys

import pytest

USE_BOTH = """
from metatensor.torch import Labels, TensorBlock, TensorMap, slice
samples, properties = Labels("system", torch.arange(3)[:, None]), Labels.single()
block = TensorBlock(torch.arange(3.0)[:, None], samples, [], properties)
tensor = TensorMap(Labels.single(), [block])
sliced = slice(tensor, "samples", Labels("system", torch.tensor([[1]]))).block()
assert sliced.values.tolist() == [[1.0]]

from torch_geometric.hash_tensor import HashTensor
keys = HashTensor(torch.tensor([7, 5, 9]))  # of values 0, 1, 2
assert torch.index_select(keys, 0, torch.tensor([9, 5])).tolist() == [2, 1]
assert torch.select(keys, 0, 9).item() == 2
"""
ORDERS = {
    "torch_geometric first": "import torch_geometric\nfrom lightning_scaler.scaling import Scaler",
    "between import and use": "import lightning_scaler, torch_geometric\nlightning_scaler.Scaler",
    "lightning_scaler first": "from lightning_scaler import Scaler\nimport torch_geometric",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_torch_geometric_and_this_package_work_in_any_order(order, tmp_path):
    code = f"{ORDERS[order]}\nimport torch\n{USE_BOTH}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
