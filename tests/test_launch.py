"""The command line: bad input ends in one clear line, status 2 and no traceback."""

import pathlib
import subprocess
import sys

import pytest
from launching import launch

from launch.helping import unknown_flag
from otbr_jax import InputError
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.settings import as_dict, describe, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repair_config

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(*arguments):
    """A process of its own, as users start it."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_processes_of_their_own_end_like_programs_in_this_one(tmp_path):
    flags = ("--config.detection.share=1.5", f"--workdir={tmp_path / 'w'}")
    done = start("launch.repair", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: detection.share: expected a number in [0, 1], found 1.5\n"
    assert launch("repair", *flags) == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.inversion.step=9", "unknown flag --config.inversion.step; did you mean --config.inversion.steps?"),
        ("--config.detection.share=high", "high"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config.model.name=preact_resnet81", "did you mean 'preact_resnet18'?"),
        (
            "--config.model.checkpoint=/nowhere",
            "model.checkpoint: expected an Orbax checkpoint directory, or a PyTorch or safetensors file, found nothing",
        ),
        ("--workdir=/proc/w", "workdir: expected a directory that can be written"),
    ],
)
def test_bad_input_ends_in_one_clear_line(flag, message, tmp_path):
    workdir = () if flag.startswith("--workdir") else (f"--workdir={tmp_path / 'w'}",)
    done = launch("repair", flag, *workdir)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert done.stdout == ""
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        ("train_victim", "--config=configs/victims/cifar10.py:nix", "error: --config: expected FILE.py:ATTACK or"),
        (
            "train_victim",
            "--config.data.data_dir=/nowhere",
            "expected the data set 'cifar10' in /nowhere, found no",
        ),
        ("bench", "--grid=nothing.py", "--grid: expected a Python file with get_grid(), found nothing at 'nothing.py'"),
        ("bench", "--grid=a.py --grid=b.py --results=c", "--results: expected none beside 2 grids, found 'c'"),
        ("bench", "--note=x", "--note: expected DATA=TEXT, found 'x'"),
        ("activeness", "--config.attacks=('none','nix')", "error: attacks: expected a list of any of ["),
    ],
)
def test_bad_input_to_the_other_programs(program, flag, message, tmp_path):
    done = launch(program, *flag.split(), f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "w").exists()


def test_a_broken_config_file_is_named_with_its_flag(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def get_config(:")
    done = launch("repair", f"--config={file}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config: ")
    assert "broken.py, line 1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        ("repair", "--epochs=3", "unknown flag --epochs; did you mean --config.training.epochs?"),
        ("convert", "--clases=3", "unknown flag --clases; did you mean --num_classes?"),
    ],
)
def test_a_mistyped_flag_ends_with_the_nearest_one(program, flag, message):
    done = launch(program, flag)
    assert done == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epochs", "config.training.epochs"),
        ("config.epochs", "config.training.epochs"),
        ("training.epochs", "config.training.epochs"),
        ("config.traning.epochs", "config.training.epochs"),
        ("config.detection.inversion.steps", "config.detection.perturbation.steps"),
        ("gama", "config.otbr.gamma"),
        ("work_dir", "workdir"),
    ],
)
def test_the_nearest_flag(given, meant):
    known = ["workdir", *(f"config.{setting.name}" for setting in describe(RepairConfig) if setting.words)]
    assert unknown_flag(given, known) == f"unknown flag --{given}; did you mean --{meant}?"


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        ("repair", "--config.reach.steps=3", "unknown flag --config.reach.steps; it is --config.inversion.steps now"),
        (
            "repair",
            "--config.teaching.rounds=3",
            "unknown flag --config.teaching.rounds; it is --config.unlearning.rounds now",
        ),
        ("inspect_network", "--judge=runs/w", "unknown flag --judge; it is --detect now"),
    ],
)
def test_an_old_flag_ends_with_its_current_name(program, flag, message):
    assert launch(program, flag) == (2, "", f"error: {message}\n")


def test_no_flag_is_near():
    assert unknown_flag("xyz", ["workdir", "config.seed"]) == "unknown flag --xyz; --help lists all"


def test_a_config_file_without_a_setting_that_a_flag_changes(tmp_path):
    file = tmp_path / "small.py"
    file.write_text("import ml_collections\nget_config = lambda: ml_collections.ConfigDict({'seed': 1})")
    done = launch("repair", f"--config={file}", f"--workdir={tmp_path / 'w'}", "--config.otbr.gamma=0.5")
    assert done.returncode == 2
    assert done.stderr == "error: --config: expected a file with every setting that a flag changes, found: 'otbr'\n"


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("repair", ("--config=configs/otbr.py", "--config.seed=4", "-h")),
        ("repair", ("--config=configs/otbr.py", "--config.seed=4", "--helpfull")),
        ("convert", ("--help",)),
        *(
            (program, ("--helpfull",))
            for program in (
                *("ablate", "activeness", "bench", "check_reference", "correlation", "inspect_network"),
                *("prepare_data", "tables", "train_victim"),
            )
        ),
    ],
)
def test_help(program, flags):
    done = launch(program, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m launch.{program}" in " ".join(done.stdout.split())
    assert "\nflags:\n  --" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    for noise in ("absl", "ml_collections", "tfds", "--verbosity"):
        assert noise not in done.stdout
    assert ("--helpfull" in done.stdout) == (program == "repair" and "--helpfull" not in flags)
    if program == "repair":
        settings = [setting.name for setting in describe(RepairConfig) if setting.words]
        shown = {name: f"--config.{name}=" in done.stdout for name in settings}
        if "--helpfull" in flags:
            assert all(shown.values())
        else:  # what is brought and the method's own, in a third of the lines
            assert all(shown[name] for name in ("model.checkpoint", "otbr.gamma"))
            assert not any(shown[name] for name in ("attack.target", "otbr.unlearning.steps"))
            return
        assert "\n  --config=configs/otbr.py\n" in done.stdout
        assert "\n  --config.seed=4\n" in done.stdout
        assert (
            "\n\nmodel: the network.\n  --config.model.name=preact_resnet10\n      a name of `ARCHITECTURES`"
        ) in done.stdout
        assert "    images per step, over all devices together. A whole number of at least 1.\n" in done.stdout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"otbr": {"gama": 0.1}}, r"config.otbr.gama: unknown config field; did you mean config.otbr.gamma\?"),
        ({"zzz": 1}, r"config.zzz: unknown config field; expected one of \["),
        (
            {"detection": {"patch": {"steps": 0}}},
            r"^detection.patch.steps: expected a whole number of at least 1, found 0$",
        ),
        (
            {"trigger_finetuning": {"patch": {"size": 0.0}}},
            r"^trigger_finetuning.patch.size: expected a number above 0, found 0.0$",
        ),
        ({"seed": 0.5}, r"^seed: expected a whole number in \[0, 2\*\*32\), found 0.5"),
        ({"seed": True}, r"^seed: expected a whole number in .*, found True"),
        ({"otbr": 3}, "^otbr: expected a group of settings, found 3"),
        ({"sweep": {"gamma": 0.1}}, r"^sweep.gamma: expected a list of numbers in \[0, 1\], found 0.1$"),
        ({"sweep": {"lam": [0.1, 2]}}, r"sweep.lam: expected a list of numbers in \[0, 1\], found 2.0 among them"),
        ({"defense": "magic"}, r"defense: expected one of .*, found 'magic'"),
        ({"attack": {"target": 10}}, r"attack.target: expected a class in 0..9, found 10"),
    ],
)
def test_bad_config(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(RepairConfig, values)


def test_a_config_survives_the_way_through_a_dictionary():
    config = repair_config(seed=3, sweep=SweepConfig(gamma=(0.1, 0.2)))
    assert from_dict(RepairConfig, as_dict(config)) == config
