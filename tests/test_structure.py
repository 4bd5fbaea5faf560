"""The structure of a value in plain words: what is described is what is rebuilt, and nothing is imported for it."""

import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax.metrics import Metrics
from otbr_jax.runs.store import open_workdir
from otbr_jax.runs.structure import describe, rebuild


class Pair(NamedTuple):
    first: object
    second: object


VALUE = {
    "b": Pair(np.zeros((2, 0), bool), None),
    "a": [Metrics(*np.arange(3.0, dtype=np.float32)), (np.int32(3), jnp.ones((2, 3), jnp.bfloat16))],
    "empty": {},
}


def test_what_is_described_is_rebuilt():
    found = rebuild(json.loads(json.dumps(describe(VALUE))))
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), VALUE)
    assert found == expected
    assert jax.tree.structure(found) == jax.tree.structure(VALUE)
    assert (type(found["b"]), type(found["a"][0])) == (Pair, Metrics)


def test_what_has_no_plain_words_has_no_description():
    class Local(NamedTuple):
        value: object

    for value in (Local(np.ones(2)), {1: np.ones(2)}, {"a": "text"}, jax.ShapeDtypeStruct((2,), np.float32)):
        assert describe(value) is None


@pytest.mark.parametrize(
    "description",
    [
        {"class": ["a_module_that_nobody_imported", "Pair"], "fields": {}},
        {"class": ["os", "system"], "fields": {"command": {"none": True}}},
        {"class": ["builtins", "tuple"], "fields": {}},
        {"class": [__name__, "Pair"], "fields": {"third": {"none": True}}},
        {"shape": [2]},
        {"shape": [2], "dtype": "nonsense"},
        [],
        7,
    ],
)
def test_what_describes_nothing_is_refused(description):
    with pytest.raises(ValueError, match=r"no structure of a value|is no NamedTuple"):
        rebuild(description)
    assert "a_module_that_nobody_imported" not in sys.modules


def test_a_stage_is_reloaded_without_tracing_and_one_of_older_times_as_before(tmp_path):
    asked = []

    def like():
        asked.append(None)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), VALUE)

    def stage():
        with open_workdir(tmp_path / "w", subject={}) as workdir:
            return workdir.run("s", lambda: VALUE, like=like, config=1, key=None, code="otbr_jax.runs.structure")

    first, second = stage(), stage()
    assert (first.resumed, second.resumed, asked) == (False, True, [])
    assert set(second.spent) == {"disk"}
    assert type(second.value["b"]) is Pair
    assert jax.tree.structure(second.value) == jax.tree.structure(first.value)
    (file,) = (tmp_path / "w" / "stages").glob("*/provenance.json")
    known = json.loads(file.read_text())
    del known["structure"], known["files"]["structure"]
    file.write_text(json.dumps(known))
    older = stage()
    assert (older.resumed, len(asked)) == (True, 1)
    assert jax.tree.structure(older.value) == jax.tree.structure(VALUE)  # NamedTuples of the same classes
    known["structure"] = describe({})
    file.write_text(json.dumps(known))
    assert not stage().resumed  # its structure is not what was written
