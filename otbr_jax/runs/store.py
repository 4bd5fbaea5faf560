"""Stages: saved when they are finished, and reloaded if nothing that they depend on has changed.

A stage's identity is a hash of its name, its settings, its key, its code and the *contents* of its parents. So a
changed setting re-runs exactly the stages that it affects, and earlier results stay beside the new ones. A stage is
written to a `.partial` folder and renamed when it is complete. Its manifest holds the hashes of the files and of the
values in them. They are checked before a stage is used, so that a damaged or half-written one is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.files import sync_folder, write_text, writing
from otbr_jax.locks import locked
from otbr_jax.paths import local_path
from otbr_jax.runs import hosts, identity, structure, timing
from otbr_jax.runs.checkpoints import restore_checkpoint, save_together
from otbr_jax.runs.identity import content_digest
from otbr_jax.runs.subject import LOCK, LOCKS, OWNER, check_subject, owner_of, write_subject

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A finished stage.

    Attributes:
      value: its value, arrays on the host.
      name: such as `unlearned`.
      digest: hash of the values.
      seconds: wall time of computing it (not of reloading it).
      resumed: whether it was reloaded.
      provenance: config, key, versions, devices, parents, and `notes` about the computation.
      spent: the seconds that this process spent on it, by `timing.PARTS`; for a reloaded one, on reading it.
    """

    value: Any
    name: str
    digest: str
    seconds: float
    resumed: bool
    provenance: Mapping[str, Any]
    spent: Mapping[str, float] = {}

    @property
    def cpu_seconds(self) -> float | None:
        """CPU time of all cores together, with compilation; None for older stages.

        Unlike wall time it does not depend on other programs on the machine.
        """
        seconds = self.provenance.get("notes", {}).get("cpu_seconds")
        return None if seconds is None else float(seconds)

    @property
    def megabytes(self) -> float | None:
        """The memory of the program that computed it, see `memory.megabytes`; None if it is not known."""
        size = self.provenance.get("notes", {}).get("megabytes")
        return None if size is None else float(size)


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An open working directory: `path`, and the folder of its stages. See `open_workdir`."""

    path: pathlib.Path

    @property
    def stages(self) -> pathlib.Path:
        """The folder that holds one folder per stage."""
        return self.path / "stages"

    def run(
        self,
        name: str,
        compute: Callable[[], Any],
        *,
        like: Callable[[], Any],
        config: Any,
        key: jax.Array | None,
        code: str,
        parents: tuple[Stage, ...] = (),
    ) -> Stage:
        """Reloads the stage if it is finished and undamaged; computes and saves it otherwise.

        Args:
          name: the stage's name.
          compute: computes its value, a pytree of arrays.
          like: returns a pytree of `jax.ShapeDtypeStruct` with the value's structure; called for values that
            `structure` cannot describe.
          config: the settings that the value depends on: a dataclass or plain JSON values.
          key: typed PRNG key that the value depends on, or None.
          code: a hash of the code that computes it, see `identity.step_digest` and `code.code_digest`.
          parents: the stages that `compute` reads.

        Returns:
          The stage; its values are the same bits whether computed now or reloaded.
        """
        return self.run_long(
            name, lambda progress: (compute(), {}), like=like, config=config, key=key, code=code, parents=parents
        )

    def run_long(
        self,
        name: str,
        compute: Callable[[pathlib.Path], tuple[Any, Mapping[str, Any]]],
        *,
        like: Callable[[], Any],
        config: Any,
        key: jax.Array | None,
        code: str,
        parents: tuple[Stage, ...] = (),
        check: Callable[[Any], None] = lambda value: None,
    ) -> Stage:
        """As `run`, for a stage that saves its progress.

        `compute` gets a path for that, which is removed when the stage is finished. It returns `(value, notes)`: the
        notes are plain JSON values about the computation, not about the result, such as its speed; `transfer` in them
        are the seconds of moving arrays to the devices. `check` raises if a value cannot be used; it is then not kept.
        """
        inputs: dict[str, Any] = {
            "name": name,
            "config": identity.plain(config),
            "key": None if key is None else np.asarray(jax.random.key_data(key)).tolist(),
            "parents": {parent.name: parent.digest for parent in parents},
            "code": code,
            "libraries": identity.computing_versions(),
        }
        inputs = json.loads(json.dumps(inputs))  # as they will be read back
        hashed = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.stages / f"{name}-{hashed}"
        hosts.agree(hashed, name=f"stage {name!r}", what="settings, data, code and versions")
        if not hosts.is_first():
            return self._load_or_compute(folder, compute, like, inputs, check)
        with self._locked(folder):
            return self._load_or_compute(folder, compute, like, inputs, check)

    def _load_or_compute(
        self,
        folder: pathlib.Path,
        compute: Callable[[pathlib.Path], tuple[Any, Mapping[str, Any]]],
        like: Callable[[], Any],
        inputs: dict[str, Any],
        check: Callable[[Any], None],
    ) -> Stage:
        """The stage, whose lock is held; for the arguments see `run_long`."""
        name = inputs["name"]
        progress = self.path / "progress" / folder.name
        stage = self._load(folder, like, inputs)
        if stage is not None:
            _remove(progress)  # of a process that was killed after its last step
            check(stage.value)
            return stage
        started, cpu_started = time.perf_counter(), time.process_time()
        with timing.compiling() as compile_seconds:
            value, about = compute(progress)
            value, computed = jax.block_until_ready(value), time.perf_counter()
        value = jax.tree.map(np.asarray, value)
        ended, cpu_seconds = time.perf_counter(), time.process_time() - cpu_started
        notes = dict(about)
        transfer = ended - computed + notes.pop("transfer", 0.0)
        spent = timing.split(ended - started, compiling=compile_seconds(), transfer=transfer)
        try:
            check(value)
        except InputError:
            _remove(progress)
            raise
        provenance = inputs | {
            "versions": identity.versions(),
            "devices": [str(device.device_kind) for device in jax.local_devices()],
            "seconds": ended - started,
            "digest": content_digest(value),
            "structure": structure.describe(value),
            "notes": {**notes, "cpu_seconds": cpu_seconds},
        }
        provenance = self._write(folder, value, provenance, spent=spent, name=name)
        _remove(progress)
        if hosts.are_many() and not hosts.is_first():  # so that all processes continue with the same bits
            return _read(folder, like, inputs)._replace(resumed=False)
        notes = provenance["notes"]
        return Stage(value, name, provenance["digest"], ended - started, False, provenance, notes["spent"])

    def _load(self, folder: pathlib.Path, like: Callable[[], Any], inputs: Mapping[str, Any]) -> Stage | None:
        """The stage if it is finished and undamaged; the first process checks, and removes a damaged one."""

        def load() -> Stage | None:
            if folder.name not in os.listdir(self.stages):  # queries the server of a shared folder, unlike `exists`
                return None
            began = time.perf_counter()
            try:
                stage = _read(folder, like, inputs)
            except _DamagedError as damage:
                log.warning("stage %r is damaged and will be rebuilt: %s: %s", inputs["name"], folder, damage)
                shutil.rmtree(folder)
                return None
            return stage._replace(spent={"disk": round(time.perf_counter() - began, 4)})

        if not hosts.are_many():
            return load()
        own = load() if hosts.is_first() else None
        if not hosts.first(lambda: own is not None):
            return None
        return own if hosts.is_first() else _read(folder, like, inputs)

    @contextmanager
    def _locked(self, folder: pathlib.Path) -> Iterator[None]:
        """Holds a stage's lock, and waits for another process that computes it."""
        with locked(self.lock_of(folder), name="workdir", wait=False) as ours:
            if ours:
                yield
                return
        log.warning("waits for another process, which computes %s", folder)
        with locked(self.lock_of(folder), name="workdir"):
            yield

    def lock_of(self, folder: pathlib.Path) -> pathlib.Path:
        """The lock that a process holds while it reads or writes a stage's folder."""
        return self.path / LOCKS / folder.name

    def _write(
        self, folder: pathlib.Path, value: Any, provenance: dict[str, Any], *, spent: Mapping[str, float], name: str
    ) -> dict[str, Any]:
        """Writes a stage; returns its provenance, with the seconds of writing the arrays."""
        began = time.perf_counter()
        partial = folder.with_name(f"{folder.name}.partial")
        if not hosts.is_first():
            hosts.wait_for_all(f"{folder.name}: made")
            save_together(partial / "arrays", value)
            hosts.wait_for_all(f"{folder.name}: written")
            hosts.check_shared(folder, name="workdir")
            return provenance
        with writing(folder, name=f"workdir: stage {name!r}") as partial:
            partial.mkdir(parents=True)
            hosts.wait_for_all(f"{folder.name}: made")
            save_together(partial / "arrays", value)
            provenance["files"] = _file_digests(partial / "arrays", provenance["structure"])
            provenance["notes"]["spent"] = {**spent, "disk": round(time.perf_counter() - began, 4)}
            write_text(partial / "provenance.json", json.dumps(provenance, indent=1))
            os.rename(partial, folder)
        sync_folder(folder.parent)
        hosts.wait_for_all(f"{folder.name}: written")
        return provenance


@contextmanager
def open_workdir(
    path: str | os.PathLike[str], *, subject: Mapping[str, Any], shared: bool = False
) -> Iterator[Workdir]:
    """Opens (or creates) a working directory for one subject.

    Args:
      path: the directory.
      subject: plain JSON values that identify what the directory is for (network, data set). A directory belongs to one
        subject; settings of the method may change from run to run.
      shared: whether other processes may work in it at the same time, if all of them share it. One process computes a
        stage that several need; the others wait and reload it. Otherwise the directory is in use for all others.

    Raises:
      InputError: if it cannot be written, holds other files, belongs to another subject, or is in use.
    """
    root = local_path(path, name="workdir")
    subject = json.loads(json.dumps(subject))  # tuples become lists, as in the file
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(_open(root, subject, shared=shared))

        hosts.first(enter)
        hosts.check_shared(root / "workdir.json", name="workdir")
        yield Workdir(root)


@contextmanager
def _open(root: pathlib.Path, subject: Mapping[str, Any], *, shared: bool) -> Iterator[None]:
    """Creates the directory if it is missing, and locks it; one process does so for all of a run."""
    try:
        check_subject(root, subject)  # before anything is written into a directory that is not ours
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir: expected a directory that can be written, found {root}: {error.strerror}") from None
    with locked(root / LOCK, name="workdir", shared=shared, wait=False) as ours:
        if not ours:
            raise InputError(f"workdir: {root} is in use by another process (pid {owner_of(root)})")
        workdir = Workdir(root)
        with locked(root / LOCKS / "workdir", name="workdir"):  # processes that share it open it one after the other
            _prepare(workdir, subject)
        if shared:
            yield
            return
        try:
            write_text(root / OWNER, str(os.getpid()))
            yield
        finally:
            (root / OWNER).unlink(missing_ok=True)


def _prepare(workdir: Workdir, subject: Mapping[str, Any]) -> None:
    root = workdir.path
    (root / OWNER).unlink(missing_ok=True)  # of a process that was killed
    check_subject(root, subject)
    write_subject(root, subject)
    try:
        workdir.stages.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir: expected to write into {workdir.stages}: {error.strerror}") from None
    for partial in sorted(workdir.stages.glob("*.partial*")):
        folder = partial.with_name(partial.name.partition(".partial")[0])
        with locked(workdir.lock_of(folder), name="workdir", wait=False) as ours:
            if ours:  # else another process is writing it
                log.warning("stage %r is half-written and will be rebuilt: %s", partial.name.split("-")[0], partial)
                shutil.rmtree(partial)


def _remove(progress: pathlib.Path) -> None:
    """Removes a checkpoint, and the leftovers of an interrupted replacement."""
    if not hosts.is_first():
        return
    for left in progress.parent.glob(f"{progress.name}*"):
        shutil.rmtree(left)


class _DamagedError(Exception):
    """A stage on disk differs from its manifest."""


def _read(folder: pathlib.Path, like: Callable[[], Any], inputs: Mapping[str, Any]) -> Stage:
    """Reads a stage; raises _DamagedError if it is not what was written for `inputs`."""
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
        digest, name, seconds = provenance["digest"], provenance["name"], float(provenance["seconds"])
        described = provenance.get("structure")
        expected, _, _ = dict(provenance["files"]), dict(provenance["versions"]), dict(provenance["notes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"provenance.json cannot be read ({error!r})") from None
    for field, value in inputs.items():
        if provenance.get(field) != value:
            raise _DamagedError(f"provenance.json was changed: its {field} is not this stage's")
    files = _file_digests(folder / "arrays", described)
    for file in sorted(expected.keys() | files.keys()):
        if expected.get(file) != files.get(file):
            raise _DamagedError(f"arrays/{file} is missing or not what was written")
    value = restore_checkpoint(
        folder / "arrays", _structure(described) or like()
    )  # the files are undamaged: an error here has another cause
    actual = content_digest(value)
    if actual != digest:
        raise _DamagedError(f"expected values with hash {digest[:12]}, found {actual[:12]}")
    return Stage(value, name, digest, seconds, True, provenance)


def _structure(described: Any) -> Any:
    """The structure that `structure.describe` described; None without one, or if it names unknown classes."""
    try:
        return None if described is None else structure.rebuild(described)
    except ValueError:
        return None


def _file_digests(folder: pathlib.Path, described: Any) -> dict[str, str]:
    """A hash of every file, and of the description of the value's structure if there is one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = json.dumps(described, sort_keys=True)
    return digests if described is None else digests | {"structure": hashlib.sha256(text.encode()).hexdigest()}
