import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.runs.checkpoints import replace_checkpoint, restore_checkpoint, save_checkpoint
from otbr_jax.runs.identity import program_digest
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.runs.store import content_digest, open_workdir

VALUE = {"a": {"x": jnp.arange(6.0).reshape(2, 3)}, "flags": jnp.array([True, False]), "n": jnp.int32(7)}
SUBJECT = {"defense": "otbr", "model": {"name": "m"}}


def refuse(path, subject, message):
    with pytest.raises(InputError, match=message), open_workdir(path, subject=subject):
        pass


def like():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VALUE)


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return VALUE


def run(workdir, compute, *, config=1, seed=0, parents=()):
    return workdir.run(
        "s", compute, like=like, config={"c": config}, key=jax.random.key(seed), code="counting", parents=parents
    )


def test_a_finished_stage_is_reloaded_to_the_bit(tmp_path):
    compute = Counter()
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        first = run(workdir, compute)
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        second = run(workdir, compute)
    assert compute.calls == 1
    assert (first.resumed, second.resumed) == (False, True)
    assert first.digest == second.digest == content_digest(VALUE)
    jax.tree.map(np.testing.assert_array_equal, second.value, first.value)
    assert second.provenance["config"] == {"c": 1}
    assert second.provenance["key"] == np.asarray(jax.random.key_data(jax.random.key(0))).tolist()
    assert set(second.provenance["versions"]) >= {"jax", "otbr_jax", "ott-jax"}


def test_config_key_and_parents_decide(tmp_path):
    compute = Counter()
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        first = run(workdir, compute)
        run(workdir, compute, config=2)
        run(workdir, compute, seed=1)
        other = first._replace(digest="another")
        run(workdir, compute, parents=(other,))
        assert compute.calls == 4
        assert run(workdir, compute).resumed  # earlier results are still there
        assert run(workdir, compute, parents=(other,)).provenance["parents"] == {"s": "another"}


def damage_value(folder):
    largest = max((f for f in (folder / "arrays").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)


def truncate(folder):
    for file in (folder / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_manifest(folder):
    file = folder / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"c": 99}}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_value,
        truncate,
        lambda folder: (folder / "provenance.json").write_text('{"digest": "'),
        lambda folder: (folder / "provenance.json").unlink(),
        change_manifest,
        lambda folder: os.rename(folder / "arrays", folder / "gone"),
    ],
    ids=["flipped bits", "truncated", "half a manifest", "no manifest", "changed manifest", "no arrays"],
)
def test_a_damaged_stage_is_named_and_rebuilt(tmp_path, damage, caplog):
    compute = Counter()
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        run(workdir, compute)
        (folder,) = workdir.stages.iterdir()
        damage(folder)
        with caplog.at_level(logging.WARNING):
            stage = run(workdir, compute)
        assert compute.calls == 2
        assert not stage.resumed
        assert f"stage 's' is damaged and will be rebuilt: {folder}" in caplog.text
        assert run(workdir, compute).resumed


def test_a_half_written_stage_is_named_and_never_read(tmp_path, caplog):
    def dies():
        raise KeyboardInterrupt

    compute = Counter()
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        run(workdir, compute)
        (folder,) = workdir.stages.iterdir()
        os.rename(folder, folder.with_name(folder.name + ".partial"))
    with caplog.at_level(logging.WARNING), open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        assert "stage 's' is half-written and will be rebuilt" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            run(workdir, dies)
        assert list(workdir.stages.iterdir()) == []


def test_one_subject_per_directory(tmp_path):
    with open_workdir(tmp_path / "w", subject=SUBJECT):
        pass
    message = r"belongs to another config: expected model = \{'name': 'other'\}, found \{'name': 'm'\}"
    with (
        pytest.raises(InputError, match=message),
        open_workdir(tmp_path / "w", subject=SUBJECT | {"model": {"name": "other"}}),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with (
        pytest.raises(InputError, match=r"expected an empty directory .* 'thesis.tex'"),
        open_workdir(tmp_path / "mine", subject=SUBJECT),
    ):
        pass
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="workdir: expected a directory that can be written"),
        open_workdir(tmp_path / "file" / "w", subject=SUBJECT),
    ):
        pass


def test_two_processes(tmp_path):
    code = (
        "from otbr_jax.runs.store import open_workdir\n"
        f"with open_workdir({str(tmp_path / 'w')!r}, subject={{}}): print('open', flush=True); input()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "open\n"
    with (
        pytest.raises(InputError, match=rf"in use by another process \(pid {other.pid}\)"),
        open_workdir(tmp_path / "w", subject={}),
    ):
        pass
    other.kill()  # a killed process leaves no lock behind
    other.communicate()
    with open_workdir(tmp_path / "w", subject={}):
        pass


def test_replacing_a_checkpoint(tmp_path):
    path = tmp_path / "repaired"
    replace_checkpoint(path, VALUE)
    other = jax.tree.map(lambda x: x * 0, VALUE)
    replace_checkpoint(path, other)
    assert [entry.name for entry in tmp_path.iterdir()] == ["repaired"]
    jax.tree.map(np.testing.assert_array_equal, restore_checkpoint(path, like()), jax.tree.map(np.asarray, other))


def test_a_checkpoint_survives_death_between_the_renames(tmp_path, monkeypatch):
    path = tmp_path / "repaired"
    replace_checkpoint(path, VALUE)
    os.rename(path, tmp_path / "repaired.old")

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("otbr_jax.runs.checkpoints.save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        replace_checkpoint(path, VALUE)
    restore_checkpoint(path, like())


def test_what_is_not_the_stages_fault_deletes_nothing(tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        run(workdir, Counter())
        with monkeypatch.context() as patch:
            patch.setattr("otbr_jax.runs.store.restore_checkpoint", out_of_memory)
            with pytest.raises(MemoryError):
                run(workdir, Counter())
        assert run(workdir, Counter()).resumed


def test_a_users_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", VALUE)
    found = load_variables(tmp_path / "c", like(), name="model.checkpoint")
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, VALUE))


def test_bad_checkpoints(tmp_path):
    def load(path, structure=None):
        return load_variables(path, like() if structure is None else structure, name="model.checkpoint")

    with pytest.raises(InputError, match=r"model.checkpoint: expected an Orbax checkpoint directory, found nothing"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no readable Orbax checkpoint"):
        load(tmp_path / "empty")
    save_checkpoint(tmp_path / "c", VALUE)
    wider = like() | {"n": jax.ShapeDtypeStruct((3,), jnp.int32)}
    with pytest.raises(InputError, match=r"expected n of shape \(3,\) as the model's settings say, found \(\) in"):
        load(tmp_path / "c", wider)
    with pytest.raises(InputError, match=r"expected an array b \(2,\) in .* found none of that name"):
        load(tmp_path / "c", like() | {"b": jax.ShapeDtypeStruct((2,), jnp.float32)})
    save_checkpoint(tmp_path / "more", VALUE | {"a": {**VALUE["a"], "y": jnp.zeros(2)}})
    with pytest.raises(InputError, match=r"holds a/y \(2,\), which the network does not have"):
        load(tmp_path / "more")
    truncate_root = tmp_path / "c"
    for file in truncate_root.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(InputError, match=r"model.checkpoint: .*(truncated or damaged|no readable)"):
        load(truncate_root)


def test_the_digest_sees_names_shapes_types_and_bits():
    base = content_digest({"a": np.zeros(4, np.float32)})
    others = (
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
    )
    assert len({base, *map(content_digest, others)}) == 5


def test_provenance_is_readable_json(tmp_path):
    with open_workdir(tmp_path / "w", subject=SUBJECT) as workdir:
        run(workdir, Counter())
        (file,) = workdir.stages.glob("*/provenance.json")
    assert json.loads(file.read_text())["name"] == "s"


def test_where_a_program_prints_is_no_part_of_what_it_computes(monkeypatch):
    """Terminals and notebooks colour what JAX prints."""
    found = []
    for colours in (False, True):
        monkeypatch.setattr("jax._src.pretty_printer.CAN_USE_COLOR", colours)
        assert ("\x1b[" in str(jax.make_jaxpr(jnp.sin)(1.0))) == colours
        found.append(program_digest(jnp.sin, 1.0))
    assert found[0] == found[1]


def test_more_may_be_known_of_a_directory_than_what_it_is_about(tmp_path):
    """A network that was brought is repaired, and later measured: its directory names the network alone."""
    with open_workdir(tmp_path / "w", subject=SUBJECT | {"data": "none"}):
        pass
    with open_workdir(tmp_path / "w", subject=SUBJECT):
        pass
