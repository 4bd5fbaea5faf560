"""The main job as the README gives it: no arguments, the embedded default."""

import json
import os
import subprocess
import sys

import pytest

FULL_SPEED = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.mark.slow
def test_the_default_run_keeps_its_promises(tmp_path):
    command = [sys.executable, "-m", "launch.repair", f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=FULL_SPEED)
    assert done.returncode == 0, done.stderr
    assert "repaired (after fusion)" in done.stdout
    summary = json.loads((tmp_path / "w" / "metrics.json").read_text())
    before, after = summary["metrics"]["victim"], summary["metrics"]["fused"]
    assert before["acc"] >= 0.97
    assert before["asr"] >= 0.95
    # Victims differ from processor to processor: on two of them the repaired one had 92.2 / 0.2 and 90.2 / 0.0.
    assert after["asr"] <= 0.20
    assert after["der"] >= 0.85
    assert summary["choice"]["chosen_by"] == "config"
    for name in ("repaired", "report.html", "neuron_scores.csv"):
        assert (tmp_path / "w" / name).exists()
