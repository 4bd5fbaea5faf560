"""Programs run from any folder: files that are not there are looked up in the checkout."""

import os
import subprocess
import sys

import pytest

from launch import cli
from otbr_jax.studies.bench import load_grid


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without any of the checkout's files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_the_checkout_and_of_the_current_folder(elsewhere):
    assert cli.in_checkout("configs/otbr.py") == str(cli.CHECKOUT / "configs" / "otbr.py")
    assert cli.in_checkout("configs/nowhere.py") == "configs/nowhere.py"
    assert cli.in_checkout("configs") == "configs"
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "otbr.py").write_text("")
    assert cli.in_checkout("configs/otbr.py") == "configs/otbr.py"


def test_the_config_among_the_arguments():
    checkout = cli.CHECKOUT
    given = [
        "--config=configs/correlation.py:cifar10",
        "-config",
        "configs/otbr.py",
        "--config.seed=1",
        "--config=x.py",
    ]
    assert cli.with_config_path(given) == [
        f"--config={checkout}/configs/correlation.py:cifar10",
        "-config",
        f"{checkout}/configs/otbr.py",
        "--config.seed=1",
        "--config=x.py",
    ]


def test_a_grid():
    assert load_grid(cli.in_checkout("configs/bench/recipes.py")).name == "recipes"


def test_a_config_that_imports_another():
    command = [sys.executable, "-m", "launch.repair", "--config=configs/otbr_plus.py", "--help"]
    environment = os.environ | {"PYTHONPATH": str(cli.CHECKOUT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  --config=configs/otbr_plus.py\n" in done.stdout
    assert "\n  --config.trigger_finetuning.triggers=4\n" in done.stdout
