"""Many checkpoints: each one's verdict is that of `detect`, what is compiled serves all, and bad files are named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from launching import launch

from otbr_jax import InputError, detect
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.studies import scanning
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import named_leaves

MODEL = ModelConfig("preact_resnet10", width=2, image_shape=(8, 8, 1), num_classes=4)
CONFIG = RepairConfig(defense="disarm", model=MODEL)


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
    lines = scanning.scan(CONFIG, scanning.checkpoints(root), detector="mm_bd", say=said.append)
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
        assert (line["suspect"], line["backdoored"]) == (found.suspect, found.backdoored)


def test_a_list_and_what_is_no_place_of_checkpoints(folder, tmp_path):
    root, _ = folder
    (tmp_path / "zoo.txt").write_text(f"# two of them\n{root}/a.pt\n\n{root}/c.pth\n")
    assert [path.name for path in scanning.checkpoints(tmp_path / "zoo.txt")] == ["a.pt", "c.pth"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--scan: expected checkpoints \(.pt, .*\), found none in "):
        scanning.checkpoints(tmp_path / "empty")
    with pytest.raises(InputError, match="--scan: expected a folder, a file or a list of checkpoints, found nothing"):
        scanning.checkpoints(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"backdoored": False}], 0),
        ([{"backdoored": False}, {"error": "x"}], 2),
        ([{"error": "x"}, {"backdoored": True}], 3),
    ],
)
def test_the_exit_status(lines, expected):
    assert scanning.status(lines) == expected


def test_the_command_line_says_a_json_line_each(folder):
    root, _ = folder
    done = launch("inspect_network", f"--scan={root / 'd.pt'}", "--detector=mm_bd")
    assert done.returncode == 2
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["checkpoint"].endswith("d.pt")
    assert line["error"].startswith("model.checkpoint: ")
    done = launch("inspect_network", f"--scan={root}", "--verify")
    assert done.stderr == "error: --scan: expected none of --judge, --out and --verify beside it, found one\n"
