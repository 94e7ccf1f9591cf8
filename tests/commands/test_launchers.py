"""Shards of ``lightning-scaler-fit`` run by launchers of Hydra."""

import pytest
from small_training import SmallData, scaler_callback
from test_fit_command import APPLICATION, finish, start

from lightning_scaler.scaling import find_differences, merge_files
from lightning_scaler.training import collect_statistics

# The number of shards, and options of the launcher.
LAUNCHERS = {
    "joblib": (4, "hydra.launcher.n_jobs=2"),
    "submitit_local": (2, "hydra.launcher.timeout_min=5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_shards_run_by_a_launcher_give_the_scales_of_one_pass(tmp_path, launcher):
    n_shards, option = LAUNCHERS[launcher]
    (tmp_path / "train.yaml").write_text(APPLICATION)
    own = [f"--config-path={tmp_path}", "--config-name=train"]
    shards = [f"shard={','.join(map(str, range(n_shards)))}", f"shards={n_shards}"]
    sweep = ["--multirun", "out=all.st", *shards, f"hydra/launcher={launcher}", option]
    status, out, err = finish(start(tmp_path, "fit", *own, *sweep))
    assert status == 0, out + err
    files = sorted(tmp_path.glob("*.st"))
    assert [file.name for file in files] == [f"all.{i}-of-{n_shards}.st" for i in range(n_shards)]
    merged, one_pass = merge_files(files), collect_statistics(SmallData(40), scaler_callback())
    assert merged.parts == one_pass.parts
    # Energies of -1e3 per atom with residuals of about 1: eps * 1e3 / 1 and a few roundings.
    assert find_differences(merged.compute(), one_pass.compute(), tolerance=2e-12) == []
