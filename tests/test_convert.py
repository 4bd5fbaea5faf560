"""`python -m launch.convert`: between Orbax, PyTorch and safetensors, bit for bit."""

import jax
import numpy as np
import pytest
from launching import launch

from otbr_jax import InputError
from otbr_jax.interop.state_dict import to_state_dict
from otbr_jax.interop.tensor_files import read_tensors, write_state_dict
from otbr_jax.runs.loading import load_checkpoint
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.studies.convert import convert

pytest.importorskip("torch")
NAME = "preact_resnet10"


@pytest.fixture
def victim(tiny, tmp_path):
    """A state dict of width 4 for one-channel images, in a file."""
    path = tmp_path / "victim.pt"
    write_state_dict(path, to_state_dict(tiny[1]))
    return path


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_a_checkpoint_is_never_converted_onto_itself(victim):
    before = victim.read_bytes()
    with pytest.raises(InputError, match=r"--to: expected another path than --from, found .*victim.pt for both"):
        convert(victim, victim.parent / "." / victim.name, NAME, {}, overwrite=True)
    assert victim.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "message"),
    [("", "--to: expected a name, found an empty one"), ("x" * 300 + ".pt", r"--to: cannot use .*File name too long")],
)
def test_a_target_that_cannot_be(victim, target, message):
    with pytest.raises(InputError, match=message):
        convert(victim, target, NAME, {})
    with pytest.raises(InputError, match=r"--from: expected .*, found nothing at .*~nobody-of-this-name"):
        convert("~nobody-of-this-name/x.pt", victim.parent / "y.pt", NAME, {})


def test_a_tensor_too_many_is_named_though_no_size_was_given(victim, tmp_path):
    tensors = read_tensors(victim, name="file").tensors
    write_state_dict(victim, {**tensors, "foo.weight": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=r"victim.pt: found foo.weight \(3,\), which the network does not have$"):
        convert(victim, tmp_path / "o.pt", NAME, {})


def test_from_torch_through_orbax_and_safetensors_and_back(tiny, victim, tmp_path):
    original = read_tensors(victim, name="file").tensors
    line = convert(victim, tmp_path / "a" / "orbax", NAME, {})
    assert line == f"read {victim} (torch, {NAME}); wrote 46 tensors to {tmp_path / 'a' / 'orbax'} (Orbax)"
    like = jax.eval_shape(lambda: tiny[1])
    found, template = load_checkpoint(tmp_path / "a" / "orbax", like, name="checkpoint")
    assert template is None
    assert_same(to_state_dict(found), original)

    sizes = {"width": 4, "image_shape": (8, 8, 1)}
    for start, settings, goal in (
        ("a/orbax", sizes, "b.safetensors"),
        ("b.safetensors", {}, "c.pth"),
        ("c.pth", {"width": 4}, "d.tar"),
        ("d.tar", {}, "e"),
        ("e", sizes, "f.pt"),
    ):
        convert(tmp_path / start, tmp_path / goal, NAME, settings)
    assert_same(read_tensors(tmp_path / "c.pth", name="file").tensors, original)
    assert_same(read_tensors(tmp_path / "f.pt", name="file").tensors, original)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("a", "b.safetensors", "c.pth", "d.tar", "e", "f.pt", "victim.pt")
    ]


def test_half_precision_and_prefixes_stay_from_file_to_file(victim, tmp_path, caplog):
    tensors = read_tensors(victim, name="file").tensors
    half = {f"module.{name}": array.astype(np.float16) for name, array in tensors.items() if array.ndim}
    write_state_dict(tmp_path / "half.pt", half)
    convert(tmp_path / "half.pt", tmp_path / "half.safetensors", NAME, {})
    assert_same(read_tensors(tmp_path / "half.safetensors", name="file").tensors, half)
    assert len(caplog.messages) == 1


def test_what_is_at_the_target_is_replaced_only_when_asked(tiny, victim, tmp_path):
    for goal in ("orbax", "copy.pt"):
        convert(victim, tmp_path / goal, NAME, {})
        with pytest.raises(InputError, match=f"--to: .*{goal} exists already; --overwrite replaces it"):
            convert(victim, tmp_path / goal, NAME, {})
        convert(victim, tmp_path / goal, NAME, {}, overwrite=True)
    load_variables(tmp_path / "orbax", jax.eval_shape(lambda: tiny[1]), name="checkpoint")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only_copy.tex").write_text("...")
    with pytest.raises(InputError, match="expected an Orbax checkpoint to replace, found something else at"):
        convert(victim, tmp_path / "thesis", NAME, {}, overwrite=True)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match="expected a file to write, found a directory at"):
        convert(victim, tmp_path / "folder.pt", NAME, {}, overwrite=True)
    assert (tmp_path / "thesis" / "only_copy.tex").exists()


@pytest.mark.parametrize(
    ("goal", "model", "settings", "message"),
    [
        ("x.pt", "preact_resnet1", {}, r"--model: expected one of \[.*, found 'preact_resnet1'; did you mean 'preact_"),
        ("x.pt", NAME, {"width": -1}, "--width: expected a whole number of at least 0, found -1"),
        ("x.pt", NAME, {"depth": (1, 1)}, r"^--depth: expected .*, found \(1, 1\)"),
        (
            "x.pt",
            NAME,
            {"num_classes": 7},
            r"--from: .*linear.bias of shape \(7,\), found \(10,\); also 1 more; ",
        ),
        ("x.pt", "resnet18", {}, f"the file's tensors are those of {NAME} with model.width=4, model.num_classes=10"),
        ("x.onnx", NAME, {}, "--to: expected a name that ends in one of .*, or has no suffix"),
        ("victim.pt/x", NAME, {}, "--to: cannot write .*/victim.pt/x"),
    ],
)
def test_bad_input(victim, tmp_path, goal, model, settings, message):
    with pytest.raises(InputError, match=message):
        convert(victim, tmp_path / goal, model, settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["victim.pt"]


def test_the_command_line_prints_one_line(victim, tmp_path):
    goal = tmp_path / "victim.safetensors"
    runs = [
        launch(
            "convert", f"--from={victim}", f"--to={goal}", f"--model={NAME}", "--image_shape=8,8,1", "--depth=1,1,1,1"
        ),
        launch("convert", f"--from={victim}", f"--to={tmp_path / 'x'}", "--model=preact_resnet11"),
        launch("convert", f"--from={victim}", f"--to={tmp_path / 'x'}", f"--model={NAME}", "--depth=1,one"),
        launch("convert", f"--from={victim}", f"--to={tmp_path / 'x'}"),
    ]
    whole, *failed = runs
    assert [run.returncode for run in runs] == [0, 2, 2, 2]
    assert whole.stdout == f"read {victim} (torch, {NAME}); wrote 54 tensors to {goal} (safetensors)\n"
    messages = ["--model: expected one of", "--depth: expected whole numbers with commas, found '1,one'", "--model"]
    for (_, out, err), message in zip(failed, messages, strict=True):
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith("error: ")
        assert message in err
