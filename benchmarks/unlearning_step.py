"""A step of random unlearning on CPUs, against the same step in PyTorch on the same cores.

    python -m benchmarks.unlearning_step
    python -m benchmarks.unlearning_step --formulations

PreAct-ResNet18 at full width, batches of 256 images of 32 x 32 noise, SGD with momentum, uphill. PyTorch runs in its
own memory format and in channels-last; the faster one counts. All take turns, on as many threads as there are cores.
Prints, and appends to results/unlearning_step.jsonl, the median time of a step, and the least time of its processor,
which other programs on the machine disturb less. `--formulations` times the convolutions of the network's layers and
their gradients alone: as XLA's convolutions, as sums of matrix products, by Winograd, and in PyTorch. Ratios are what
carries over.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from absl import flags

from launch import cli
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.numerics import convolutions, products, winograd
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.steps.unlearn import UnlearningConfig, random_unlearning

sys.path.insert(0, str(ROOT / "tests"))
from torch_networks import PreActBlock, PreActResNet

RESULTS = ROOT / "results" / "unlearning_step.jsonl"
WIDTH = flags.DEFINE_integer("width", 64, "Channels of the first stage.")
BATCH = flags.DEFINE_integer("batch", 256, "Images per step.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often each is timed.")
FORMULATIONS = flags.DEFINE_bool("formulations", False, "Time layers alone.")

# All stay XLA's convolutions, in channels-last layout.
PLAIN = partial(mock.patch.object, convolutions, "_form", lambda *_: None)
STEPS = 2  # more than one, so that the loop stays one
# Channels in and out, height, kernel's size and stride, in units of the width; the images have three channels.
LAYERS = ((3, 1, 32, 3, 1), (1, 1, 32, 3, 1), (1, 2, 32, 3, 2), (1, 2, 32, 1, 2), (2, 2, 16, 3, 1))
LAYERS += ((2, 4, 16, 3, 2), (4, 4, 8, 3, 1), (4, 8, 8, 3, 2), (8, 8, 4, 3, 1))


def timed(programs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each program, which take turns: the median of the clock, and the least of the processor."""
    for program in programs.values():
        program()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(REPEATS.value):
        for name, program in programs.items():
            clock, processor = time.perf_counter(), time.process_time()
            program()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        name: {"seconds": statistics.median(a for a, _ in each), "processor_seconds": min(b for _, b in each)}
        for name, each in times.items()
    }


def in_jax(*, plain: bool) -> Callable[[], Any]:
    """Steps of `random_unlearning`; `plain`: all convolutions are XLA's, in channels-last layout."""
    network, init = registry.build(ModelConfig(name="preact_resnet18", width=WIDTH.value))
    config = UnlearningConfig(steps=STEPS, batch_size=BATCH.value)
    variables = init(jax.random.key(0))
    unlearning = jax.jit(lambda variables, key: random_unlearning(network, variables, key=key, config=config))
    with PLAIN() if plain else contextlib.nullcontext():
        began = time.perf_counter()
        program = unlearning.lower(variables, jax.random.key(1)).compile()
    print(f"compiled in {time.perf_counter() - began:.1f} s{' (plain)' if plain else ''}", flush=True)
    return lambda: jax.block_until_ready(program(variables, jax.random.key(1)))


def in_torch(memory_format: torch.memory_format) -> Callable[[], Any]:
    """The same steps in PyTorch."""
    network = PreActResNet(PreActBlock, (2, 2, 2, 2), 10, WIDTH.value).train().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def steps() -> None:
        for _ in range(STEPS):
            images = torch.rand(BATCH.value, 3, 32, 32).contiguous(memory_format=memory_format)
            labels = torch.randint(0, 10, (BATCH.value,))
            optimizer.zero_grad()
            (-torch.nn.functional.cross_entropy(network(images), labels)).backward()
            optimizer.step()

    return steps


def steps(origin: dict[str, Any]) -> None:
    """Times whole steps, and appends a row."""
    times = timed(
        {
            "jax": in_jax(plain=False),
            "jax, plain": in_jax(plain=True),
            "torch": in_torch(torch.contiguous_format),
            "torch, channels last": in_torch(torch.channels_last),
        }
    )
    times = {name: {unit: round(value / STEPS, 3) for unit, value in own.items()} for name, own in times.items()}
    for name, own in times.items():
        print(f"{name:<30}{1000 * own['seconds']:9.0f} ms a step{own['processor_seconds']:9.2f} processor seconds")
    ratios = {}
    for unit in ("seconds", "processor_seconds"):
        fastest = min(own[unit] for name, own in times.items() if name.startswith("torch"))
        ratios[f"ratio_{unit}"] = round(times["jax"][unit] / fastest, 3)
        print(f"jax / the faster torch, {unit}: {ratios[f'ratio_{unit}']:.2f}")
    append_row(RESULTS, origin | {"width": WIDTH.value, "batch": BATCH.value} | times | ratios)


def formulations() -> None:
    """Prints the processor time of each layer's convolutions in each form and in PyTorch; a star marks the choice."""
    names = ("torch", "plain", "products", "winograd")
    print(f"{'in, out, height, size, stride':<32}{'':<18}" + "".join(f"{name:>12}" for name in names))
    for into, out, height, size, stride in LAYERS:
        into, out = into if into == 3 else into * WIDTH.value, out * WIDTH.value
        rng = np.random.default_rng(0)
        x = rng.standard_normal((BATCH.value, height, height, into), np.float32)
        kernel = rng.standard_normal((size, size, into, out), np.float32)
        gradient = rng.standard_normal((BATCH.value, height // stride, height // stride, out), np.float32)
        for wanted in ("outputs", "input gradient", "kernel gradient"):
            forms: dict[str, Any] = {"plain": None}
            if wanted == "kernel gradient":
                forms["products"] = products.summed_products
            if size == 3 and stride == 1:
                forms["winograd"] = winograd.kernel_gradient if wanted == "kernel gradient" else winograd.convolution
            programs = {"torch": _in_torch(x, kernel, gradient, stride, wanted)}
            with mock.patch.object(convolutions, "_form", wraps=convolutions._form) as choice:
                jax.eval_shape(*_in_jax(x, kernel, gradient, stride, wanted))
                chosen = convolutions._form(*choice.call_args.args)
            for name, form in forms.items():
                with mock.patch.object(convolutions, "_form", lambda *_, form=form: form):
                    programs[name] = _compiled(*_in_jax(x, kernel, gradient, stride, wanted))
            times = timed(programs)
            cells = [
                f"{1000 * times[name]['processor_seconds']:8.0f} ms{'*' if forms.get(name, 0) is chosen else ' '}"
                if name in times
                else ""
                for name in names
            ]
            print(
                f"{f'{into}, {out}, {height}, {size}, {stride}':<32}{wanted:<18}" + "".join(f"{c:>12}" for c in cells)
            )


def _in_torch(x: Any, kernel: Any, gradient: Any, stride: int, wanted: str) -> Callable[[], Any]:
    x, gradient = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in (x, gradient))
    kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    padding = (kernel.shape[2] // 2,) * 2
    if wanted == "outputs":
        return lambda: torch.nn.functional.conv2d(x, kernel, None, stride, padding)
    which = [wanted == "input gradient", wanted == "kernel gradient", False]
    arguments = (None, (stride,) * 2, padding, (1, 1), False, (0, 0), 1, which)
    return lambda: torch.ops.aten.convolution_backward(gradient, x, kernel, *arguments)


def _in_jax(x: Any, kernel: Any, gradient: Any, stride: int, wanted: str) -> tuple[Callable[..., Any], Any, Any]:
    def outputs(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(len(kernel) // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)

    def input_gradient(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: outputs(x, kernel), x)(gradient)[0]

    def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: outputs(x, kernel), kernel)(gradient)[0]

    return {
        "outputs": (convolutions.channels_last(outputs), x, kernel),
        "input gradient": (convolutions.channels_last(input_gradient), kernel, gradient),
        "kernel gradient": (convolutions.channels_last(kernel_gradient), x, gradient),
    }[wanted]


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    program = jax.jit(function).lower(*arguments).compile()
    arguments = jax.device_put(arguments)
    return lambda: jax.block_until_ready(program(*arguments))


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    if FORMULATIONS.value:
        formulations()
    else:
        steps(provenance())


if __name__ == "__main__":
    cli.run(main)
