"""What a fit refuses, and what it warns of."""

import math
import warnings

import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    fit,
    mask_of,
    pair_target,
    structure_target,
    system,
)
from small_training import SmallData, SmallNet, collate, quiet_trainer

from lightning_scaler import CompositionBaseline, ScaleAccumulator, TargetScaler
from lightning_scaler.reports.tables import BaselineOfTarget, baselines_table

NAN = float("nan")
SYSTEMS = [system(8), system(1, 8, 1), system(8, 8)]


def energies(*values):
    return structure_target(list(values))


# Targets without any value.


def fit_requested(names, targets, masks=None, fixed_scales=None):
    accumulator = ScaleAccumulator(names)
    accumulator.update(SYSTEMS, targets, masks)
    return accumulator.compute(fixed_scales)


def test_a_requested_target_without_any_value_is_an_error():
    targets = {"e": energies(1.0, 2.0, 3.0), "gap": energies(NAN, NAN, NAN)}
    with pytest.raises(ValueError, match=r"target 'gap' was requested .* no value at all"):
        fit_requested(["e", "gap"], targets)


def test_another_target_without_any_value_is_one_warning():
    charges = atom_target([NAN] * 6, atom_samples(1, 3, 2))
    targets = {"e": energies(1.0, 2.0, 3.0), "gap": energies(NAN, NAN, NAN), "q": charges}
    with pytest.warns(UserWarning, match="targets") as caught:
        scaler = fit(SYSTEMS, targets, baseline=CompositionBaseline())
    (message,) = (str(w.message) for w in caught if w.category is UserWarning)
    assert message.startswith("the targets ['gap', 'q'] have no value at all in the data: all are")
    assert scaler.scales["gap"].block().values.item() == 1.0


def test_a_target_that_is_masked_throughout_has_no_value():
    energy = energies(1.0, 2.0, 3.0)
    masks = {"e": mask_of(energy, [[False] * 3])}
    with pytest.raises(ValueError, match=r"target 'e' was requested .* NaN or masked"):
        fit_requested(["e"], {"e": energy}, masks)


def test_values_of_another_batch_or_process_are_enough():
    accumulator = ScaleAccumulator(["e"])
    accumulator.update(SYSTEMS, {"e": energies(NAN, NAN, NAN)})
    other = accumulator.fresh()
    other.update(SYSTEMS, {"e": energies(1.0, NAN, NAN)})
    accumulator.merge_state(other.state())
    assert accumulator.compute().scales["e"].block().values.item() == 1.0


def test_atom_pairs_and_fixed_scales_need_no_values():
    pairs = pair_target([5.0], [[1, 0, 2, 0, 0, 0]])
    fit_requested(["h"], {"h": pairs})
    fit_requested(["e"], {"e": energies(NAN, NAN, NAN)}, fixed_scales={"e": 2.0})


def without_values(name):
    def spoiled(items):
        batch = collate(items)
        values = batch[name].block().values
        values[:] = NAN
        return batch

    return spoiled


def test_a_training_run_whose_requested_target_has_no_value_does_not_start(tmp_path):
    callback = TargetScaler(targets=["charges"], intensive_targets=[])
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match=r"'charges' was .* no value .* and do not predict it"):
        trainer.fit(SmallNet(), SmallData(collate_fn=without_values("charges")))


def test_the_way_out_of_a_target_without_values(tmp_path):
    class WithoutCharges(SmallNet):
        def forward(self, systems):
            return {k: v for k, v in super().forward(systems).items() if k != "charges"}

    data = SmallData(collate_fn=without_values("charges"))
    callback = TargetScaler(targets=["energy", "dipole", "polarizability"])
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    message = r"'charges' and forward predicts it, .* and fit again, or do not predict it"
    with pytest.raises(ValueError, match=message):
        trainer.fit(SmallNet(), data)
    net = WithoutCharges()
    trainer.fit(net, data)
    assert len(net.losses) == 6


def test_a_fast_dev_run_may_have_no_value_of_a_requested_target(tmp_path):
    names = ["energy", "charges", "dipole", "polarizability"]
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=names)], fast_dev_run=1)
    net = SmallNet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single batch is explained by its baseline
        trainer.fit(net, SmallData(collate_fn=without_values("charges")))
    assert (net.scaler.scales["charges"].block().values == 1.0).all()


# Weights given as masks.


@pytest.mark.parametrize(
    ("numbers", "count", "shown"),
    [([1.0, 0.5, 0.0], 1, "0.5"), ([2.0, 3.0, 1.0], 2, "2"), ([NAN, 1.0, 0.0], 1, "nan")],
)
def test_weights_in_place_of_a_mask_are_refused(numbers, count, shown):
    energy = energies(1.0, 2.0, 3.0)
    weights = energies(*numbers)
    message = (
        rf"mask of target 'e', block \(_=0\): expected True and False .* got {count} other "
        rf"numbers, such as {shown}; these are weights, which would be lost"
    )
    with pytest.raises(ValueError, match=message):
        fit(SYSTEMS, {"e": energy}, {"e": weights})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8])
def test_a_mask_of_ones_and_zeros_of_any_dtype_is_a_mask(dtype):
    energy = energies(1.0, 2.0, 9.0)
    mask = energies(1.0, 1.0, 0.0).to(dtype=dtype) if dtype.is_floating_point else None
    mask = mask or mask_of(energy, [[True, True, False]]).to(dtype=dtype)
    sigma = fit(SYSTEMS, {"e": energy}, {"e": mask}).scales["e"].block().values.item()
    assert sigma == pytest.approx(math.sqrt((1 + 4 / 9) / 2), rel=1e-14)


def test_the_way_out_of_weights_in_place_of_a_mask():
    energy, weights = energies(1.0, 2.0, 9.0), energies(0.5, 2.0, 0.0)
    mask = mask_of(energy, [weights.block().values > 0])
    sigma = fit(SYSTEMS, {"e": energy}, {"e": mask}).scales["e"].block().values.item()
    assert sigma == pytest.approx(math.sqrt((1 + 4 / 9) / 2), rel=1e-14)


# A baseline that does not suit the data.


def test_isolated_atom_energies_of_another_code_are_named_with_both_numbers():
    # Atomization energies of a few eV, from which E0s of all electrons are subtracted.
    fixed = CompositionBaseline({"e": {1: -13.6, 8: -2041.8}})
    with pytest.warns(UserWarning, match="makes these targets larger") as caught:
        fit(SYSTEMS, {"e": energies(0.1, -9.9, -5.2)}, baseline=fixed)
    # Before: sqrt((0.1² + 3.3² + 2.6²) / 3). After: 2041.9, (2069 - 9.9) / 3, (4083.6 - 5.2) / 2.
    before = math.sqrt((0.01 + 3.3**2 + 2.6**2) / 3)
    after = math.sqrt((2041.9**2 + (2059.1 / 3) ** 2 + 2039.2**2) / 3)
    message = str(caught[0].message)
    assert f"'e', RMS per atom {before:.4g} before and {after:.4g} after" in message
    assert "fixed_baseline may belong to another code, level of theory or unit" in message
    assert "baseline={'e': 'none'}" in message


def test_the_ways_out_of_a_baseline_that_does_not_suit_the_data():
    target = {"e": energies(0.1, -9.9, -5.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(SYSTEMS, target, baseline=CompositionBaseline())
        fit(SYSTEMS, target, baseline=CompositionBaseline(excluded=["e"]))


def test_an_additive_module_that_does_not_suit_the_data_is_named():
    with pytest.warns(UserWarning, match=r"larger: target 'energy'.*module Springs may not suit"):
        fit(SYSTEMS, {"energy": energies(0.0, 0.1, 0.0)}, additive=Springs())


def test_a_baseline_that_increases_the_variance_explains_none_of_it():
    table = baselines_table([BaselineOfTarget("e", -1e10, None, [("8", [[-2041.8]])])])
    assert list(table.columns[1].cells) == ["none"]


def test_unknown_contributions_are_shown_as_dashes():
    by_type = [("1", [[1.5, NAN]]), ("8", [[1.0, 2.0, NAN, 3.0, 4.0]]), ("9", [[NAN] * 5])]
    table = baselines_table([BaselineOfTarget("e", 0.5, None, by_type)])
    assert list(table.columns[3].cells) == ["1.5, –", "1 … 4", "–"]


def test_warnings_of_a_fit_name_the_line_of_the_user():
    numbers = [-1e5 + 0.25, -3e5 - 0.5, -2e5 + 0.125]
    energy = structure_target(
        torch.tensor(numbers),
        dtype=torch.float32,
        gradient={"positions": [[[NAN] * 3] * n for n in (1, 3, 2)]},
    )
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update([system(1), system(1, 1, 1), system(1, 1)], {"e": energy})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        accumulator.compute()
    found = {str(w.message)[:15]: w.filename for w in caught if w.category is UserWarning}
    assert found == {"these gradients": __file__, "the rounding er": __file__}
