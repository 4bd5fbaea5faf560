"""Files made to do harm: nothing of theirs runs, nothing outside is read or written, and each ends in one line."""

import collections
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.interop.matching import load_tensors, write_like
from otbr_jax.interop.tensor_files import read_tensors

torch = pytest.importorskip("torch")
LIKE = {"params": {"w": np.zeros((2, 3), np.float32)}}


def state():
    return {"w": torch.ones(2, 3)}


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def refused(path, message):
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError) as error:
        load_tensors(read_tensors(path, name="file"), LIKE, name="file")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {mark}",), "posix.system"),
        (eval, ("open({mark!r}, 'w')",), "builtins.eval"),
        (getattr, (os, "system"), "builtins.getattr"),
        (__import__("subprocess").check_call, (["touch", "{mark}"],), "subprocess.check_call"),
        (__import__("runpy").run_path, ("{mark}",), "runpy.run_path"),
        (__import__("operator").methodcaller, ("system",), "operator.methodcaller"),
        (torch.hub.load, ("a/b", "c"), "torch.hub.load"),
        (pickle.loads, (b"cposix\nsystem\n(S'true'\ntR.",), "pickle.loads"),
    ],
)
def test_calls_are_refused_by_name(tmp_path, function, arguments, name, legacy):
    mark = str(tmp_path / "ran")
    filled = [part.format(mark=mark) if isinstance(part, str) else part for part in arguments if part is not os]
    path = tmp_path / "victim.pt"
    torch.save({"model": state(), "extra": Calls(function, *filled)}, path, _use_new_zipfile_serialization=not legacy)
    refused(path, f"its pickle asks for {name}, which no checkpoint has a use for and which was not run")


def test_calls_through_names_that_are_allowed_do_nothing(tmp_path):
    """A class of plain data that is given attributes of its own."""

    class Bad:
        def __reduce__(self):  # the unpickler sets attributes of an OrderedDict, such as its methods
            return collections.OrderedDict, (), {"items": 3, "keys": "no function"}, None, iter(state().items())

    bad = Bad()
    path = tmp_path / "victim.pt"
    torch.save(bad, path)
    variables, template = load_tensors(read_tensors(path, name="file"), LIKE, name="file")
    write_like(template, variables, tmp_path / "again.pt")
    assert torch.load(tmp_path / "again.pt", weights_only=True)["w"].shape == (2, 3)


def test_what_unfolds_without_end_is_read_in_no_time(tmp_path):
    """Lists of lists, each twice in the next: 2**60 in all."""
    laugh = []
    for _ in range(60):
        laugh = [laugh, laugh]
    many = [Calls(bytes, 1 << 40), Calls(frozenset, Calls(range, 1 << 40))]
    itself = {"again": None}
    itself["again"] = itself
    path = tmp_path / "victim.pt"
    torch.save({"model": state(), "laugh": laugh, "many": many, "itself": itself}, path)
    variables, template = load_tensors(read_tensors(path, name="file"), LIKE, name="file")
    write_like(template, variables, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").stat().st_size < 1e5


def test_tensors_that_are_larger_than_what_is_stored_take_no_memory(tmp_path):
    path = tmp_path / "victim.pt"
    torch.save({**state(), "huge": torch.zeros(1).expand(1 << 40)}, path)
    variables, template = load_tensors(read_tensors(path, name="file"), LIKE, name="file")
    write_like(template, variables, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").stat().st_size < 1e5
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    refused(path, "expected named tensors, such as a state dict, found a dictionary of w")


def test_an_archive_that_grows_is_refused(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old:
        members = {entry: old.read(entry) for entry in old.namelist()}
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry, content in members.items():
            new.writestr(entry, content + bytes(1 << 24) * entry.endswith("/0"))
    refused(path, "is refused: it is compressed, and would unpack to")


def test_a_header_that_promises_more_than_there_is(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}).encode()
    path = tmp_path / "victim.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(path, "is no readable safetensors file")


def test_members_of_an_archive_stay_in_it(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old:
        members = {entry: old.read(entry) for entry in old.namelist()}
    path = tmp_path / "sub" / "victim.pt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as new:
        for entry, content in members.items():
            new.writestr(entry, content)
        new.writestr("../outside", "x")
    before = sorted(tmp_path.rglob("*"))
    refused(path, "is no readable PyTorch checkpoint")
    assert sorted(tmp_path.rglob("*")) == before
