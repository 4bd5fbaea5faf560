"""Many checkpoints: each one's verdict is that of `detect`, what is compiled serves all, and bad files are named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from launching import launch

from otbr_jax import Detector, InputError, Step, detect
from otbr_jax.detectors.verdict import verdict_of
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.plan import needs
from otbr_jax.studies import scanning
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.types import named_leaves

MODEL = ModelConfig("preact_resnet10", width=2, image_shape=(8, 8, 1), num_classes=4)
CONFIG = repair_config(defense="disarm", model=MODEL)


def saved(folder, name, model, seed):
    """A PyTorch file of a network with random weights, and its variables."""
    network, init = build(model)
    variables = jax.jit(init)(jax.random.key(seed))
    tensors = {}
    for leaf, array in named_leaves(variables).items():
        array = np.asarray(array)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
        tensors[tensor_name(leaf)] = torch.tensor(array if order is None else array.transpose(order).copy())
    torch.save(tensors, folder / name)
    return network, variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(folder with two networks of one kind, one of another and a broken file; the first two networks)."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "deep").mkdir()
    two = [saved(root, "a.pt", MODEL, 0), saved(root / "deep", "b.pt", MODEL, 1)]
    saved(root, "c.pth", dataclasses.replace(MODEL, width=3), 2)
    (root / "d.pt").write_bytes(b"no checkpoint")
    (root / "notes.md").write_text("none either")
    return root, two


def test_what_is_compiled_serves_all_networks_of_a_kind(folder, monkeypatch):
    root, two = folder
    made, programs = [], scanning.plans.programs
    monkeypatch.setattr(scanning.plans, "programs", lambda *args: made.append(args) or programs(*args))
    said = []
    lines = scanning.scan(CONFIG, scanning.list_checkpoints(root), detector="mm_bd", say=said.append)
    assert lines == said
    assert [line["checkpoint"].removeprefix(str(root)) for line in lines] == ["/a.pt", "/c.pth", "/d.pt", "/deep/b.pt"]
    assert len(made) == 2
    assert [line.get("network") for line in lines] == [
        "preact_resnet10, width 2", "preact_resnet10, width 3", None, "preact_resnet10, width 2"
    ]  # fmt: skip
    assert "d.pt" in lines[2]["error"]
    for line, (network, variables) in zip((lines[0], lines[3]), two, strict=True):
        found = detect("mm_bd", network, variables, key=jax.random.key(0))
        assert line["score"] == pytest.approx(found.score, rel=1e-3)
        assert (
            (line["suspect"], line["backdoored"]) == (found.suspect, "cannot tell") == (found.suspect, found.backdoored)
        )
        assert line["why_not"].startswith("the network has 4 classes, and the detector needs at least 6")


def asks_cheaply(monkeypatch, refuses=()):
    """A detector that looks at the logits of one picture; it refuses networks with these scores."""
    asked = []

    def logits(setup, settings, *, victim, key, report):
        picture = jax.random.uniform(key, (1, *setup.network.image_shape))
        return setup.network.apply(victim, picture)[0]

    def verdict(config, values):
        scores = tuple(float(value) for value in values["logits"])
        asked.append(max(scores))
        if any(abs(max(scores) - refused) < 1e-3 for refused in refuses):
            raise InputError("logits: expected others")
        return verdict_of(scores, threshold=0.0, p_value=0.5)

    detector = Detector("cheap", object, "none", lambda _: (Step("logits", logits, needs("victim")),), verdict)
    monkeypatch.setattr(scanning, "choose_detector", lambda config, name: (detector, None))
    return asked


def test_a_stack_says_the_same_lines(folder, monkeypatch):
    """Of two kinds, one of which does not fill its stack."""
    root, _ = folder
    asked, said = asks_cheaply(monkeypatch), []
    plain = scanning.scan(CONFIG, scanning.list_checkpoints(root), say=lambda line: None)
    lines = scanning.scan(CONFIG, scanning.list_checkpoints(root), stack=2, say=said.append)
    assert len(asked) == 6  # copies are not asked about
    assert [line["checkpoint"].removeprefix(str(root)) for line in said] == ["/d.pt", "/a.pt", "/deep/b.pt", "/c.pth"]
    assert sorted(said, key=lambda line: line["checkpoint"]) == lines
    for line, alone in zip(lines, plain, strict=True):
        assert line.pop("score", None) == pytest.approx(alone.pop("score", None), abs=1e-3)
        del line["seconds"], alone["seconds"]
        assert line == alone


def test_what_fails_the_detector_spoils_no_stack(folder, monkeypatch):
    root, _ = folder
    paths = [root / "a.pt", root / "deep" / "b.pt"]
    asked = asks_cheaply(monkeypatch)
    plain = scanning.scan(CONFIG, paths, stack=2, say=lambda line: None)
    asked = asks_cheaply(monkeypatch, refuses=asked[:1])
    first, second = scanning.scan(CONFIG, paths, stack=2, say=lambda line: None)
    assert first["error"] == "logits: expected others"
    assert second["score"] == pytest.approx(plain[1]["score"], abs=1e-3)
    assert len(asked) == 3  # the first in the stack, then each for itself


def test_a_line_says_what_its_threshold_says(folder, monkeypatch):
    """And it holds no more of a verdict than fits a line."""
    root, _ = folder
    asks_cheaply(monkeypatch)
    for line in scanning.scan(CONFIG, [root / "a.pt", root / "c.pth"], say=lambda line: None):
        assert (line["score"] >= line["threshold"]) == (line["backdoored"] == "yes")
        assert [*line] == [
            "checkpoint", "network", "detector", "backdoored", "suspect", "score", "threshold", "p_value",
            "clean_networks", "why_not", "seconds",
        ]  # fmt: skip


def test_a_list_and_what_is_no_place_of_checkpoints(folder, tmp_path):
    root, _ = folder
    (tmp_path / "zoo.txt").write_text(f"# two of them\n{root}/a.pt\n\n{root}/c.pth\n")
    assert [path.name for path in scanning.list_checkpoints(tmp_path / "zoo.txt")] == ["a.pt", "c.pth"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--scan: expected checkpoints \(.pt, .*\), found none in "):
        scanning.list_checkpoints(tmp_path / "empty")
    with pytest.raises(InputError, match="--scan: expected a folder, a file or a list of checkpoints, found nothing"):
        scanning.list_checkpoints(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"backdoored": "no"}], 0),
        ([{"backdoored": "no"}, {"error": "x"}], 2),
        ([{"backdoored": "no"}, {"backdoored": "cannot tell"}], 2),
        ([{"error": "x"}, {"backdoored": "cannot tell"}, {"backdoored": "yes"}], 3),
    ],
)
def test_the_exit_status(lines, expected):
    assert scanning.exit_status(lines) == expected


def test_the_command_line_says_a_json_line_each(folder):
    root, _ = folder
    done = launch("inspect_network", f"--scan={root / 'd.pt'}", "--detector=mm_bd")
    assert done.returncode == 2
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["checkpoint"].endswith("d.pt")
    assert line["error"].startswith("model.checkpoint: ")
    done = launch("inspect_network", f"--scan={root}", "--verify")
    assert done.stderr == "error: --scan: expected none of --detect, --out and --verify beside it, found one\n"
    done = launch("inspect_network", "--stack=2")
    assert done.stderr == "error: --stack: expected --scan=PATH beside it, found 2 alone\n"


def test_a_stack_has_at_least_one():
    with pytest.raises(InputError, match="--stack: expected a whole number of at least 1, found 0"):
        scanning.scan(CONFIG, [], stack=0, say=lambda line: None)
