"""A device whose values are read in one place only, without a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Readings(TorchDispatchMode):
    """Gives booleans for those read from the meta device, which has no values, and counts readings.

    Args:
        given: what is read.
    """

    def __init__(self, given):
        super().__init__()
        self.given, self.n_read = given, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.is_set_to.default and args[0].is_meta:
            return False
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            self.n_read += 1
            assert args[0].shape == (len(self.given),)
            return torch.tensor(self.given)
        return func(*args, **(kwargs or {}))
