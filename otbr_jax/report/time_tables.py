"""What programs take, in seconds and ratios, as tables. Rows: benchmarks of these names."""

from __future__ import annotations

from collections.abc import Sequence

from otbr_jax.report.numbers import NOTHING
from otbr_jax.report.rows import Row, field, integer, latest, number, percents, text
from otbr_jax.report.table import Cell, Code, Table


def loops(rows: Sequence[Row]) -> list[Table]:
    """A line for each machine: training steps called from the host, in a loop, and in a loop with channels last."""
    lines = []
    for row in rows:
        host, scan, here = (
            number(row, f"milliseconds_per_step.{program}", ".1f")
            for program in ("host loop", "scan", "scan, channels last")
        )
        ratio = NOTHING if NOTHING in (scan, here) or not float(here) else f"{float(scan) / float(here):.1f}"
        lines.append([text(row, "hardware"), host, scan, here, ratio])
    titles = ("ms a step", "called from the host", "in a loop, JAX's gradients", "in a loop, channels last", "ratio")
    return [Table(titles, lines)]


def unlearning_step(rows: Sequence[Row]) -> list[Table]:
    """A line for each run and unit: JAX's time of a step, and PyTorch's in its two memory formats."""
    programs = ("jax", "jax, plain", "torch", "torch, channels last")
    lines = [
        [
            unit.replace("_", " "),
            *(number(row, f"{program}.{unit}", ".2f") for program in programs),
            number(row, f"ratio_{unit}", ".2f"),
        ]
        for row in rows
        for unit in ("seconds", "processor_seconds")
    ]
    titles = ("a step", "here", "plain convolutions", "PyTorch", "PyTorch, channels last", "here / faster PyTorch")
    return [Table(titles, lines)]


def transport(rows: Sequence[Row]) -> list[Table]:
    """Entropic against exact plans: a line for each size of layer and epsilon, and one for each repaired network."""
    rows = list({(text(row, "network"), number(row, "epsilon", "g")): row for row in rows}.values())
    lines, repaired = [], []
    for row in rows:
        epsilon = number(row, "epsilon", "g")
        for index, values in enumerate(field(row, "sizes")):
            size = Row(f"{row.place}: sizes[{index}]", values)
            lines.append(
                [
                    text(row, "network"),
                    str(integer(size, "neurons")),
                    epsilon,
                    number(size, "cost_gap", ".4f"),
                    number(size, "marginal_error", ".4f"),
                    number(size, "fused_difference", ".4f"),
                    str(integer(size, "iterations")) + ("" if field(size, "converged") else " (stopped)"),
                    number(size, "seconds", ".3f"),
                    number(size, "exact_seconds", ".3f"),
                ]
            )
        repaired.append(
            [
                text(row, "network"),
                percents(row, "victim", "acc", "asr"),
                percents(row, "exact", "acc", "asr"),
                epsilon,
                percents(row, "repaired", "acc", "asr"),
            ]
        )
    titles = ("network", "neurons", "epsilon", "cost gap", "marginal error", "fused weights differ by", "iterations")
    networks = ("network", "victim ACC / ASR", "repaired with exact plans", "epsilon", "repaired with entropic plans")
    return [Table((*titles, "seconds", "exact: seconds"), lines), Table(networks, repaired)]


def sweep(rows: Sequence[Row]) -> list[Table]:
    """A line for each network: what a grid of settings costs, in units of one setting."""
    lines = []
    for row in rows:
        grid, few = f"grid of {integer(row, 'settings')}", integer(row, "screening_images")
        paths = {"one setting": "single", f"{grid}, on {few} images first": "grid", f"{grid}, on all": "grid_on_all"}
        for name, path in paths.items():
            lines.append(
                [
                    name,
                    number(row, f"{path}.seconds", ".2f"),
                    number(row, f"{path}.without_measuring", ".2f"),
                    str(integer(row, f"{path}.traces")),
                    number(row, f"{path}.temporary_mib", ".0f"),
                    number(row, f"{path}.temporary_mib_vgg19_bn", ".0f"),
                ]
            )
        for name, ratio in (("on few first", "seconds"), ("on all", "on_all")):
            ratios = [number(row, f"ratio_{each}", ".1f") for each in (ratio, "without_measuring")]
            lines.append([f"ratio, {name}", *ratios, NOTHING, NOTHING, NOTHING])
    titles = ("", "CPU seconds", "without measuring", "compilations", "temporary memory, MiB", "of VGG19-BN, MiB")
    return [Table(titles, lines)]


def stacking(rows: Sequence[Row]) -> list[Table]:
    """A line for each task: victims per minute by stack size, and the processor's seconds that one victim takes."""
    sizes = [str(size) for size in field(rows[-1], "sizes")]
    names = {"training": "training", "otbr": "OTBR", "disarm": "disarm, few steps"}
    lines = []
    for row in latest(rows, "network", "task"):
        task = names[text(row, "task", among=names)]
        for title, path, form in (
            ("victims per minute", "victims_per_minute", ".1f"),
            ("CPU seconds per victim", "cpu_seconds_per_victim", ".2f"),
        ):
            lines.append(
                [f"{text(row, 'network')}, {task}", title, *(number(row, f"{path}.{size}", form) for size in sizes)]
            )
    return [Table(("", "", *(f"stack of {size}" for size in sizes)), lines)]


def second_start(rows: Sequence[Row]) -> list[Table]:
    """The latest row: the first start of the main job, and the two ways to start again."""
    row, lines = rows[-1], []
    starts: dict[str, str] = {
        "first": "the first start",
        "elsewhere": "programs kept, another working directory",
        "again": "programs and working directory kept",
    }
    for name, title in starts.items():
        parts = [number(row, f"{name}.spent.{part}", ".1f") for part in ("compile", "run", "disk")]
        seconds = [number(row, f"{name}.{measure}", ".0f") for measure in ("seconds", "cpu_seconds")]
        ratio = NOTHING if name == "first" else number(row, f"ratio_{name}_cpu_seconds", ".2f")
        lines.append([title, *seconds, ratio, *parts])
    titles = ("start of the main job", "seconds", "CPU seconds", "ratio", "compiling", "running", "disk")
    return [Table(titles, lines)]


def start(rows: Sequence[Row]) -> list[Table]:
    """The latest row: what it takes until the library is imported, and until a program replies."""
    row, lines = rows[-1], list[list[Cell]]()
    starts = {
        "python": Code("python -c pass"),
        "jax": Code("import jax"),
        "otbr_jax": Code("import otbr_jax"),
        "public_names": Code("from otbr_jax import *"),
        "defences": Code("import otbr_jax.defenses.registry"),
        "help": Code("launch.repair --help"),
        "wrong_flag": "a wrong flag",
        "missing_file": "a missing file",
    }
    for name, title in starts.items():
        seconds = [number(row, f"{name}.{measure}", ".2f") for measure in ("seconds", "cpu_seconds")]
        lines.append(
            [(title,), *seconds, *(number(row, f"ratio_{other}.{name}", ".2f") for other in ("jax", "python"))]
        )
    return [Table(("start", "seconds", "CPU seconds", "to JAX alone", "to Python alone"), lines)]


def scanning(rows: Sequence[Row]) -> list[Table]:
    """A line for each detector: CPU seconds of the first checkpoint, and of each other one."""
    lines = [
        [
            text(row, "detector"),
            str(integer(row, "checkpoints")),
            *(number(row, name, ".1f") for name in ("first_cpu_seconds", "cpu_seconds", "per_cpu_minute")),
        ]
        for row in latest(rows, "detector", "network")
    ]
    titles = ("detector", "checkpoints", "first, CPU s", "each other, CPU s", "checkpoints per minute of CPU time")
    return [Table(titles, lines)]
