"""The shared configs, as any Hydra application of the environment sees them."""

import subprocess
import sys

APPLICATION = """
import sys
import hydra
from hydra.utils import instantiate

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    print("torch imported:", "torch" in sys.modules)
    callback = instantiate(config.callbacks.target_scaler)
    print(callback.fixed_scales, callback.intensive_targets)
    print(callback.baseline, callback.additive)

main()
"""


def run(folder, *overrides):
    file = folder / "application.py"
    file.write_text(APPLICATION)
    command = [sys.executable, "-W", "ignore", str(file), "hydra.run.dir=.", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_callback_is_in_reach_of_any_application(tmp_path):
    result = run(
        tmp_path,
        "+callbacks=target_scaler",
        "callbacks.target_scaler.fixed_scales={energy: 2, forces: {1: 0.5, 8: 1}}",
        "+callbacks.target_scaler.fixed_scales.charges.6=0.25",
        "callbacks.target_scaler.intensive_targets=[dipole]",
    )
    assert result.stdout.splitlines() == [
        "torch imported: False",
        "{'energy': 2.0, 'forces': {1: 0.5, 8: 1.0}, 'charges': {6: 0.25}} frozenset({'dipole'})",
        "CompositionBaseline(fixed={}) None",
    ], result.stderr


def test_every_baseline_from_the_command_line(tmp_path):
    baseline = "callbacks.target_scaler.baseline"
    for override, words in {
        f"{baseline}=none": "None None",
        "callbacks.target_scaler.fixed_baseline={energy: {1: -13.6, 8: -2041}}": (
            "CompositionBaseline(fixed={'energy': {1: -13.6, 8: -2041.0}}) None"
        ),
        f"{baseline}={{_target_: lightning_scaler.ZBL, target: U}}": (
            "CompositionBaseline(fixed={}) ZBL()"
        ),
    }.items():
        result = run(tmp_path, "+callbacks=target_scaler", override)
        assert result.stdout.splitlines()[-1] == words, result.stderr


def test_a_wrong_key_is_hydras_own_error(tmp_path):
    result = run(tmp_path, "+callbacks=target_scaler", "callbacks.target_scaler.fixed_scale=2")
    assert result.returncode == 1
    assert "Could not override 'callbacks.target_scaler.fixed_scale'" in result.stderr
    assert "Traceback" not in result.stderr
