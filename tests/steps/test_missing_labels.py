"""Labels for some elements or properties only, through fit, validation, test and predict."""

import math
import warnings
from typing import Any

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    structure_target,
    system,
)
from lightning.pytorch import LightningModule
from metatensor.torch import TensorBlock, TensorMap
from small_training import quiet_trainer
from torch.utils.data import DataLoader

from lightning_scaler import Scaler, TargetScaler, TargetScalingMixin
from lightning_scaler.scaling.scaler_state import read_target_scales, write_target_scales

NAN = float("nan")
SYSTEMS = [system(1, 1), system(8), system(8, 1, 1), system(1, 1), system(8, 8), system(1, 8, 1)]


class Net(TargetScalingMixin, LightningModule):
    """Predicts one trainable number everywhere, in the layout of an example of each target."""

    def __init__(self, **examples: TensorMap) -> None:
        super().__init__()
        self.examples = examples
        self.number = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, systems):
        return {name: self.like(example, systems) for name, example in self.examples.items()}

    def like(self, example, systems):
        blocks = []
        for index, of_block in enumerate(example.blocks()):
            atom_type = (
                example.keys.entry(index)["atom_type"]
                if "atom_type" in example.keys.names
                else None
            )
            rows = [[i] for i in range(len(systems))]
            if "atom" in of_block.samples.names:
                rows = [
                    [i, a]
                    for i, s in enumerate(systems)
                    for a, z in enumerate(s.types.tolist())
                    if atom_type in (None, z)
                ]
            samples = labels(list(of_block.samples.names), rows)
            shape = (len(rows), *of_block.values.shape[1:])
            values = self.number * torch.ones(shape)
            new = TensorBlock(values, samples, of_block.components, of_block.properties)
            if of_block.gradients_list():
                rows = [[i, a] for i, s in enumerate(systems) for a in range(len(s))]
                slopes = self.number * torch.ones(len(rows), 3, 1)
                new.add_gradient(
                    "positions",
                    TensorBlock(
                        slopes, labels(["sample", "atom"], rows), cartesian(), new.properties
                    ),
                )
            blocks.append(new)
        return TensorMap(example.keys, blocks)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(make_targets):
    """Two batches of three systems; ``make_targets`` gives the targets of a list of systems."""
    return [(SYSTEMS[i : i + 3], make_targets(SYSTEMS[i : i + 3])) for i in (0, 3)]


def loader(data):
    return DataLoader(data, batch_size=None)


def run(tmp_path, make_targets, **settings):
    """Fit, validate, test and predict.

    Returns:
        The module, the metrics of the test, the predictions of each batch, and all warnings.
    """
    data = batches(make_targets)
    net = Net(**data[0][1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(**settings)], max_epochs=2)
        trainer.fit(net, loader(data), loader(data))
        trainer.validate(net, loader(data), verbose=False)
        (metrics,) = trainer.test(net, loader(data), verbose=False)
        predictions = trainer.predict(net, loader(data))
    ours = [str(w.message) for w in caught if "lightning_scaler" in w.filename or is_ours(w)]
    return net, metrics, predictions, ours


def is_ours(warning: Any) -> bool:
    words = ("baseline", "no value at all", "rounding noise")
    return any(word in str(warning.message) for word in words)


def values_of(predictions, name, index=0):
    return torch.cat([batch[name].block_by_id(index).values for batch in predictions])


def per_structure(numbers):
    """A target of one block from the numbers of each molecule, by its sorted types.

    A tenth of the position among all systems is added, so that equal molecules differ.
    """

    def make(systems):
        rows = []
        for one in systems:
            position = next(i for i, other in enumerate(SYSTEMS) if other is one)
            of_molecule = torch.tensor(numbers[tuple(sorted(one.types.tolist()))])
            rows.append((of_molecule + 0.1 * position).tolist())
        return structure_target(rows)

    return make


# Only molecules of hydrogen have the second property.
WITH_A_SECOND_PROPERTY = {
    (1, 1): [-1.0, 3.0],
    (8,): [-75.0, NAN],
    (1, 1, 8): [-76.5, NAN],
    (8, 8): [-150.5, NAN],
}


def test_a_second_property_labelled_only_for_one_molecule(tmp_path):
    make = per_structure(WITH_A_SECOND_PROPERTY)
    net, metrics, predictions, given = run(tmp_path, lambda systems: {"e": make(systems)})
    in_fit, in_predict = given
    for message in (in_fit, in_predict):
        assert "target 'e', block (_=0), property (energy=1), types [8]" in message
        assert "baseline={'e': 'none'}" in message
        assert "fixed_baseline" not in message  # several properties have no single number per type
    assert in_fit.startswith("some atomic types have no data for a property")
    assert in_predict.startswith("predictions are NaN in some properties")
    values = values_of(predictions, "e")
    has_oxygen = [8 in s.types.tolist() for s in SYSTEMS]
    assert values[:, 0].isfinite().all()
    assert values[:, 1].isnan().tolist() == has_oxygen
    # The two H2 have 3.0 and 3.3.
    weight = net.scaler.targets["e"].weights[(0,)][0, 1].item()
    assert weight == pytest.approx(3.15 / 2, rel=1e-6)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"baseline": {"e": "none"}}, {"baseline": "none"}],
    ids=["for the target", "for all"],
)
def test_the_way_out_without_a_baseline_gives_all_predictions(tmp_path, settings):
    make = per_structure(WITH_A_SECOND_PROPERTY)
    _, _, predictions, given = run(tmp_path, lambda systems: {"e": make(systems)}, **settings)
    assert values_of(predictions, "e").isfinite().all()
    assert given == []


SINGLE = per_structure({(1, 1): -1.0, (8,): NAN, (1, 1, 8): NAN, (8, 8): NAN})


def test_energies_of_one_molecule_alone(tmp_path):
    _, _, predictions, (in_fit, in_predict) = run(
        tmp_path, lambda s: {"e": SINGLE(s), "q": charges(s)}
    )
    for message in (in_fit, in_predict):
        assert "target 'e', block (_=0), property (energy=0), types [8]" in message
        assert "give their contributions in fixed_baseline" in message
    expected = [8 in s.types.tolist() for s in SYSTEMS]
    assert values_of(predictions, "e")[:, 0].isnan().tolist() == expected


def charges(systems):
    counts = [len(s) for s in systems]
    numbers = [0.1 * z + 0.01 * a for s in systems for a, z in enumerate(s.types.tolist())]
    return atom_target(numbers, atom_samples(*counts))


def test_the_way_out_by_a_fixed_baseline_of_the_type_gives_all_predictions(tmp_path):
    net, _, predictions, given = run(
        tmp_path, lambda s: {"e": SINGLE(s), "q": charges(s)}, fixed_baseline={"e": {8: -75.0}}
    )
    assert not any("unknown" in message for message in given)
    # H is still fitted, to the -1.0 and -0.7 of H2 alone.
    weights = net.scaler.targets["e"].weights[(0,)].ravel().tolist()
    assert weights == pytest.approx([-0.425, -75.0], rel=1e-6)
    assert values_of(predictions, "e").isfinite().all()


def test_shieldings_of_one_element(tmp_path):
    def make(systems):
        rows = [
            [i, a] for i, s in enumerate(systems) for a, z in enumerate(s.types.tolist()) if z == 1
        ]
        numbers = [30.0 + 0.5 * i + 0.1 * a for i, a in rows]
        return {"shielding": atom_target(numbers, rows)}

    net, metrics, predictions, given = run(tmp_path, make)
    assert given == []
    # Hydrogen has its mean; oxygen a baseline of 0 and a scale of 1.
    scales = net.scaler.scales["shielding"].block()
    assert scales.samples == labels("atomic_type", [1, 8])
    assert scales.values[1].item() == 1.0
    values = values_of(predictions, "shielding")[:, 0]
    types = torch.cat([s.types for s in SYSTEMS])
    torch.testing.assert_close(
        values[types == 8], net.number.detach().double().expand(6)[: (types == 8).sum()]
    )
    assert (values[types == 1] > 25.0).all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_padded_bases(tmp_path):
    def make(systems):
        rows = {
            z: [
                [i, a]
                for i, s in enumerate(systems)
                for a, t in enumerate(s.types.tolist())
                if t == z
            ]
            for z in (1, 8)
        }
        numbers = {
            (0, 1): [[[1.0 + 0.1 * i + a, NAN]] for i, a in rows[1]],
            (0, 8): [[[4.0 + 0.1 * i, 2.0 - 0.3 * i + a]] for i, a in rows[8]],
        }
        return {"density": atomic_basis(numbers, rows)}

    net, metrics, predictions, given = run(tmp_path, make)
    assert given == []
    assert net.scaler.scales["density"].block(0).values[0, 1].item() == 1.0
    padded = values_of(predictions, "density", 0)[:, 0, 1]
    torch.testing.assert_close(padded, torch.full_like(padded, net.number.item()))
    assert values_of(predictions, "density", 1).isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_column_that_nobody_measured(tmp_path):
    numbers = {
        (1, 1): [-1.0, NAN],
        (8,): [-75.0, NAN],
        (1, 1, 8): [-76.5, NAN],
        (8, 8): [-150.5, NAN],
    }
    make = per_structure(numbers)
    net, _, predictions, (in_fit, in_predict) = run(tmp_path, lambda s: {"e": make(s)})
    for message in (in_fit, in_predict):
        assert "target 'e', block (_=0), property (energy=1), types [1, 8]" in message
    assert net.scaler.scales["e"].block().values[0, 1].item() == pytest.approx(1.0, rel=1e-15)
    values = values_of(predictions, "e")
    assert values[:, 0].isfinite().all()
    assert values[:, 1].isnan().all()


def test_forces_without_energies(tmp_path):
    def make(systems):
        slopes = [[[0.3 * (a + 1), -0.1, 0.2]] * len(s) for a, s in enumerate(systems)]
        return {"e": structure_target([NAN] * len(systems), gradient={"positions": slopes})}

    net, metrics, predictions, given = run(tmp_path, make)
    in_fit, in_predict = given[0], given[-1]
    assert (
        "the targets ['e'] have no value at all in the data (['e'] have gradients only)" in in_fit
    )
    assert "types [1, 8]" in in_predict
    assert values_of(predictions, "e").isnan().all()
    slopes = torch.cat([p["e"].block().gradient("positions").values for p in predictions])
    # The scale is 1.
    torch.testing.assert_close(slopes, torch.full_like(slopes, net.number.item()))
    assert math.isfinite(metrics["test/e/positions/mae"])


def test_forces_without_energies_may_be_requested(tmp_path):
    def make(systems):
        slopes = [[[0.3 * (a + 1), -0.1, 0.2]] * len(s) for a, s in enumerate(systems)]
        return {"e": structure_target([NAN] * len(systems), gradient={"positions": slopes})}

    _, metrics, _, _ = run(tmp_path, make, targets=["e"])
    assert math.isfinite(metrics["test/e/positions/mae"])


def test_an_invariant_block_that_is_absent_beside_a_type(tmp_path):
    """The block of degree 0 is absent from the batches with oxygen."""
    samples = labels("system", [0])

    def spherical_target(position, s):
        keys = [(0, 1), (2, 1)] if 8 not in s.types.tolist() else [(2, 1)]
        blocks = [
            block(
                torch.full((1, 2 * key[0] + 1, 1), 1.0 + 0.5 * position),
                samples,
                [labels("o3_mu", range(-key[0], key[0] + 1))],
            )
            for key in keys
        ]
        return TensorMap(labels(["o3_lambda", "o3_sigma"], keys), blocks)

    data = [([s], {"p": spherical_target(i, s)}) for i, s in enumerate(SYSTEMS)]
    net = Net(**data[0][1])
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(intensive_targets=["p"])])
    with pytest.warns(UserWarning, match=r"block \(o3_lambda=0, o3_sigma=1\).*types \[8\]"):
        trainer.fit(net, loader(data), loader(data))
    with pytest.warns(UserWarning, match=r"predictions are NaN.*types \[8\]"):
        predictions = trainer.predict(net, loader(data))
    scalars, tensors = (values_of(predictions, "p", i) for i in (0, 1))
    assert scalars.flatten().isnan().tolist() == [8 in s.types.tolist() for s in SYSTEMS]
    assert tensors.isfinite().all()


def test_restored_scales_know_which_weights_are_unknown(tmp_path):
    net, _, predictions, _ = run(tmp_path, lambda s: {"e": SINGLE(s)})
    path = tmp_path / "net.ckpt"
    net.trainer.save_checkpoint(path)
    other = Net(**net.examples)
    with pytest.warns(UserWarning, match=r"predictions are NaN.*target 'e'.*types \[8\]"):
        again = quiet_trainer(tmp_path).predict(
            other, loader(batches(lambda s: {})), ckpt_path=path, weights_only=True
        )
    torch.testing.assert_close(
        values_of(again, "e"), values_of(predictions, "e"), rtol=0, atol=0, equal_nan=True
    )
    state = write_target_scales(net.scaler.targets["e"])
    assert all(weights.isfinite().all() for _, weights in state["weights"])


def test_labels_that_only_validation_has_are_missing_there_and_named(tmp_path):
    train = batches(lambda s: {"e": SINGLE(s)})
    complete = per_structure({(1, 1): -1.5, (8,): -75.0, (1, 1, 8): -76.0, (8, 8): -150.0})
    held_out = batches(lambda s: {"e": complete(s)})
    net = Net(**train[0][1])
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler()])
    with (
        pytest.warns(UserWarning, match="some atomic types have no data for a property"),
        pytest.warns(UserWarning, match=r"count as missing.*target 'e'.*types \[8\]"),
    ):
        trainer.fit(net, loader(train), loader(held_out))
    # H2 alone counts, with -1.5 and -1.2; the baseline is -0.85.
    energy = net.scaler.scales["e"].block().values.item() * net.number.item() - 0.85
    expected = (abs(energy + 1.5) + abs(energy + 1.2)) / 2 / 2
    found = trainer.callback_metrics["val/e/mae_per_atom"].item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_state_of_the_first_version_with_unknown_weights(tmp_path):
    net, _, _, _ = run(tmp_path, lambda s: {"e": SINGLE(s), "q": charges(s)})
    fitted = net.scaler
    old = {name: write_target_scales(scales) for name, scales in fitted.targets.items()}
    for state in old.values():
        for name in ("unknown", "composition", "zeros"):
            del state[name]
    key, weights = old["e"]["weights"][0]
    old["e"]["weights"] = [(key, torch.where(fitted.targets["e"].unknown[(0,)], NAN, weights))]

    restored = Scaler(
        {n: read_target_scales(n, state, complete=False) for n, state in old.items()},
        fitted.settings,
    )
    zero = {"e": structure_target([0.0, 0.0])}
    with pytest.warns(UserWarning, match="predictions are NaN"):
        out = restored.convert([system(1, 1), system(8)], zero, "loss", "physical")
    assert out["e"].block().values.isnan().ravel().tolist() == [False, True]
