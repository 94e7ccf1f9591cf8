"""Masks survive merging: their values are left out, and those of unknown targets are errors."""

import pytest
from builders import atom_target, mask_of, structure_target, system

from lightning_scaler import ScaleAccumulator

SYSTEMS = [system(8), system(8)]
ENERGY = {"energy": structure_target([3.0, 100.0])}
CHARGES = {"charges": atom_target([1.0, 5.0], [[0, 0], [1, 0]])}


def kept(first, second):
    """A mask for two structures or two atoms."""
    return mask_of(ENERGY["energy"], [[first, second]])


def update(accumulator, batches):
    for targets, masks in batches:
        accumulator.update(SYSTEMS, targets, masks)


def in_one(batches):
    total = ScaleAccumulator()
    update(total, batches)
    return total


def merged(batches):
    """One accumulator for every batch, merged into an empty one."""
    total = ScaleAccumulator()
    for batch in batches:
        part = total.fresh()
        update(part, [batch])
        total.merge(part)
    return total


def merged_into_the_first(batches):
    first, *rest = batches
    total = in_one([first])
    for batch in rest:
        total.merge(in_one([batch]))
    return total


def merged_twice(batches):
    """As a tree: what was merged is merged again."""
    total = ScaleAccumulator()
    total.merge(merged(batches))
    return total


def merged_states(batches):
    total = ScaleAccumulator()
    for batch in batches:
        part = total.fresh()
        update(part, [batch])
        total.merge_state(part.state())
    return total


WAYS = [in_one, merged, merged_into_the_first, merged_twice, merged_states]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_mask_of_an_unknown_target_is_an_error_however_the_data_were_merged(way, position):
    batches = [(ENERGY, {}), (CHARGES, {}), (ENERGY, {})]
    targets, _ = batches[position]
    batches[position] = targets, {"enrgy": kept(True, False)}
    total = way(batches)
    message = "a mask names the target 'enrgy', which the data do not have.*'energy'"
    with pytest.raises(ValueError, match=message):
        total.compute()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_mask_may_come_without_its_target_if_other_data_have_it(way, position):
    # The RMS of 3 and 100 four times over, and of 1 and 5.
    batches = [(ENERGY, {}), (CHARGES, {}), (ENERGY, {})]
    targets, _ = batches[position]
    other = "charges" if targets is ENERGY else "energy"
    batches[position] = targets, {other: kept(True, False)}
    scaler = way(batches).compute()
    assert scaler.scales["energy"].block().values.item() == pytest.approx((10009 / 2) ** 0.5)
    assert scaler.scales["charges"].block().values.item() == pytest.approx(13**0.5)


@pytest.mark.parametrize("way", WAYS)
def test_masked_values_stay_out_however_the_data_were_merged(way):
    # 100 is masked once and kept once: RMS of 3, 3 and 100; of the charges, 5 alone.
    charges_mask = mask_of(CHARGES["charges"], [[False, True]])
    batches = [
        (ENERGY, {"energy": kept(True, False)}),
        (CHARGES, {"charges": charges_mask}),
        (ENERGY, {}),
    ]
    scaler = way(batches).compute()
    assert scaler.scales["energy"].block().values.item() == pytest.approx((10018 / 3) ** 0.5)
    assert scaler.scales["charges"].block().values.item() == pytest.approx(5.0)
