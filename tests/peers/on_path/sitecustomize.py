"""SchNetPack 2.1.1 imports a type variable that PyTorch has removed."""

from typing import TypeVar

import torch.utils.data.dataloader

torch.utils.data.dataloader.T_co = TypeVar("T_co", covariant=True)
