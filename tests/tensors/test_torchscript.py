"""Functions compiled with TorchScript when they are first called."""

import torch

from lightning_scaler.tensors import scripted, scripted_arithmetic


def test_scripted_functions_are_compiled_by_the_first_call():
    def twice(number: int) -> int:
        return 2 * number

    compiled = scripted(twice)
    assert compiled.__name__ == "twice"
    assert compiled(3) == 6


def test_autograd_follows_scripted_arithmetic():
    def square(values: torch.Tensor) -> torch.Tensor:
        return values * values if torch.jit.is_scripting() else values

    values = torch.tensor([3.0, 4.0], requires_grad=True)
    scripted_arithmetic(square)(values).sum().backward()
    assert values.grad.tolist() == [6.0, 8.0]
