"""Checkpoints as trainers, averagers, pruners and other libraries leave them: the weights come out, and go back."""

import argparse
import collections
import datetime
import decimal
import json
import logging
import os
import pathlib
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from otbr_jax import InputError
from otbr_jax.interop.matching import load_tensors, tensors_like, write_like
from otbr_jax.interop.reparametrised import join_weights
from otbr_jax.interop.spellings import SPELLINGS, respell
from otbr_jax.interop.state_dict import to_state_dict
from otbr_jax.interop.tensor_files import read_tensors
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.loading import load_checkpoint
from otbr_jax.runs.networks import open_network
from otbr_jax.types import named_leaves

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")
CONFIG = ModelConfig("preact_resnet10", width=2, image_shape=(8, 8, 3), num_classes=4)
_, INIT = registry.build(CONFIG)
LIKE = jax.eval_shape(INIT, jax.random.key(0))


def random_variables(seed):
    """Variables of which no two arrays are equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), LIKE)


def state_of(seed=0):
    return {name: torch.from_numpy(array.copy()) for name, array in to_state_dict(random_variables(seed)).items()}


@pytest.fixture
def saved(tmp_path):
    def save(content, name="victim.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def load(path, entry=""):
    return load_checkpoint(path, LIKE, name="model.checkpoint", entry=entry)


def assert_same(found, seed=0):
    expected = named_leaves(random_variables(seed))
    for name, array in named_leaves(found).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, err_msg=name)


def prefixed(prefix, seed=0):
    return {prefix + name: tensor for name, tensor in state_of(seed).items()}


FILES = {
    "half precision, counters too": {name: tensor.half() for name, tensor in state_of().items()},
    "averaged, counters too": {name: tensor.float() for name, tensor in state_of().items()},
    "counters of shape (1,)": {n: t.reshape(1) if n.endswith("tracked") else t for n, t in state_of().items()},
    "AveragedModel": {"n_averaged": torch.tensor(7), **prefixed("module.")},
    "a loss's weights": {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(10)}, "epoch": 3},
    "a metric's counts": {"state_dict": {**prefixed("net."), "train_acc.total": torch.tensor(5)}},
    "thop's counts": {**state_of(), "total_ops": torch.zeros(1), "layer1.0.conv1.total_ops": torch.zeros(1)},
    "arguments": {"model": state_of(), "optimizer": {}, "args": argparse.Namespace(lr=0.1)},
    "a trigger beside it": {"netC": state_of(), "identity_grid": torch.zeros(1, 8, 8, 2), "epoch_current": 9},
    "in a list": [{"epoch": 1}, state_of()],
    "three levels down": {"a": {"b": {"state_dict": state_of()}}},
    "two levels down": {"model": {"state_dict": state_of()}},
    "compiled inside": {n.replace("layer1.", "layer1._orig_mod."): t for n, t in state_of().items()},
    "parallel inside": {n.replace("layer1.", "layer1.module."): t for n, t in state_of().items()},
    "pytorch-cifar's names for others": {"net": prefixed("module."), "acc": 95.1},
}


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_found_and_the_rest_relearning(saved, tmp_path, name):
    path = saved(FILES[name])
    variables, template = load(path)
    assert_same(variables)
    write_like(template, jax.tree.map(lambda leaf: leaf + 1, variables), tmp_path / "again.pt")
    before, after = (torch.load(file, weights_only=False) for file in (path, tmp_path / "again.pt"))
    assert_only_weights_moved(before, after, set(template.slots))


def assert_only_weights_moved(before, after, slots):
    if isinstance(before, list):
        before, after = (dict(enumerate(each)) for each in (before, after))
    assert list(before) == list(after)
    for key, value in before.items():
        if isinstance(value, dict):
            assert_only_weights_moved(value, after[key], slots)
        elif isinstance(value, torch.Tensor):
            expected = value + 1 if key in slots else value
            torch.testing.assert_close(after[key], expected, rtol=1e-3, atol=0)
        else:
            assert after[key] == value


def test_plain_data_is_written_back_and_code_is_not(saved, tmp_path, caplog):
    class Settings:  # of somebody's module, which nobody has
        pass

    Settings.__qualname__ = Settings.__name__ = "Settings"
    globals()["Settings"] = Settings
    plain = {
        "path": pathlib.PurePosixPath("/data/x"),
        "when": datetime.datetime(2026, 1, 2, 3, 4),
        "args": argparse.Namespace(lr=0.1, milestones=[1, 2]),
        "curve": np.arange(6.0).reshape(2, 3),
        "best": np.float64(0.5),
        "counts": collections.Counter(a=2),
        "log": collections.defaultdict(list, {"loss": [0.5]}),
        "zone": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "few": [{1, 2}, frozenset([3]), range(4), decimal.Decimal("0.1")],
    }
    path = saved({"model": state_of(), **plain, "settings": Settings(), "nested": {"own": Settings(), "kept": 1}})
    variables, template = load(path)
    with caplog.at_level(logging.WARNING):
        write_like(template, variables, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=False)
    assert again["nested"] == {"kept": 1}
    for told in ("settings (", "nested/own (", "need other people's code"):
        assert told in caplog.text
    assert set(again) == {"model", *plain, "nested"}
    for key, value in plain.items():
        np.testing.assert_array_equal(again[key], value) if key == "curve" else None
        assert key == "curve" or again[key] == value


def test_of_several_sets_of_weights_one_is_taken_and_the_others_are_named(saved, tmp_path, caplog):
    path = saved({"state_dict_ema": prefixed("module.", seed=1), "state_dict": state_of(), "epoch": 1})
    with caplog.at_level(logging.WARNING):
        variables, _ = load(path)
    assert_same(variables)
    assert (
        "took the weights in state_dict; the file also holds state_dict_ema/module, which model.entry=" in caplog.text
    )
    averaged, template = load(path, entry="state_dict_ema/module")
    assert_same(averaged, seed=1)
    write_like(template, jax.tree.map(lambda leaf: leaf + 1, averaged), tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    torch.testing.assert_close(again["state_dict"]["conv1.weight"], state_of()["conv1.weight"])
    torch.testing.assert_close(again["state_dict_ema"]["module.conv1.weight"], state_of(1)["conv1.weight"] + 1)
    with pytest.raises(
        InputError, match=r"expected an entry of \['state_dict', 'state_dict_ema/module'\], found 'ema'"
    ):
        load(path, entry="ema")
    together = saved({"state_dict": {**prefixed("ema_model.", seed=1), **prefixed("model.")}}, "together.pt")
    assert_same(load(together)[0])
    assert_same(load(together, entry="state_dict/ema_model")[0], seed=1)


def test_a_normalisation_in_the_file_is_used(saved):
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.4], np.float32)
    shaped = {"0.mean": torch.from_numpy(mean).view(1, 3, 1, 1), "0.std": torch.from_numpy(std).view(1, 3, 1, 1)}
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    plain, _ = registry.build(CONFIG)
    expected = plain.apply(random_variables(0), (images - mean) / std)
    only_scaled = {"norm.mean": torch.zeros(3), "norm.std": torch.full((3,), 255.0), **prefixed("model.")}
    subject = open_network(ModelConfig(**{**vars(CONFIG), "checkpoint": str(saved(only_scaled))}))
    unscaled = subject.network.apply(subject.variables, images)
    np.testing.assert_allclose(unscaled, plain.apply(random_variables(0), images), rtol=1e-4)
    of_bytes = {"normalize.mean": torch.from_numpy(255 * mean), "normalize.std": torch.from_numpy(255 * std)}
    for content in ({**shaped, **prefixed("1.")}, {**of_bytes, **prefixed("model.")}):
        subject = open_network(ModelConfig(**{**vars(CONFIG), "checkpoint": str(saved(content))}))
        np.testing.assert_allclose(subject.network.apply(subject.variables, images), expected, rtol=1e-4)
    for content in (
        {**state_of(), "mean": shaped["0.mean"]},
        {"1.weight": torch.zeros(4, 4), **prefixed("0.")},
        {"preprocess.shift": torch.zeros(1, 3, 1, 1), **prefixed("model.")},  # under a name that nobody knows
    ):
        with pytest.raises(InputError, match="which the network does not have"):
            load(saved(content))
    two = {"0.mean": torch.zeros(2), "0.std": torch.ones(2), **prefixed("1.")}
    with pytest.raises(InputError, match="an input normalisation of 3 channels in .*, found 2 means and 2 deviations"):
        open_network(ModelConfig(**{**vars(CONFIG), "checkpoint": str(saved(two))}))


@pytest.mark.parametrize("wrap", ["pruned", "weight_norm", "parametrized", "spectral", "parametrized spectral"])
def test_weights_in_parts_mean_what_pytorch_computes_with_them(wrap):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    if wrap == "pruned":
        prune.random_unstructured(net[0], "weight", 0.5)
    elif wrap == "weight_norm":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(net[0])
        net[0].weight_g.data *= 3
    elif wrap == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(net[0])
    elif wrap == "spectral":
        torch.nn.utils.spectral_norm(net[0])
    else:
        torch.nn.utils.parametrizations.spectral_norm(net[0])
    net.eval()
    images = torch.rand(2, 3, 3, 3)
    net(images)  # old hooks compute the weight here
    stored = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    whole, parts = join_weights(stored)
    assert list(parts) == ["0.weight"]
    np.testing.assert_allclose(whole["0.weight"], net[0].weight.detach(), rtol=1e-5, atol=1e-7)
    changed = np.random.default_rng(0).normal(size=whole["0.weight"].shape).astype(np.float32)
    held = parts["0.weight"]
    new = held.kind.split(changed, tuple(stored[part] for part in held.names))
    net.load_state_dict({n: torch.tensor(a) for n, a in {**stored, **dict(zip(held.names, new, strict=True))}.items()})
    expected = torch.nn.functional.conv2d(images, torch.from_numpy(changed), net[0].bias)
    torch.testing.assert_close(net[0](images), expected, rtol=1e-4, atol=1e-5)


def test_names_of_other_libraries():
    names = {
        1: {"layer1.0.shortcut.0.weight": "layer1.0.downsample.0.weight", "linear.bias": "fc.bias"},
        2: {"blocks.3.attn.qkv.bias": "encoder.layers.encoder_layer_3.self_attention.in_proj_bias"},
        3: {"vit.encoder.layer.3.output.dense.weight": "encoder.layers.encoder_layer_3.mlp.3.weight"},
        4: {"vit.layers.3.attention.o_proj.bias": "encoder.layers.encoder_layer_3.self_attention.out_proj.bias"},
        5: {
            "resnet.encoder.stages.1.layers.0.layer.1.normalization.bias": "layer2.0.bn2.bias",
            "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight": "layer2.0.downsample.0.weight",
            "classifier.1.weight": "fc.weight",
        },
        6: {"stages.2.blocks.8.conv_dw.weight": "features.5.8.block.0.weight", "stem.1.bias": "features.0.1.bias"},
        7: {"convnext.encoder.stages.3.downsampling_layer.1.bias": "features.6.1.bias"},
    }
    for place, expected in names.items():
        assert respell(expected, SPELLINGS[place]) == expected


def test_transformers_keep_queries_keys_and_values_apart(tmp_path):
    config = ModelConfig("vit_b_16", width=8, depth=(1,), image_shape=(16, 16, 1), num_classes=3)
    network, init = registry.build(config)
    variables = jax.tree.map(np.asarray, init(jax.random.key(0)))
    tensors = to_state_dict(variables)
    theirs = {}
    for name, array in tensors.items():
        spelled = name.replace("encoder.layers.encoder_layer_0.", "vit.layers.0.").replace("heads.head", "classifier")
        for ours, other in (
            ("self_attention.out_proj", "attention.o_proj"),
            ("class_token", "vit.embeddings.cls_token"),
            ("encoder.pos_embedding", "vit.embeddings.position_embeddings"),
            ("conv_proj", "vit.embeddings.patch_embeddings.projection"),
            ("encoder.ln", "vit.layernorm"),
            (".ln_1", ".layernorm_before"),
            (".ln_2", ".layernorm_after"),
            ("mlp.0", "mlp.fc1"),
            ("mlp.3", "mlp.fc2"),
        ):
            spelled = spelled.replace(ours, other)
        if "in_proj_" in spelled:
            for part, letter in zip(np.split(array, 3), "qkv", strict=True):
                theirs[spelled.replace("self_attention.in_proj_", f"attention.{letter}_proj.")] = part
        else:
            theirs[spelled] = array
    (tmp_path / "hub").mkdir()
    safetensors.numpy.save_file(theirs, tmp_path / "hub" / "model.safetensors")
    found, template = load_checkpoint(tmp_path / "hub", variables, name="model.checkpoint")
    images = np.ones((2, 16, 16, 1), np.float32)
    np.testing.assert_array_equal(network.apply(found, images), network.apply(variables, images))
    again = tensors_like(template, found)
    assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in theirs.items()}


# Folders


def shards(folder, names=None):
    tensors = {name: tensor.numpy() for name, tensor in state_of().items()}
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    folder.mkdir()
    for file, half in zip(files, halves, strict=True):
        safetensors.numpy.save_file(half, folder / file)
    places = {name: file for file, half in zip(names or files, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards_are_read_from_their_folder_their_index_or_any_of_them(tmp_path):
    folder = shards(tmp_path / "hub")
    for path in (folder, folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"):
        variables, template = load(path)
        assert_same(variables)
    write_like(template, variables, tmp_path / "one.safetensors")
    assert_same(load(tmp_path / "one.safetensors")[0])
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"is part 2 of 2; expected all parts and their index"):
        load(folder / "model-00002-of-00002.safetensors")


def test_a_folder_does_not_lead_out_of_itself(tmp_path):
    with pytest.raises(InputError, match=r"expected names of files beside it, found \.\./secret"):
        load(shards(tmp_path / "climbs", ["../secret", "model-00002-of-00002.safetensors"]))
    with pytest.raises(InputError, match=r"names gone.safetensors, which is not in its folder"):
        load(shards(tmp_path / "lacks", ["gone.safetensors", "model-00002-of-00002.safetensors"]))
    folder = shards(tmp_path / "links")
    (tmp_path / "secret").write_text("secret")
    (folder / "model-00001-of-00002.safetensors").unlink()
    os.symlink(tmp_path / "secret", folder / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"is a link to .*secret, outside of its folder") as error:
        load(folder)
    assert "secret'" not in str(error.value)
    # Hugging Face's cache keeps files apart from the folders that link to them.
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "1").mkdir(parents=True)
    safetensors.numpy.save_file({n: t.numpy() for n, t in state_of().items()}, cache / "blobs" / "abc")
    os.symlink("../../blobs/abc", cache / "snapshots" / "1" / "model.safetensors")
    assert_same(load(cache / "snapshots" / "1")[0])


def test_a_folder_with_several_files_asks_which(tmp_path, saved):
    saved(state_of(), "a.pt")
    saved(state_of(), "b.pt")
    with pytest.raises(InputError, match=r"expected one file of weights in .*, found a.pt, b.pt; give one of them"):
        load(tmp_path)


def test_what_trainers_put_around_an_orbax_checkpoint(tmp_path, caplog):
    values = random_variables(0)
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        for step, seed in ((20, 1), (100, 0)):
            state = {**random_variables(seed), "opt_state": {"trace": values["params"]}, "step": np.int32(step)}
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "nested", {"model": values, "opt": [values["params"]]})
    with caplog.at_level(logging.WARNING):
        for path in ("manager", "manager/100", "manager/100/default", "nested"):
            assert_same(load(tmp_path / path)[0])
    assert f"took the checkpoint {tmp_path / 'manager' / '100' / 'default'}" in caplog.text
    assert "what is not the network's: opt_state, step" in caplog.text
    os.symlink("/etc/hosts", tmp_path / "nested" / "hosts")
    with pytest.raises(InputError, match="is a link to /etc/hosts, outside of the checkpoint"):
        load(tmp_path / "nested")


# Other kinds


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS, not the file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page, as a download that went wrong leaves it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes them"),
        (b"\x93NUMPY\x01\x00", "a NumPy array (.npy)"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05onnx.x", "an ONNX program, which is code"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive; unpack it first"),
        (b'{"lr": 0.1, "arch": "resnet"}', "JSON (lr, arch)"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_other_kinds_are_named(tmp_path, content, kind, suffix):
    (tmp_path / f"victim{suffix}").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_tensors(tmp_path / f"victim{suffix}", name="model.checkpoint")
    assert kind in str(error.value)
    assert "\n" not in str(error.value)


def test_programs_are_named(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this way to save is old, and so are people's files
        torch.jit.script(net).save(str(tmp_path / "scripted.pt"))
    with pytest.raises(InputError, match="is a TorchScript program, which is code"):
        read_tensors(tmp_path / "scripted.pt", name="file")


def test_load_tensors_takes_what_read_tensors_found(saved):
    variables, _ = load_tensors(read_tensors(saved(state_of()), name="file"), LIKE, name="file")
    assert_same(variables)
