"""A changed computation is never taken for the one before, and one that only looks different always is."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import rewriting

from otbr_jax.defenses.tuning import tuning_step
from otbr_jax.plan import Setup, Shown, Step, needs
from otbr_jax.runs import identity
from otbr_jax.runs.code import code_digest
from otbr_jax.steps.finetune import FinetuningConfig

ROOT = pathlib.Path(__file__).parent.parent

DEFENCE = '''
"""A user's own defence."""
import functools
from typing import NamedTuple
import jax.numpy as jnp
from otbr_jax.steps import score
from my_helpers import HALF, Table, Scale, helper

STRENGTH = 0.5
BY_NAME = {"plain": lambda x: x, "double": lambda x: 2 * x}

class Given(NamedTuple):
    weight: float
    def doubled(self):
        return 2 * self.weight

def objective(weight, images):
    """What is descended."""
    total = jnp.sum(images)
    return -weight * total * STRENGTH * BY_NAME["double"](HALF)

def tuning_step(objective, weight=1.0):
    def run(setup, settings, *, given: Given, key, report):
        from my_late_helpers import late
        closure = functools.partial(objective, weight)
        return closure(helper(given.weight)) + Table[0] + late() + Scale(2.0).value()
    return run

run = tuning_step(objective)
'''

HELPERS = """
import numpy as np
HALF = 0.5
Table = np.arange(3.0)
def helper(x):
    return deeper(x) + 1
def deeper(x):
    return x * 2
class Scale:
    def __init__(self, by):
        self.by = by
    def value(self):
        return self.by * 4
"""

LATE = """
def late():
    return 3
"""

FILES = {"my_defence": DEFENCE, "my_helpers": HELPERS, "my_late_helpers": LATE}

CHANGES = {
    "the sign of an objective": ("return -weight", "return weight"),
    "an operation of it": ("total * STRENGTH", "total / STRENGTH"),
    "a constant of the module": ("STRENGTH = 0.5", "STRENGTH = 0.25"),
    "a default of what it is made with": ("weight=1.0", "weight=2.0"),
    "a function in a table": ("2 * x}", "3 * x}"),
    "a method of what it is given": ("return 2 * self.weight", "return 3 * self.weight"),
    "a helper two calls away": ("return x * 2", "return x * 3"),
    "a constant of another module": ("HALF = 0.5", "HALF = 0.75"),
    "an array of another module": ("np.arange(3.0)", "np.arange(1.0, 4.0)"),
    "a method of a class that it makes": ("self.by * 4", "self.by * 5"),
    "what it imports for itself": ("return 3\n", "return 4\n"),
}

THE_SAME = {
    "a comment": ("total = jnp.sum", "# a remark\n    total = jnp.sum"),
    "a docstring": ("What is descended.", "The objective."),
    "the module's docstring": ("A user's own defence.", "Mine."),
    "a local": ("total", "everything"),
    "a local that another function closes over": ("closure", "a_name"),
    "line breaks": ("deeper(x) + 1", "(\n        deeper(x)\n        + 1\n    )"),
    "a function that nothing calls": ("class Scale", "def unused():\n    return 9\nclass Scale"),
}


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The identity of the user's step, after `(old, new)` in whichever of the files has it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest(old="", new=""):
        found = 0
        for name, text in FILES.items():
            found += bool(old) and old in text
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
            sys.modules.pop(name, None)
        assert found == bool(old)
        importlib.invalidate_caches()
        return identity.step_digest(Step("tuned", importlib.import_module("my_defence").run, needs("given")))

    yield digest
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_another_computation(change, digest_of):
    assert digest_of(*CHANGES[change]) != digest_of()


@pytest.mark.parametrize("change", THE_SAME)
def test_what_only_looks_different_is_the_same(change, digest_of):
    assert digest_of(*THE_SAME[change]) == digest_of()


def test_a_flipped_objective_is_another_fine_tuning():
    def fine_tuned(sign):
        def objective(setup, params, own):
            return lambda params, batch, key: sign * jnp.sum(batch.images)

        return tuning_step("finetuned", FinetuningConfig(), title="", group="ft", objective=objective)

    assert identity.step_digest(fine_tuned(1)) == identity.step_digest(fine_tuned(1))
    assert identity.step_digest(fine_tuned(1)) != identity.step_digest(fine_tuned(-1))


PRINTING = """
from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.runs.identity import step_digest
import otbr_jax, sys
assert otbr_jax.__file__.startswith(sys.argv[1]), otbr_jax.__file__
for each in (*DEFENSES.values(), *DETECTORS.values()):
    for step in each.plan(each.Config()):
        print(each.name, step.name, step_digest(step))
"""


def printed(folder):
    command, environment = [sys.executable, "-c", PRINTING, str(folder)], {**os.environ, "PYTHONPATH": str(folder)}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@pytest.fixture(scope="module")
def here():
    return printed(ROOT)


def test_no_defence_or_detector_is_another_one_when_its_code_only_looks_different(tmp_path, here):
    """The whole package with a remark, other docstrings, other line breaks and thousands of locals renamed."""
    copy, count = shutil.copytree(ROOT / "otbr_jax", tmp_path / "otbr_jax"), 0
    for file in copy.rglob("*.py"):
        text, renamed = rewriting.rewritten(file.read_text())
        file.write_text(text)
        count += renamed
    assert count > 2000
    assert len(here) > 40
    assert printed(tmp_path) == here


def test_a_change_of_the_package_changes_the_steps_that_reach_it_alone(tmp_path, here):
    copy = shutil.copytree(ROOT / "otbr_jax", tmp_path / "otbr_jax")
    file = copy / "steps" / "transport.py"
    text = file.read_text()
    assert "Momentum(value=1.5)" in text
    file.write_text(text.replace("Momentum(value=1.5)", "Momentum(value=1.4)"))
    changed = {line.rpartition(" ")[0] for line in set(printed(tmp_path)) ^ set(here)}
    assert "otbr fused" in changed
    assert not any(name.startswith(("ft ", "i_bau ", "mm_bd ", "otbr unlearned")) for name in changed)


def test_closures_with_other_values_are_other_computations():
    def scaled(by):
        return lambda x: by * x

    assert code_digest(scaled(2)) == code_digest(scaled(2))
    assert code_digest(scaled(2)) != code_digest(scaled(3))
    assert code_digest(scaled(jnp.ones(2))) != code_digest(scaled(jnp.zeros(2)))
    assert code_digest(jax.jit(scaled(2))) != code_digest(jax.jit(scaled(3)))


def test_arguments_by_name_are_told_apart():
    def one(*, a, b):
        return a - b

    def other(*, b, a):
        return b - a

    other.__qualname__ = one.__qualname__
    assert code_digest(one) != code_digest(other)


def test_how_a_step_is_shown_does_not_count():
    def run(setup: Setup, settings, *, key, report):
        return key

    assert identity.step_digest(Step("s", run, shown=Shown("one"))) == identity.step_digest(
        Step("s", run, shown=Shown("other"))
    )


def test_code_that_calls_itself_has_an_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert code_digest(even) == code_digest(even)
    assert code_digest(even) != code_digest(odd)
