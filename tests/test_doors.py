"""What is imported when: OTT and others where they are used, JAX not before a program has something to compute."""

import ast
import pathlib
import runpy
import subprocess
import sys

import pytest
from launching import launch

import otbr_jax
from launch import index, indexing
from launch.kinds import KINDS
from otbr_jax.settings import describe, describe_all

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ("flax", "jaxopt", "lineax", "matplotlib", "orbax", "ott", "PIL", "scipy.stats", "sklearn", "torch")

EVERYTHING = """
import sys
import otbr_jax
assert "jax" not in sys.modules
from otbr_jax import *
import otbr_jax.attacks.registry, otbr_jax.defenses.registry, otbr_jax.detectors.registry
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""
WITHOUT_JAX = """
import runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "numpy"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_module(f"launch.{sys.argv[0]}", run_name="__main__", alter_sys=True)
"""


def python(code, *arguments, folder=ROOT):
    """Code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)


def test_public_names_bring_jax_and_optax_alone():
    done = python(EVERYTHING, *HEAVY, "tensorflow_datasets")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_public_names_are_those_that_type_checkers_see():
    stub = ast.parse((ROOT / "otbr_jax" / "__init__.pyi").read_text())
    listed = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert otbr_jax.__all__ == sorted(listed)
    assert {*listed} <= {*dir(otbr_jax)}
    assert all(getattr(otbr_jax, name) is not None for name in listed)
    with pytest.raises(AttributeError, match="module 'otbr_jax' has no attribute 'nothing'"):
        otbr_jax.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("repair", "--config.inversoin.steps=3", "did you mean --config.inversion.steps?"),
        ("repair", "--epochs=3", "unknown flag --epochs; did you mean --config.training.epochs?"),
        ("repair", "--config=missing.py", "--config: expected a file whose get_config() returns a ConfigDict:"),
        ("repair", "--config.model.checkpoint=missing.pt", "model.checkpoint: expected an Orbax checkpoint directory"),
        ("repair", "--config.model.name=missing.py:net", "model.name: expected a Python file, found nothing at"),
        ("repair", "--config.data.name=npz --config.data.path=x", "data.path: expected a .npz file, found nothing"),
        ("repair", "--config.clean.name=folder", "clean.path: expected a folder of classes, found nothing at ''"),
        ("repair", "--config.detection.share=high", "flag --config.detection.share=high: could not convert"),
        ("repair", "--config.detection.share=1.5", "detection.share: expected a number in [0, 1], found 1.5"),
        ("repair", "--process_id=1", "--coordinator: expected HOST:PORT of process 0 beside --process_id, found none"),
        ("inspect_network", "--scan=missing", "--scan: expected a folder, a file or a list of"),
        ("inspect_network", "--detector=nix", "flag --detector=nix: value should be one of <"),
        ("train_victim", "--config=configs/victims/mnist.py:sig --config.sed=1", "did you mean --config.seed?"),
        ("bench", "--grid=missing.py", "--grid: expected a Python file with get_grid(), found nothing at 'missing.py'"),
        ("convert", "--from=missing --to=x --model=y", "--from: expected an Orbax checkpoint directory, or a PyTorch"),
        ("tables", "--print=nix", "flag --print=nix: value should be one of <"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_without_jax(program, arguments, message):
    done = python(WITHOUT_JAX, program, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "program", sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "def main(" in path.read_text())
)
def test_help_is_answered_without_jax(program, tmp_path):
    done = python(WITHOUT_JAX, program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nflags:\n  --" in done.stdout


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("repair", ("--helpfull",)),
        ("repair", ("--config=configs/tsbd.py", "--config.sweep.n=(.1,.2)", "--config.clean.flip", "-h")),
        ("repair", ("--config.detection.share=1.5",)),
        ("repair", ("--config.traning.epochs=1",)),
        ("ablate", ("--config.tsbd.n", "2", "--help")),
        ("inspect_network", ("--detector=nix",)),
    ],
)
def test_the_answers_are_those_of_the_code_itself(program, arguments, monkeypatch):
    early = launch(program, *arguments)
    monkeypatch.setattr(index, "current", lambda: None)
    assert launch(program, *arguments) == early


def test_the_index_is_current():
    assert index.FILE.read_text() == indexing.text(), "python -m launch.write_index"
    assert index.current() is not None


def test_the_index_has_every_setting_as_it_is_declared():
    known = index.current()
    for kind, made in KINDS.items():
        for variant, values in made().variants.items():
            assert known.settings(kind, variant) == describe(made().Config, values)
        assert known.all_settings(kind) == describe_all(made().Config)


def test_the_index_has_the_values_of_config_files():
    known = index.current()
    for path, (kind, _, _) in known.files.items():
        values = runpy.run_path(str(index.CONFIGS / path))["get_config"]().to_dict()
        found = index.nested(known.file(kind, path))
        assert found == values
        types = [{name: type(value) for name, value in index.flat(each).items()} for each in (found, values)]
        assert types[0] == types[1]


def test_another_declaration_makes_another_digest(tmp_path, monkeypatch):
    file = tmp_path / "some.py"
    monkeypatch.setattr(otbr_jax, "__path__", [str(tmp_path)])
    declared = '@settings("some")\nclass Some:\n    """Some."""\n\n    size: int = field(default=1, doc="of it.")\n\n\n'
    digests = []
    for constant, body in (("3", "1"), ("3", "2"), ("4", "2")):
        file.write_text(f"NAMES = (\n    {constant},\n)\n{declared}def run():\n    return {body}\n")
        digests.append(index.digest())
    file.write_text(f"NAMES = (\n    4,\n)\n{declared.replace('default=1', 'default=2')}def run():\n    return 2\n")
    assert digests[0] == digests[1]
    assert len({*digests, index.digest()}) == 3
