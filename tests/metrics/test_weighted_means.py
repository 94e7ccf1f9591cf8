"""Several means with weights in one metric."""

import torch

from lightning_scaler.metrics import WeightedMeans


def test_means_are_updated_by_name_in_any_order():
    means = WeightedMeans(["a", "b", "c"])
    means.update(["a", "b", "c"], torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0]))
    means.update(["c", "a", "other"], torch.tensor([6.0, 5.0, 9.0]), torch.tensor([1.0, 3.0, 1.0]))
    found = means.compute()
    assert list(found) == ["a", "b", "c"]
    assert (found["a"], found["c"]) == (4.0, 4.0)  # (1 + 3 * 5) / 4 and (2 * 3 + 6) / 3
    assert found["b"].isnan()
    means.update(["b"], torch.tensor([torch.nan]), torch.tensor([1.0]))
    assert means.compute()["b"].isnan()
    means.reset()
    assert not means.found
    means.update(["b"], torch.tensor([7.0]), torch.tensor([2.0]))
    assert means.found == {"b"}
    assert means.compute()["b"] == 7.0


def test_a_batch_without_terms_may_be_on_another_device():
    means = WeightedMeans(["a"]).to("meta")
    means.update([], torch.zeros(0), torch.zeros(0))  # computed from no tensor at all
    assert means.totals.device.type == "meta"
