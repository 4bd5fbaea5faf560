"""Seconds, floating-point operations, and what a device could do."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

PEAKS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "TPU v2": 45.0,
    "TPU v3": 123.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}
"""Dense bfloat16 TFLOP/s by words of a device's kind, as the makers state them; special kinds before general ones."""


def peak(kind: str) -> float | None:
    """The FLOP/s in bfloat16 of a device of this kind, as `jax.Device.device_kind` says it; None where unknown."""
    words = kind.lower().replace("-", " ").split()
    for known, tera in PEAKS.items():
        if set(known.lower().split()) <= set(words):
            return tera * 1e12
    return None


def share_of_peak(operations: float | None, seconds: float) -> float | None:
    """Which share of the first device's peak so many operations in that time are; None where either is unknown."""
    known = peak(jax.devices()[0].device_kind)
    return None if known is None or operations is None else round(operations / seconds / known, 4)


def operations(function: Callable[..., Any], *arguments: Any) -> float | None:
    """Floating-point operations of one call, as XLA counts them; None where it does not.

    The count is of the program before it is optimised, the same on every device: what a library computes would not be
    counted everywhere. The body of a loop counts once, so `function` must have none.
    """
    flops = (jax.jit(function).lower(*arguments).cost_analysis() or {}).get("flops")
    return None if flops is None or flops <= 0 else float(flops)


def alternating(programs: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """The median seconds of each program; they take turns. Each is called once before, and waits for its device."""
    for program in programs.values():
        program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def ratio(seconds_of: Mapping[str, float], ours: str) -> float | None:
    """The seconds of ours over those of the fastest in PyTorch: below 1, ours is faster; None without PyTorch."""
    theirs = [seconds for name, seconds in seconds_of.items() if name.startswith("torch")]
    return round(seconds_of[ours] / min(theirs), 3) if theirs else None
