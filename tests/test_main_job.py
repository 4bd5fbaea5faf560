"""The main job as the README gives it: no arguments, the default victim."""

import json
import subprocess
import sys

import pytest
from environment import BEFORE


@pytest.mark.slow
def test_the_default_run_keeps_its_promises(tmp_path):
    command = [sys.executable, "-m", "launch.repair", f"--workdir={tmp_path / 'w'}"]
    own = BEFORE | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=own)
    assert done.returncode == 0, done.stderr
    assert "repaired (after unlearning)" in done.stdout
    assert "class 0 is flagged" in done.stdout
    summary = json.loads((tmp_path / "w" / "metrics.json").read_text())
    before, after = summary["metrics"]["victim"], summary["metrics"]["disarmed"]
    assert before["acc"] >= 0.97
    assert before["asr"] >= 0.95
    # Victims differ from processor to processor; a repaired one had 99.2 / 1.6.
    assert after["acc"] >= before["acc"] - 0.03
    assert after["asr"] <= 0.25
    assert summary["choice"]["chosen_by"] == "procedural images"
    for name in ("repaired", "report.html", "neuron_scores.csv"):
        assert (tmp_path / "w" / name).exists()
