"""Tables of test errors, and of what differs between two files."""

from tables import text_of

from lightning_scaler.reports import differences_table, errors_table


def test_errors_table_has_units_and_relative_errors():
    metrics = {
        "test/loss/dataloader_idx_1": 0.3,
        "test/energy/mae_per_atom/dataloader_idx_1": 0.0123,
        "test/energy/rmse_per_atom/dataloader_idx_1": 0.0456,
        "test/energy/relative_rmse_per_atom/dataloader_idx_1": 0.25,
        "test/energy/positions/rmse/dataloader_idx_1": 1.5,
    }
    text = text_of(errors_table("Errors", metrics, {"energy": "eV", "energy/positions": "eV/Å"}))
    lines = [line.split() for line in text.splitlines()]
    words = [[word for word in line if word != "│"] for line in lines]
    assert ["energy", "eV/atom", "0.0123", "0.0456", "25.0", "%"] in words
    assert ["energy/positions", "eV/Å", "1.5"] in words
    assert "loss" not in text
    assert "/positions: the gradient with respect to the positions" in text


def test_errors_of_blocks_and_of_renamed_targets_have_the_units_of_their_target():
    names = ["alpha/o3_lambda_2", "mtt/dipole", "energy/positions", "energy/strain"]
    metrics = {f"test/{name}/mae": 0.5 for name in names}
    units = {"alpha": "a0³", "mtt::dipole": "D", "energy": "eV"}
    lines = [line.split() for line in text_of(errors_table("Errors", metrics, units)).splitlines()]
    assert ["alpha/o3_lambda_2", "a0³", "0.5"] in lines
    assert ["mtt/dipole", "D", "0.5"] in lines
    # That of a gradient does not follow from that of its target.
    assert ["energy/positions", "0.5"] in lines
    assert ["energy/strain", "0.5"] in lines


def test_errors_per_atom_say_so_also_without_a_unit():
    metrics = {"test/energy/mae_per_atom": 0.5}
    for units, shown in (({}, ["per", "atom"]), ({"energy": "eV/atom"}, ["eV/atom"])):
        lines = [line.split() for line in text_of(errors_table("E", metrics, units)).splitlines()]
        assert ["energy", *shown, "0.5"] in lines


def test_differences_have_units_where_they_are_known():
    differences = [
        ("energy", "scale", ("1", "2"), 0.5, "eV/atom"),
        ("", "baseline", ("none", "composition"), None, ""),
    ]
    lines = [line.split() for line in text_of(differences_table(differences, "ab")).splitlines()]
    assert ["Target", "Value", "Unit", "a", "b", "Relative"] in lines
    assert ["energy", "scale", "eV/atom", "1", "2", "5.0e-01"] in lines
    assert ["baseline", "none", "composition"] in lines
    assert "Unit" not in text_of(differences_table(differences[1:], "ab"))
