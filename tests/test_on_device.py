"""What `benchmarks/on_device.sh` runs: the parts' own code, on tiny networks, without a GPU."""

import dataclasses
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from benchmarks.on_device import clock, parts, pytorch
from benchmarks.on_device.sizes import bench, defaults, sizes
from otbr_jax import FusionConfig, OTBRConfig, TransportConfig, fuse, prune, trace
from otbr_jax.graph.choose import choose_layers
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.types import named_leaves

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "benchmarks" / "on_device.sh"
MODEL = ModelConfig("preact_resnet18", width=4, depth=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("TPU v5 lite", 197),
        ("TPU v4", 275),
        ("cpu", None),
        ("NVIDIA A1000", None),
        ("", None),
    ],
)
def test_the_peak_of_every_kind_is_a_number_or_unknown(kind, tera):
    assert clock.peak(kind) == (None if tera is None else tera * 1e12)


def test_a_ratio_is_to_the_faster_one():
    assert clock.ratio({"jax": 1.0, "torch": 4.0, "torch, compiled": 2.0}, "jax") == 0.5
    assert clock.ratio({"jax": 1.0}, "jax") is None


def test_programs_take_turns():
    called = []
    programs = {name: lambda name=name: called.append(name) for name in "ab"}
    assert set(clock.alternating(programs, repeats=2)) == {"a", "b"}
    assert called == ["a", "b"] * 3


def test_training_yields_a_row_for_each_batch(tmp_path):
    small = ModelConfig("preact_resnet10", width=2, image_shape=(8, 8, 3))
    size = dataclasses.replace(sizes(tmp_path / "none.npz", reduced=True), model=small, images=32, batches=(16,))
    (row,) = parts.training(size, tmp_path)
    assert row["batch"] == 16
    assert row["images_per_second"] > 0
    assert row["gigaflop_per_image"] >= 0
    assert row["share_of_peak"] is None


def test_fusion_in_pytorch_is_ours():
    """With exact plans, so that both solve the same problem; a third of the neurons are pruned."""
    network, init = build(MODEL)
    variables = jax.jit(init)(jax.random.key(0))
    layers = choose_layers(trace(network.apply, variables, jax.numpy.zeros((2, *network.image_shape))), "auto")
    rng = np.random.default_rng(0)
    scores = {layer.name: rng.uniform(0.1, 1, layer.neurons).astype(np.float32) for layer in layers}
    pruned, info = prune(variables, scores, layers, count=sum(layer.neurons for layer in layers) // 3)
    config = OTBRConfig(fusion=FusionConfig(transport=TransportConfig(solver="exact")))
    ours, _ = fuse(pruned, variables, scores, info.pruned, layers, config=config.fusion)
    own = {pytorch.name_of(name): pytorch.torch.from_numpy(value) for name, value in scores.items()}
    gamma = 1 / 3
    state, convolutions = pytorch.state_of(variables), pytorch.convolutions(layers)
    cut = pytorch.prune(state, own, gamma)
    for name, value in pytorch.state_of(pruned).items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)
    theirs = pytorch.fuse(cut, state, own, convolutions, config, exact=True)
    for name, value in pytorch.state_of(ours).items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


def test_the_network_in_pytorch_answers_as_ours():
    network, init = build(MODEL)
    variables = jax.jit(init)(jax.random.key(0))
    images = np.random.default_rng(0).uniform(size=(2, *network.image_shape)).astype(np.float32)
    model = pytorch.network(MODEL, variables).eval()
    with pytorch.torch.no_grad():
        theirs = model(pytorch.torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(pytorch.device())).cpu()
    np.testing.assert_allclose(theirs, jax.jit(network.apply)(variables, images), atol=1e-4)


def test_computing_in_bfloat16_leaves_variables_as_they_are():
    network, init = build(MODEL)
    half = parts.in_bfloat16(network)
    like = jax.eval_shape(init, jax.random.key(0))
    logits, state = jax.eval_shape(half.train, like, jax.ShapeDtypeStruct((2, *network.image_shape), np.float32))
    assert logits.dtype == jax.numpy.bfloat16
    assert set(named_leaves(state)) == {name for name in named_leaves(like) if name.startswith("batch_stats")}


@pytest.mark.parametrize("reduced", [False, True])
def test_settings_of_all_parts_are_valid(reduced, tmp_path):
    size = sizes(tmp_path / "cifar10.npz", reduced=reduced)
    assert len(bench(size).cells) == (2 if reduced else 9)
    assert {cell.config.victim.data.name for cell in bench(size).cells} == {"npz"}
    assert {config.defense for config in defaults(size).values()} == {"disarm"}


def test_the_script_is_valid_and_refuses_unknown_parts():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    found = subprocess.run(["bash", SCRIPT, "everything"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: PART: expected one of training")
