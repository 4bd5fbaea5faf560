"""Rows of earlier versions are read as they would be written today."""

import json
import pathlib

from otbr_jax.detectors.verdict import read_verdict
from otbr_jax.report.rows import Row, current, field, is_flagged, parse

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def test_older_rows_are_read_as_they_would_be_written():
    judgement = {
        "by": "procedural pictures",
        "stands_out": True,
        "suspect": 1,
        "suspicion": [0.5, 4.0],
        "threshold": 3.5,
    }
    judgement |= {"family": "wave", "reach_cost": {"wave": [0.2, 0.1]}, "margin": [1, 2], "answers": [0.5, 0.5]}
    row = current({"cell": "a", "judgement": judgement | {"evidence": {"wave": [0, 1]}}, "seed": 3})
    assert {*row} == {"cell", "seed", "verdict", "detection"}
    assert read_verdict(row["verdict"]).plain() == {
        "detector": "trigger_size",
        "backdoored": "yes",
        "suspect": 1,
        "score": 4.0,
        "scores": [0.5, 4.0],
        "threshold": 3.5,
        "p_value": None,
        "clean_networks": 0,
        "evidence": {"wave": [0, 1]},
        "why_not": "",
    }
    sizes = {"wave": [0.2, 0.1]}
    detection = {"family": "wave", "trigger_size": sizes, "maximum_margin": [1, 2], "class_bias": [0.5, 0.5]}
    assert row["detection"] == detection
    assert current(row) == row
    sizes = {"trigger_size": [1, 2], "trigger_success": [1, 1], "perturbation_strength": [3, 4], "settings": []}
    other = {"by": "clean images", "stands_out": False, "suspect": 0, "suspicion": [0.1, 0.0], "threshold": 0.41}
    row = current({"judgement": other | sizes})
    assert (row["verdict"]["detector"], row["verdict"]["backdoored"]) == ("tsbd", "no")
    assert row["detection"] == {
        "trigger_size": {"patch": [1, 2], "perturbation": [3, 4]},
        "trigger_success": {"patch": [1, 1]},
        "settings": [],
    }
    assert current({"judgement": None}) == {"verdict": None, "detection": None}
    own = {"backdoored": False, "suspect": 0, "score": 1.0, "scores": [1.0, 0.0], "threshold": 2.0, "p_value": 0.5}
    row = current({"detector": "mm_bd", "seed": 1, **own})
    assert row == {"detector": "mm_bd", "seed": 1, "verdict": {"detector": "mm_bd"} | own | {"backdoored": "no"}}
    assert current({"attack": "all", "backdoored": 12}) == {"attack": "all", "backdoored": 12}  # a number of networks
    assert current({"highest": [1], "stands_out": 4}) == {"highest": [1], "flagged": 4}
    search = {"suspect": 1, "suspicion": 4.0, "stands_out": True}
    assert current({"of_some": search, "of_all": None})["of_some"] == {"suspect": 1, "score": 4.0, "backdoored": "yes"}


def test_every_committed_verdict_is_read():
    counted = 0
    for path in sorted(RESULTS.glob("*.jsonl")):
        for row in parse(path.read_text(), name=path.name):
            assert "judgement" not in row.values
            if row.values.get("verdict") is not None:
                verdict = read_verdict(field(row, "verdict"))
                assert json.loads(json.dumps(verdict.plain())) == verdict.plain()
                assert (verdict.score >= verdict.threshold) == is_flagged(row) == (verdict.backdoored == "yes"), (
                    row.place
                )
                counted += 1
    assert counted > 300
    assert is_flagged(Row("x", {"verdict": {"backdoored": "cannot tell"}})) is False
