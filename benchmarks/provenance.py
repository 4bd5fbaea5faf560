"""What every measured row carries: the commit and the hardware."""

import os
import pathlib
import platform
import subprocess

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> str:
    devices = ", ".join(str(device.device_kind) for device in jax.local_devices())
    return f"{platform.machine()}, {os.cpu_count()} CPU cores; {devices}"
