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
    ], result.stderr


def test_a_wrong_key_is_hydras_own_error(tmp_path):
    result = run(tmp_path, "+callbacks=target_scaler", "callbacks.target_scaler.fixed_scale=2")
    assert result.returncode == 1
    assert "Could not override 'callbacks.target_scaler.fixed_scale'" in result.stderr
    assert "Traceback" not in result.stderr
