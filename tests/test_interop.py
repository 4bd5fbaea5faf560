"""PyTorch, safetensors and BackdoorBench files: what comes in, what goes out, and what is refused.

With `OTBR_JAX_VICTIMS=FOLDER`, PreAct-ResNet18 state dicts of width 16 in that folder make the round trip as well.
"""

import collections
import io
import logging
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from otbr_jax import InputError
from otbr_jax.interop.matching import load_tensors, tensors_like, write_like
from otbr_jax.interop.state_dict import to_state_dict
from otbr_jax.interop.tensor_files import read_tensors, write_state_dict
from otbr_jax.interop.torch_files import TensorSet
from otbr_jax.models import registry
from otbr_jax.models.registry import ARCHITECTURES, ModelConfig
from otbr_jax.runs.infer_model import describe, expected_shapes, infer_model
from otbr_jax.runs.loading import load_checkpoint

torch = pytest.importorskip("torch")
VICTIMS = pathlib.Path(os.environ.get("OTBR_JAX_VICTIMS", "/nowhere"))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.layer1 = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1))
        self.linear = torch.nn.Linear(6, 10)


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


LIKE = {
    "params": {
        "conv1": {"kernel": spec(3, 3, 3, 4)},
        "bn1": {"scale": spec(4), "bias": spec(4)},
        "layer1.0": {"kernel": spec(1, 1, 4, 6), "bias": spec(6)},
        "linear": {"kernel": spec(6, 10), "bias": spec(10)},
    },
    "batch_stats": {"bn1": {"mean": spec(4), "var": spec(4)}},
}


@pytest.fixture
def state():
    """A state dict with a counter that is not 0."""
    torch.manual_seed(0)
    state = Net().state_dict()
    state["bn1.num_batches_tracked"] += 7
    return state


@pytest.fixture
def saved(tmp_path):
    """`saved(anything, suffix='.pt')` -> the file that torch.save made of it."""

    def save(content, suffix=".pt", **options):
        path = tmp_path / f"victim{suffix}"
        torch.save(content, path, **options)
        return path

    return save


def load(path, like=LIKE):
    return load_tensors(read_tensors(path, name="model.checkpoint"), like, name="model.checkpoint")


def refused(path, like=LIKE):
    """The one line that a file ends in."""
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    with pytest.raises(InputError) as error:
        load_checkpoint(path, like, name="model.checkpoint")
    line = str(error.value)
    assert line.startswith("model.checkpoint: ")
    assert str(path) in line
    assert "\n" not in line
    assert (sorted(path.parent.iterdir()) if path.parent.is_dir() else []) == before
    return line


def assert_same_file(found, expected):
    """Names, order, shapes, dtypes and bits."""
    assert found.format == expected.format
    assert list(found.sets) == list(expected.sets)
    for path, each in expected.sets.items():
        tensors = found.sets[path].tensors
        assert list(tensors) == list(each.tensors)
        for name, array in each.tensors.items():
            assert tensors[name].dtype == array.dtype, name
            assert tensors[name].shape == array.shape, name
            assert tensors[name].tobytes() == array.tobytes(), name
        assert found.sets[path].others == each.others
    assert found.envelope.metadata == expected.envelope.metadata


def write_safetensors(path, state, **options):
    arrays = {name: np.array(value, order="C") for name, value in state.items()}
    path.write_bytes(safetensors.numpy.save(arrays, **options))
    return path


# Round trips


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_file_makes_the_round_trip(state, saved, tmp_path, caplog, form, dtype):
    cast = {n: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for n, t in state.items()}
    if form == "safetensors":
        path = tmp_path / "victim.safetensors"
        numbers = {n: t.float().numpy().astype(dtype) if t.is_floating_point() else t.numpy() for n, t in cast.items()}
        write_safetensors(path, numbers, metadata={"format": "pt", "of": "somebody"})
    else:
        path = saved(cast, _use_new_zipfile_serialization=form == "zip")
    with caplog.at_level(logging.WARNING):
        variables, template = load(path)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    weight = cast["conv1.weight"].float().numpy()
    assert variables["params"]["conv1"]["kernel"][2, 1, 0, 3] == weight[3, 0, 2, 1]
    assert variables["params"]["linear"]["kernel"][5, 9] == cast["linear.weight"][9, 5].float()
    if dtype == "float32":
        assert not caplog.messages
    else:
        said = f"9 of 9 tensors are {dtype}; computed in float32, and {dtype} again in a file written back"
        assert caplog.messages == [f"model.checkpoint: {path}: {said}"]

    again = tmp_path / "again"
    write_like(template, variables, again)
    assert_same_file(read_tensors(again, name="file"), read_tensors(path, name="file"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again", path.name]


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "1.", "module._orig_mod.", "_orig_mod.module.1."]
)
@pytest.mark.parametrize(
    ("wrapper", "kept"),
    [
        ({}, {}),
        (
            {"epoch": 3, "state_dict": None, "optimizer": {"state": {}}, "arch": "net"},
            {"epoch": 3, "state_dict": None, "optimizer": {"state": {}}, "arch": "net"},
        ),
        ({"net": None, "acc": 95.5}, {"net": None, "acc": 95.5}),
        ({"model_state_dict": None}, {"model_state_dict": None}),
        ({"model": None, "best": np.float64(0.5)}, {"model": None, "best": np.float64(0.5)}),
        ({"netC": None, "optimizerC": {}}, {"netC": None, "optimizerC": {}}),
    ],
)
def test_prefixes_and_wrappers_are_found_and_kept(state, saved, tmp_path, prefix, wrapper, kept):
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    key = next((key for key, value in wrapper.items() if value is None), None)
    path = saved({**wrapper, key: prefixed} if key else prefixed)
    variables, template = load(path)
    write_like(template, variables, tmp_path / "repaired.pt")
    written = torch.load(tmp_path / "repaired.pt", weights_only=False)
    assert list(written) == list(kept or prefixed)
    for name, tensor in (written[key] if key else written).items():
        torch.testing.assert_close(tensor, prefixed[name], rtol=0, atol=0)
    assert all(written[name] == value for name, value in kept.items() if name != key)


def test_half_of_the_tensors_may_be_half_precision(state, saved, tmp_path, caplog):
    state["linear.weight"] = state["linear.weight"].half()
    state["conv1.weight"] = state["conv1.weight"].bfloat16()
    path = saved(state)
    variables, template = load(path)
    assert "2 of 9 tensors are bfloat16 and float16" in caplog.text
    changed = jax.tree.map(lambda x: x * 2, variables)
    write_like(template, changed, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    for name, tensor in state.items():
        factor = 1 if name.endswith("tracked") else 2
        torch.testing.assert_close(again[name], tensor * factor, rtol=0, atol=0)


def test_what_a_half_precision_file_cannot_hold_is_not_written(state, saved, tmp_path):
    variables, template = load(saved({n: t.half() if t.is_floating_point() else t for n, t in state.items()}))
    changed = jax.tree.map(lambda x: x + 7e4, variables)
    with pytest.raises(InputError, match=r"repaired: expected values that float16 can hold, found 7000"):
        write_like(template, changed, tmp_path / "again.pt", name="repaired")
    assert [entry.name for entry in tmp_path.iterdir()] == ["victim.pt"]


def test_counters_of_batches_may_be_missing(state, saved):
    without = {name: tensor for name, tensor in state.items() if not name.endswith("tracked")}
    variables, template = load(saved(without))
    assert list(tensors_like(template, variables)) == list(without)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".tar", ".safetensors"])
def test_a_state_dict_is_written_by_suffix(state, saved, tmp_path, suffix):
    tensors = to_state_dict(load(saved(state))[0])
    path = tmp_path / f"new{suffix}"
    write_state_dict(path, tensors)
    file = read_tensors(path, name="file")
    assert file.format == ("safetensors" if suffix == ".safetensors" else "torch")
    assert file.tensors["bn1.num_batches_tracked"] == 0
    Net().load_state_dict({name: torch.from_numpy(array.copy()) for name, array in file.tensors.items()}, strict=True)


def test_where_nothing_can_be_written(state, saved, tmp_path, monkeypatch):
    tensors = to_state_dict(load(saved(state))[0])
    with pytest.raises(InputError, match=r"path: expected a file name that ends in one of .*, found 'a.onnx'"):
        write_state_dict("a.onnx", tensors)
    with pytest.raises(InputError, match=r"path: cannot write /nowhere/a.pt \(No such file or directory\)"):
        write_state_dict("/nowhere/a.pt", tensors)

    def full(*_):
        raise OSError(28, "No space left on device")

    old = (tmp_path / "victim.pt").read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_state_dict(tmp_path / "victim.pt", tensors)
    assert (tmp_path / "victim.pt").read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["victim.pt"]


# BackdoorBench


def attack_result(state):
    """What the toolkit saves: the state dict among the poisoned data sets' own states."""

    def data_set(length):
        entries = {
            int(i): {"path": f"./record/bd/{i}.png", "other_info": (np.int64(0), i, 1, np.int64(3))} for i in range(2)
        }
        return {
            "bd_data_container": {"data_dict": entries, "save_folder_path": "./record", "save_file_format": ".png"},
            "getitem_all": True,
            "original_index_array": np.arange(length),
            "poison_indicator": np.arange(length) % 2 == 1,
            "names": np.array(["a", None, 3], dtype=object),
            "shares": [np.float32(0.5), np.zeros((2, 2), np.uint8)],
        }

    return {
        "model_name": "net",
        "num_classes": 10,
        "model": state,
        "data_path": "./data/cifar10",
        "img_size": [32, 32, 3],
        "clean_data": "cifar10",
        "bd_train": data_set(6),
        "bd_test": data_set(4),
    }


def as_numpy_1_wrote_it(path):
    """Renames numpy's module in the pickle of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in members.items():
            if entry.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            archive.writestr(entry, content)


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_an_attack_result_becomes_a_defense_result(state, saved, tmp_path, numpy_version):
    path = saved(attack_result(collections.OrderedDict(state)))
    if numpy_version == 1:
        as_numpy_1_wrote_it(path)
    variables, template = load(path)
    write_like(template, jax.tree.map(lambda x: x + 1, variables), tmp_path / "defense_result.pt")
    result = torch.load(tmp_path / "defense_result.pt", weights_only=True)
    assert list(result) == ["model_name", "num_classes", "model"]
    assert (result["model_name"], result["num_classes"]) == ("net", 10)
    net = Net()
    net.load_state_dict(result["model"], strict=True)
    torch.testing.assert_close(net.conv1.weight.data, state["conv1.weight"] + 1)
    assert net.bn1.num_batches_tracked == 7
    again, _ = load(tmp_path / "defense_result.pt")
    np.testing.assert_array_equal(again["params"]["linear"]["bias"], variables["params"]["linear"]["bias"] + 1)
    assert not any("numpy" in str(entry) for entry in torch.serialization.get_safe_globals())


# Hostile files


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def in_numpy_array(bad):
    return {"bd": np.array([bad], dtype=object)}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "object array"])
def test_a_malicious_pickle_is_refused_by_name_and_does_nothing(state, saved, tmp_path, form, protocol):
    mark = tmp_path / "ran"
    bad = Malicious(mark)
    pickle.loads(pickle.dumps(Malicious(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    if form == "pickle":
        path = tmp_path / "victim.pt"
        path.write_bytes(pickle.dumps({"state_dict": bad}, protocol))
    else:
        content = {"state_dict": {**state, "x": bad}} if form != "object array" else {**in_numpy_array(bad), **state}
        path = saved(content, _use_new_zipfile_serialization=form != "legacy", pickle_protocol=protocol)
    assert "posix.system" in refused(path)
    assert not mark.exists()


def test_a_whole_module_is_read_without_running_it(state, saved, tmp_path, monkeypatch):
    net = Net()
    net.load_state_dict(state)
    path = saved({"net": net, "epoch": 3})
    monkeypatch.setattr(Net, "__setstate__", None, raising=False)  # whoever calls it ends here
    variables, template = load(path)
    assert variables["params"]["linear"]["kernel"][5, 9] == state["linear.weight"][9, 5]
    write_like(template, variables, tmp_path / "repaired.pt")
    written = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert written["epoch"] == 3
    assert list(written["net"]) == list(state)


def zip_file(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def npz():
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3))
    return content.getvalue()


HEADER = b'{"conv1.weight":{"dtype":"F32","shape":[4,3,3,3],"data_offsets":[0,432]}}'


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", ".pt", "found an empty file at"),
        (b"", ".safetensors", "found an empty file at"),
        (b"Just some notes.\n", ".pt", "found a file that starts with b'Just some notes.' at"),
        (
            b"cposix\nsystem\n(S'touch ran'\ntR.",
            ".pt",
            "a pickle that torch.save did not write (it asks for posix.system",
        ),
        (npz(), ".pt", "a NumPy archive (.npz), as Haiku and big_vision write weights"),
        (zip_file(**{"archive/data.pkl": "\x80\x02}."}), ".pt", "is no readable PyTorch checkpoint"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", ".pt", "is no readable PyTorch checkpoint"),
        (struct.pack("<Q", len(HEADER)) + HEADER + bytes(100), ".safetensors", "is no readable safetensors file"),
        (struct.pack("<Q", len(HEADER)) + HEADER[:30], ".pt", "is no readable safetensors file"),
        (struct.pack("<Q", 1 << 62) + HEADER, ".safetensors", "header too large)"),
        (struct.pack("<Q", 50) + b"x" * 50, ".safetensors", "is no readable safetensors file"),
        (struct.pack("<Q", 2) + b"{}", ".safetensors", "expected tensors, found none in"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path, content, suffix, message):
    path = tmp_path / f"victim{suffix}"
    path.write_bytes(content)
    assert message in refused(path)


@pytest.mark.parametrize("keep", [100, 3000, -200])
def test_a_truncated_file(state, saved, keep):
    path = saved(state)
    path.write_bytes(path.read_bytes()[:keep])
    assert "found a zip archive that is damaged" in refused(path)


def test_a_damaged_archive(state, saved):
    path = saved(state)
    content = path.read_bytes()
    middle = content.index(b"data.pkl") + 200
    path.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    assert "found a zip archive that is damaged" in refused(path)


def test_nothing_there_and_a_directory_that_is_no_checkpoint(tmp_path):
    assert "expected an Orbax checkpoint directory, or a PyTorch or safetensors file, found nothing at" in refused(
        tmp_path / "nowhere.pt"
    )
    (tmp_path / "folder").mkdir()
    assert "is no readable Orbax checkpoint" in refused(tmp_path / "folder")
    with pytest.raises(InputError, match="expected a PyTorch or safetensors file, found a directory without one"):
        read_tensors(tmp_path, name="file")


def test_torch_is_optional(state, saved, tmp_path, monkeypatch):
    path = saved(state)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"a PyTorch file needs the package torch: pip install -e '.\[torch\]'"):
        load(path)
    with pytest.raises(InputError, match="needs the package torch"):
        write_state_dict(tmp_path / "new.pt", {})
    write_state_dict(tmp_path / "new.safetensors", {"a": np.zeros(3)})


# Tensors that are not the network's


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "bn1.weight"), "expected a tensor bn1.weight of shape (4,), found none of that name"),
        (lambda s: {**s, "fc.weight": s["linear.bias"]}, "found fc.weight (10,), which the network does not have"),
        (
            lambda s: {**s, "linear.weight": s["linear.weight"][:8], "linear.bias": s["linear.bias"][:8]},
            "expected linear.weight of shape (10, 6), found (8, 6); also 1 more",
        ),
        (lambda s: {"conv1.weight": s["conv1.weight"]}, "; also 7 more"),
        (lambda s: {**s, "0.mean": s["linear.bias"][:3]}, "found 0.mean (3,), which the network does not have"),
        (lambda s: {**s, "module.conv1.weight": s["conv1.weight"]}, "found module.conv1.weight (4, 3, 3, 3), which"),
        (lambda s: {**s, "1.weight": s["linear.weight"]}, "found 1.weight (10, 6), which the network does not have"),
        (lambda s: {**s, "bn1.running_var": -s["bn1.running_var"]}, "expected variances from 0 on, found -"),
        (lambda s: {**s, "linear.bias": s["linear.bias"].int()}, "floating-point weights, found int32 in linear.bias"),
        (lambda s: {**s, "bn1.bias": s["bn1.bias"] / 0}, "finite weights, found 4 NaN or infinite values in bn1.bias"),
        (lambda s: {**s, "bn1.bias": s["bn1.bias"].double() + 1e300}, "found 4 NaN or infinite values in bn1.bias"),
        (
            lambda s: {**s, "bn1.bias": s["bn1.bias"].to_sparse()},
            "expected a tensor bn1.bias of shape (4,), found a tensor of torch.float32, torch.sparse_coo",
        ),
        (
            lambda s: {**s, "bn1.bias": s["bn1.bias"].to(torch.float8_e5m2)},
            "bn1.bias of shape (4,), found a tensor of torch.float8_e5m2",
        ),
        (lambda s: {**s, "bn1.bias": s["bn1.bias"].to(torch.complex64)}, "floating-point weights, found complex64 in"),
        (
            lambda s: {**s, "bn1.bias": s["bn1.bias"].numpy()},
            "bn1.bias of shape (4,), found a numpy._core.multiarray._reconstruct",
        ),
        (
            lambda s: {"epoch": 3, "layers": []},
            "expected named tensors, such as a state dict, found a dictionary of epoch, layers",
        ),
        (
            lambda s: {"state_dict": {}},
            "expected named tensors, such as a state dict, found a dictionary of state_dict",
        ),
        (lambda s: list(s.values()), "expected named tensors, such as a state dict, found a value of type list"),
    ],
)
def test_other_tensors_than_the_networks_are_refused(state, saved, change, message):
    assert message in refused(saved(change(state)))


def test_two_spellings_of_one_tensor_are_refused(tmp_path):
    tensors = {"mlp.0.weight": np.zeros((2, 2), np.float32), "mlp.linear_1.weight": np.ones((2, 2), np.float32)}
    path = write_safetensors(tmp_path / "two.safetensors", tensors)
    with pytest.raises(InputError, match=r"found mlp.linear_1.weight \(2, 2\), which the network does not have"):
        load(path, {"params": {"mlp.0": {"kernel": spec(2, 2)}}})


@pytest.mark.parametrize(
    ("modern", "old"),
    [
        ("features.denseblock1.denselayer12.norm1", "features.denseblock1.denselayer12.norm.1"),
        ("features.denseblock1.denselayer12.conv2", "features.denseblock1.denselayer12.conv.2"),
        ("encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_0.mlp.linear_1"),
        ("encoder.layers.encoder_layer_0.mlp.3", "encoder.layers.encoder_layer_0.mlp.linear_2"),
    ],
)
def test_old_spellings_of_torchvision_are_known_and_kept(tmp_path, modern, old):
    tensors = {f"module.{old}.{leaf}": np.ones(3, np.float32) for leaf in ("weight", "bias")}
    path = write_safetensors(tmp_path / "old.safetensors", tensors)
    variables, template = load(path, {"params": {modern: {"scale": spec(3), "bias": spec(3)}}})
    assert set(tensors_like(template, variables)) == set(tensors)


# Which network it is


def fake_file(config):
    """Tensors of a network's names and shapes that take no memory."""
    shapes = expected_shapes(config)
    return {f"module.{name}": np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}


def told(tensors, **options):
    return infer_model({(): TensorSet(tensors)}, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_is_told_by_its_tensors(name):
    image_shape = (48, 48, 1) if name == "vit_b_16" else (32, 32, 1)
    config = ModelConfig(name, width=32, image_shape=image_shape, num_classes=7)
    assert told(fake_file(config)) == config
    assert describe(config).startswith(f"{name} with model.width=32, model.num_classes=7, model.image_shape=(")


def test_no_network_is_told_by_other_tensors():
    tensors = fake_file(ModelConfig("preact_resnet10", width=8))
    assert describe(told(tensors)) == "preact_resnet10 with model.width=8, model.num_classes=10"
    assert told(tensors, names=("resnet18",)) is None
    assert told({**tensors, "module.extra.weight": tensors["module.linear.bias"]}) is None
    wide = {**tensors, "module.layer1.0.conv2.weight": np.broadcast_to(np.float32(1), (9, 8, 3, 3))}
    assert told(wide) is None
    depth = (1, 2, 1, 1)
    deeper = fake_file(ModelConfig("preact_resnet10", width=8, depth=depth))
    assert told(deeper) is None
    assert told(deeper, names=("preact_resnet10",), depth=depth).depth == depth


def test_the_wrong_architecture_is_told_which_is_right(tmp_path):
    path = write_safetensors(tmp_path / "v.safetensors", fake_file(ModelConfig("preact_resnet18", width=4)))
    like = jax.eval_shape(registry.build(ModelConfig("preact_resnet10"))[1], jax.random.key(0))
    line = refused(path, like)
    assert line.endswith("; the file's tensors are those of preact_resnet18 with model.width=4, model.num_classes=10")


# Other people's files


@pytest.mark.skipif(not VICTIMS.is_dir(), reason="OTBR_JAX_VICTIMS names no folder")
@pytest.mark.parametrize("path", sorted(VICTIMS.glob("*.pt")), ids=lambda path: path.name)
def test_victims_make_the_round_trip(path, tmp_path):
    file = read_tensors(path, name="file")
    config = infer_model(file.sets)
    assert (config.name, config.width, config.num_classes) == ("preact_resnet18", 16, 10)
    like = jax.eval_shape(registry.build(config)[1], jax.random.key(0))
    variables, template = load_checkpoint(path, like, name="file")
    write_like(template, variables, tmp_path / "again.pt")
    assert_same_file(read_tensors(tmp_path / "again.pt", name="file"), file)
    write_state_dict(tmp_path / "again.safetensors", tensors_like(template, variables))
    other = read_tensors(tmp_path / "again.safetensors", name="file")
    assert set(other.tensors) == set(file.tensors)
    for name, array in file.tensors.items():
        assert (other.tensors[name].dtype, other.tensors[name].shape) == (array.dtype, array.shape)
        assert other.tensors[name].tobytes() == array.tobytes()


@pytest.mark.skipif(not VICTIMS.is_dir(), reason="OTBR_JAX_VICTIMS names no folder")
@pytest.mark.parametrize("path", sorted(VICTIMS.glob("*.pt")), ids=lambda path: path.name)
def test_victims_answer_as_in_pytorch(path):
    networks = pytest.importorskip("torch_networks")
    module = networks.PreActResNet(networks.PreActBlock, (2, 2, 2, 2), num_classes=10, width=16)
    module.load_state_dict(torch.load(path, weights_only=True), strict=True)
    network, init = registry.build(ModelConfig("preact_resnet18", width=16))
    variables, _ = load_checkpoint(path, jax.eval_shape(init, jax.random.key(0)), name="file")
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    expected = networks.evaluate(module, images)
    np.testing.assert_allclose(network.apply(variables, images), expected, atol=1e-4 * np.abs(expected).max())


def test_an_archive_that_grows_is_refused(state, saved, tmp_path):
    plain = saved(state)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry) + bytes(1 << 20) * entry.endswith("/0"))
    with pytest.raises(InputError, match="is refused: it is compressed, and would unpack to"):
        read_tensors(tmp_path / "bomb.pt", name="model.checkpoint")
