"""Processes that compute one run together: how they meet, and how all end when one does.

Every host starts the same command, with `--coordinator=HOST:PORT`, the address of the first one, and
`--num_processes` and `--process_id`; or with `--coordinator=auto`, where JAX finds the rest out by itself (TPU slices,
Slurm, Open MPI, Kubernetes). The first process prints and writes; the others are quiet.

When a process dies, XLA notices after `HEARTBEAT` seconds and aborts all others, with a page of C++ output. Here that
page goes into a file, and one line is printed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from otbr_jax.errors import InputError

if TYPE_CHECKING:
    import jax

WAIT = 60
"""Seconds that processes wait for each other at the start."""
HEARTBEAT = 10
"""Seconds without a heartbeat after which a process counts as dead."""

_GOES_ON = "the same command on every host goes on from what is finished"
_ECHOES = ("Gloo", "Connection closed by peer", "Connection reset by peer", "Socket closed")
_state: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The flags of a program that may run in several processes, and on some of its devices; see `define_hosts`.

    Attributes:
      coordinator: the address of the first process.
      process_id: which process this is.
      num_processes: how many there are.
      local: how many of the local devices share the work.
    """

    coordinator: flags.FlagHolder[str]
    process_id: flags.FlagHolder[int | None]
    num_processes: flags.FlagHolder[int | None]
    local: flags.FlagHolder[int]

    def devices(self) -> list[jax.Device] | None:
        """The devices that `--devices` asks for; None for all; raises InputError if there are fewer."""
        from otbr_jax.runs.devices import first_devices

        return first_devices(self.local.value)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the flags."""
        return tuple(getattr(self, field.name).name for field in dataclasses.fields(self))

    def are_wanted(self) -> bool:
        """Whether the flags ask for several processes; raises InputError if one is missing or out of range."""
        address, index, count = self.coordinator.value, self.process_id.value, self.num_processes.value
        values = {"process_id": index, "num_processes": count}
        if not address:
            for name, value in values.items():
                if value is not None:
                    raise InputError(f"--coordinator: expected HOST:PORT of process 0 beside --{name}, found none")
            return False
        if address == "auto":
            return True
        if not re.fullmatch(r"([^\s:\[\]]+|\[[0-9a-fA-F:]+\]):\d{1,5}", address):
            raise InputError(f"--coordinator: expected HOST:PORT, or auto, found {address!r}")
        if index is None or count is None:
            missing = next(name for name, value in values.items() if value is None)
            raise InputError(f"--{missing}: expected a whole number beside --coordinator, found none")
        if count < 1:
            raise InputError(f"--num_processes: expected at least 1, found {count}")
        if not 0 <= index < count:
            raise InputError(f"--process_id: expected 0 to {count - 1}, found {index}")
        return True

    def join(self, program: str, settings: Any) -> None:
        """Joins the other processes, if the flags ask for any; see `join`."""
        if self.are_wanted():
            join(self.coordinator.value, self.process_id.value, self.num_processes.value, program, settings)


def define_hosts() -> Hosts:
    """Defines `--coordinator`, `--process_id`, `--num_processes` and `--devices`."""
    return Hosts(
        own_flag(flags.DEFINE_string(
            "coordinator", "",
            "Address HOST:PORT of process 0, or `auto` on a cluster that JAX knows; for a run in several processes.",
        )),
        own_flag(flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0.")),
        own_flag(flags.DEFINE_integer("num_processes", None, "How many processes there are.")),
        own_flag(flags.DEFINE_integer("devices", 0, "How many of the local devices share the work; 0 for all.")),
    )  # fmt: skip


def own_flag(flag: flags.FlagHolder[Any]) -> flags.FlagHolder[Any]:
    """Counts a flag among those of the program that is run, for its help."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    return flag


def join(coordinator: str, process_id: int | None, num_processes: int | None, program: str, settings: Any) -> None:
    """Joins the other processes.

    Args:
      coordinator: HOST:PORT of process 0, or `auto`, which needs neither of the next two.
      process_id: which process this is.
      num_processes: how many there are.
      program: its name.
      settings: plain JSON values, which have to be the same in all processes.

    Raises:
      InputError: if nobody answers at the coordinator's address, its port is taken, or another process has other
        settings, another program, or other code.
    """
    import jax

    from otbr_jax.runs import hosts
    from otbr_jax.runs.identity import package_digest, versions

    _redirect_native_output()
    _state.update(phase="start", name=_name(process_id, num_processes))
    has_address = coordinator != "auto"
    if has_address:
        (_await_coordinator if process_id else _check_port)(coordinator)
    try:
        jax.distributed.initialize(
            coordinator if has_address else None,
            num_processes if has_address else None,
            process_id if has_address else None,
            initialization_timeout=WAIT,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=WAIT,
        )
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        expected = (
            "an address that can be joined" if has_address else "a cluster that JAX knows, such as a TPU slice or Slurm"
        )
        raise InputError(f"--coordinator: expected {expected}, found {coordinator!r} ({reason})") from None
    _state.update(phase="run", name=_name(jax.process_index(), jax.process_count()))
    for name, what, digest in (
        ("--num_processes", "program and number of processes", [program, jax.process_count()]),
        ("otbr_jax", "code and versions of libraries", [package_digest(), versions()]),
        ("--config", "settings and flags", settings),
    ):
        hosts.agree(hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest(), name=name, what=what)
    if not hosts.is_first():
        sys.stdout = io.StringIO()


def process_name() -> str:
    """`process 1 of 4`, empty where there is one process."""
    return str(_state.get("name", ""))


def _name(index: int | None, count: int | None) -> str:
    return "" if index is None else f"process {index} of {count}"


def _await_coordinator(address: str) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            return
        except (OSError, OverflowError) as error:  # the name of a pod resolves a while after the pod starts
            if time.monotonic() > until or isinstance(error, OverflowError):
                raise InputError(
                    f"--coordinator: nobody answers at {address} within {WAIT} s ({error}); is process 0 started "
                    "there, with the same --coordinator?"
                ) from None
            time.sleep(0.5)


def _check_port(address: str) -> None:
    port = address.rpartition(":")[2]
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(port)))
    except (OSError, OverflowError) as error:
        raise InputError(f"--coordinator: port {port} of this host cannot be used ({error}); choose another") from None


def _redirect_native_output() -> None:
    """Sends the output of C++ into a file, and leaves Python's; an abort of C++ prints one line."""
    file, _state["log"] = tempfile.mkstemp(prefix="otbr_jax_native_", suffix=".log")
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        stream = os.fdopen(os.dup(descriptor), "w", encoding="utf-8", buffering=1)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
        os.dup2(file, descriptor)
    # absl's handler holds the old stream.
    from absl import logging

    logging.get_absl_handler().python_handler.stream = sys.stderr
    # A Python handler would run between two lines of the main thread, which never reaches its next one.
    _state["handler"] = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _state["handler"])


def _on_abort(_: int) -> None:
    phase = _state.get("phase")
    reason = "another process has ended, or cannot be reached" if phase == "run" else f"not all came within {WAIT} s"
    end(f"{reason}; {_GOES_ON} (what XLA said: {_state['log']})", status=1)


def end_after_another(error: Exception) -> None:
    """Ends this process with one line, if an unexpected error means that another process has ended.

    Otherwise returns, after a while.
    """
    if _state.get("phase") != "run":
        return
    if any(word in str(error) for word in _ECHOES):
        end(f"another process has ended; {_GOES_ON}", status=1)
    time.sleep(1.5 * HEARTBEAT)  # XLA aborts this process meanwhile, if another one is missing


def end(message: str, *, status: int) -> None:
    """Prints a line and ends the process at once: an orderly end would wait for the others."""
    try:
        print(f"error: {process_name()}: {message}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)
