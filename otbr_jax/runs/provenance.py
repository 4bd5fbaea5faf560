"""The provenance of every row of results: commit, hardware, date, versions."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from otbr_jax.errors import InputError
from otbr_jax.runs.identity import versions

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
"""The checkout that this package runs from."""


def provenance() -> dict[str, Any]:
    """Commit, hardware, date and versions, for a row of results; the commit is None outside a git checkout.

    Raises:
      InputError: if the library or the configs differ from the commit, which would then not identify what was measured.
    """
    if _git("status", "--porcelain", "--", "otbr_jax", "configs"):
        raise InputError("results name a commit: expected otbr_jax/ and configs/ as committed, found changes")
    return {
        "date": today(),
        "commit": _git("rev-parse", "HEAD"),
        "hardware": hardware(),
        "versions": versions(),
    }


def today() -> str:
    """The date in UTC, such as 2026-01-31."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def hardware() -> str:
    """The machine as text: architecture, cores, devices."""
    kinds = [str(device.device_kind) for device in jax.local_devices()]
    devices = ", ".join(
        f"{kinds.count(kind)} x {kind}" if kinds.count(kind) > 1 else kind for kind in dict.fromkeys(kinds)
    )
    return f"{platform.machine()}, {os.cpu_count()} CPU cores; {devices}"


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # an installed package may lie inside another repository
        return None
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
