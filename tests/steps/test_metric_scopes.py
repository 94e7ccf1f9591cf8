"""The names under which metrics are logged."""

from builders import atom_samples, spherical, structure_target

from lightning_scaler.steps.metric_scopes import metric_scopes
from lightning_scaler.tensors import TargetLayout


def names(tensor, extensive, per_block=()):
    layout = TargetLayout.of("t", tensor)
    return [scope.logged_name("mae") for scope in metric_scopes(layout, extensive, per_block)]


def test_only_position_gradients_of_extensive_targets_are_not_per_atom():
    gradient = {"positions": [[[1.0, 0, 0]]], "strain": [[[1.0, 0, 0]] * 3]}
    energy = structure_target([1.0], gradient=gradient)
    assert names(energy, True) == ["t/mae_per_atom", "t/positions/mae", "t/strain/mae_per_atom"]
    assert names(energy, False) == ["t/mae", "t/positions/mae", "t/strain/mae"]


def test_names_of_blocks_consist_of_their_keys_without_a_sigma_of_one():
    values = {(0, 1): [[[1.0]]], (1, -1): [[[1.0], [2.0], [3.0]]]}
    tensor = spherical(values, atom_samples(1))
    assert names(tensor, False) == ["t/mae"]
    blocks = ["t/o3_lambda_0/mae", "t/o3_lambda_1_o3_sigma_-1/mae"]
    assert names(tensor, False, per_block=["t"]) == ["t/mae", *blocks]
