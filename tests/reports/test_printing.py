"""Tables in terminals, files and pipes that cannot show them."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.table import Table

from lightning_scaler.reports import (
    BaselineOfTarget,
    ScalesOfTarget,
    baselines_table,
    differences_table,
    errors_table,
    print_tables,
    scales_table,
    write_tables,
)
from lightning_scaler.settings import name_of_type

FORCES = errors_table(
    "Test errors",
    {"test/forces/mae": 0.123456, "test/forces/rmse": 0.25, "test/forces/relative_rmse": 0.5},
    {"forces": "eV/Å"},
)
PRINT_FORCES = (
    "from lightning_scaler.reports import errors_table, print_tables\n"
    "table = errors_table('Test errors', {'test/forces/mae': 0.123456}, {'forces': 'eV/Å'})\n"
)


def printed(capsys, *tables):
    print_tables(*tables)
    return capsys.readouterr().out


def run_in_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", PRINT_FORCES + code], capture_output=True, check=False, **options
    )


def test_tables_are_printed_below_each_other_and_none_is_skipped(capsys):
    table = scales_table([ScalesOfTarget("gap", "system", 2.0, None, [("all", 2.0, [[1.0]])])])
    lines = printed(capsys, table, None, FORCES).splitlines()
    assert lines[0] == "Target scales, in the units of the data"
    assert "Test errors" in lines
    assert all(line == line.rstrip() for line in lines)


def test_title_and_caption_say_where_scales_come_from(capsys):
    scales = [ScalesOfTarget("gap", "system", 2.0, None, [("all", 2.0, [[1.0]])])]
    baselines = [BaselineOfTarget("gap", 0.5, None, [("1", [[-13.6]])])]
    for name, make, targets in (
        ("Target scales", scales_table, scales),
        ("Baselines", baselines_table, baselines),
    ):
        table = make(targets, f"{name} restored", "kept as they are")
        lines = " ".join(printed(capsys, table).split())
        assert lines.startswith(f"{name} restored, in the units of the data")
        assert lines.endswith("kept as they are")


@pytest.mark.parametrize("columns", ["20", "80"])
def test_tables_have_their_full_width_in_pipes(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    name = "a_target_with_a_long_name/positions"
    values = {f"test/{name}/{metric}": 0.123456 for metric in ("mae", "rmse", "relative_rmse")}
    (line,) = [
        line
        for line in printed(capsys, errors_table("Errors", values)).splitlines()
        if name in line
    ]
    assert line.split() == [name, "0.1235", "0.1235", "12.3", "%"]


class Terminal(io.StringIO):
    """Standard output of a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def shown(monkeypatch, columns, *tables):
    """The lines of tables in a terminal of this width."""
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    print_tables(*tables)
    return terminal.getvalue().splitlines()


def tables_of(n_types, n_properties):
    """The tables of a target with a long name, and of an energy."""
    types = [name_of_type(z) for z in range(1, n_types + 1)]
    numbers = [0.001234 * (i + 1) for i in range(n_properties)]
    long = "a_per_atom_target_with_a_long_name"
    scales = [
        ScalesOfTarget("energy", "structure", 3801.2, 0.01, [("all", 0.01, [[1.0]])], unit="eV"),
        ScalesOfTarget(long, "atom", 1.234, None, [(z, 1.234, [numbers]) for z in types]),
    ]
    baselines = [BaselineOfTarget(long, 0.999, "ZBL", [(z, [numbers]) for z in types], "eV")]
    return scales_table(scales, zeros=["of a property"] * 9), baselines_table(baselines)


@pytest.mark.parametrize("n_properties", [1, 60])
@pytest.mark.parametrize("n_types", [5, 89])
def test_names_are_folded_in_a_terminal_of_80_columns_and_numbers_are_not(
    monkeypatch, n_types, n_properties
):
    tables = tables_of(n_types, n_properties)
    wide, narrow = (shown(monkeypatch, columns, *tables) for columns in (200, 80))
    assert max(map(len, narrow)) <= 80
    first_name = next(line for line in narrow if line.startswith(" a_per"))
    assert "a_per_atom_target_with_a_long_name" not in first_name
    of_types = r"\w+ \(\d+\) .*\d"
    numbers = [[re.findall(of_types, line) for line in lines] for lines in (wide, narrow)]
    in_words = [[found[0].split() for found in lines if found] for lines in numbers]
    assert in_words[0] == in_words[1]
    assert len(in_words[0]) == 2 * min(n_types, 12)


def test_a_terminal_of_200_columns_shows_tables_as_files_do(monkeypatch, tmp_path):
    tables = tables_of(89, 60)
    write_tables(tmp_path / "a", *tables)
    assert (tmp_path / "a").read_text().splitlines() == shown(monkeypatch, 200, *tables)[:-1]


def test_long_names_of_files_are_folded_above_their_numbers(monkeypatch):
    differences = [("energy", "scale", ("0.1234567891", "0.1234567892"), 1e-9, "eV/atom")]
    files = ("runs/2026-01-01/statistics.safetensors", "runs/2026-02-01/statistics.safetensors")
    lines = shown(monkeypatch, 80, differences_table(differences, files))
    assert max(map(len, lines)) <= 80
    assert " energy  scale  eV/atom  0.1234567891  0.1234567892   1.0e-09" in [
        re.sub("  +", "  ", line).replace("892  1", "892   1") for line in lines
    ]


def test_tables_of_others_are_not_folded(monkeypatch):
    table = Table("Target")
    table.add_row("a_target_with_a_long_name" * 4)
    assert "a_target_with_a_long_name" * 4 in " ".join(shown(monkeypatch, 20, table))


@pytest.mark.parametrize(
    ("encoding", "unit", "line"),
    [("utf-8", "eV/Å", "─"), ("latin-1", "eV/Å", "-"), ("ascii", "eV/A", "-")],
)
def test_characters_that_an_encoding_does_not_have_are_replaced(encoding, unit, line):
    result = run_in_python("print_tables(table)", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode(encoding).splitlines()
    assert lines[4].split() == ["forces", unit, "0.1235"]
    assert set(lines[3].strip()) == {line}


def test_unknown_characters_in_names_are_question_marks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_tables(errors_table("Errors", {"test/σ/mae": 0.5}))
    stream.seek(0)
    assert stream.read().splitlines()[4].split() == ["?", "0.5"]


@pytest.mark.parametrize(
    "stdout", ["None", "open(os.devnull, 'w')", "open('/dev/full', 'w', encoding='utf-8')"]
)
def test_a_run_goes_on_without_standard_output(stdout):
    code = (
        f"import os, sys\nsys.stdout = stream = {stdout}\n"
        "if 'null' in getattr(stream, 'name', ''): stream.close()\n"
        "print_tables(table)\nprint('goes on', file=sys.stderr)\nos._exit(0)"
    )
    result = run_in_python(code)
    assert result.stderr.decode().splitlines() == ["goes on"]


def test_a_run_goes_on_after_the_reader_of_its_output_has_left():
    reading, writing = os.pipe()
    os.close(reading)
    code = "print_tables(table)\nimport os, sys\nprint('goes on', file=sys.stderr)\nos._exit(0)"
    result = subprocess.run(
        [sys.executable, "-c", PRINT_FORCES + code],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert result.stderr.splitlines() == ["goes on"]


def test_names_are_not_read_as_markup(capsys):
    table = Table("Target")
    table.add_row("mtt::aux::energy[bold] :sun:")
    assert "mtt::aux::energy[bold] :sun:" in printed(capsys, table)


def test_relative_errors_are_explained_under_the_table(capsys):
    text = " ".join(printed(capsys, FORCES).split())
    assert "MAE RMSE Relative RMSE" in text
    assert text.endswith("divided by the RMS of the target itself, after subtracting the baseline.")
    assert "Relative" not in printed(capsys, errors_table("Errors", {"test/gap/mae": 0.1}))


@pytest.mark.parametrize(
    ("explained", "shown"),
    [(float("nan"), "–"), (-1e10, "none"), (float("-inf"), "none"), (-0.5, "none")],
)
def test_any_explained_variance_can_be_shown(capsys, explained, shown):
    (line,) = [
        line
        for line in printed(
            capsys, baselines_table([BaselineOfTarget("gap", explained, None, [("1", [[0.5]])])])
        ).splitlines()
        if "gap" in line
    ]
    assert line.split() == ["gap", *shown.split(), "1", "0.5"]


def test_unknown_contributions_are_dashes(capsys):
    nan = float("nan")
    blocks = [[nan, 0.5], [nan, 4.0, 1.0, 2.0, 3.0], [nan] * 5]
    table = baselines_table([BaselineOfTarget("gap", 0.5, None, [("1", blocks)])])
    lines = [line.strip() for line in printed(capsys, table).splitlines()[5:8]]
    assert [line.split("  ")[-1].strip() for line in lines] == ["–, 0.5", "1 … 4", "–"]
