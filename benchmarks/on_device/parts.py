"""The parts: each is `(sizes, folder) -> rows`, one after the other, for whoever stops it in between."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.on_device import clock
from benchmarks.on_device.sizes import Sizes, defaults, victim
from configs.recipes import training as recipe
from otbr_jax.data.sources import preprocess
from otbr_jax.defenses.otbr import OTBRConfig, otbr
from otbr_jax.graph.trace import trace
from otbr_jax.models import registry
from otbr_jax.plan import set_up
from otbr_jax.runs.devices import batch_mesh, replicate
from otbr_jax.steps.fuse import fuse
from otbr_jax.steps.unlearn import random_unlearning
from otbr_jax.studies.repair import repair
from otbr_jax.studies.results import Repair, summarize
from otbr_jax.types import Network, Variables, split
from otbr_jax.victims.training import TrainingSet, programs

Row = dict[str, Any]
Rows = Iterator[Row]


def training(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """Images per second of training in bfloat16, and which share of the device's peak that is."""
    del folder
    network, init = registry.build(sizes.model)
    network = dataclasses.replace(network, prepare=partial(preprocess, config=victim(sizes).config.victim.data))
    mesh, key, shape = batch_mesh(jax.local_devices()[:1]), jax.random.key(0), (sizes.images, *sizes.model.image_shape)
    images = jax.random.randint(key, shape, 0, 256).astype(jnp.uint8)  # the speed does not depend on what they show
    labels = jnp.arange(sizes.images, dtype=jnp.int32) % sizes.model.num_classes
    data, variables = TrainingSet(images, labels, labels), jax.jit(init)(key)
    each = step_operations(network, variables)
    for batch in sizes.batches:
        config = recipe("cifar10", "fast", batch_size=batch, precision="bfloat16")
        begin, epoch = programs(network, images=sizes.images, config=config, mesh=mesh)
        (own, placed), now = replicate((key, data), mesh), begin(variables, {})
        began = time.perf_counter()
        program = epoch.lower(now, own, placed, {}).compile()
        compiling, times = time.perf_counter() - began, []
        for _ in range(1 + sizes.repeats):
            began = time.perf_counter()
            now, loss = program(now, own, placed, {})
            float(loss)
            times.append(time.perf_counter() - began)
        seconds, used = sorted(times[1:])[sizes.repeats // 2], sizes.images // batch * batch
        yield {
            "batch": batch,
            "precision": "bfloat16",
            "images_per_second": round(used / seconds, 1),
            "gigaflop_per_image": None if each is None else round(each / 1e9, 3),
            "share_of_peak": clock.share_of_peak(None if each is None else each * used, seconds),
            "compile_seconds": round(compiling, 1),
        }


def step_operations(network: Network, variables: Variables, images: int = 16) -> float | None:
    """Floating-point operations for each image of a step of training: forwards and backwards, without the optimizer."""
    batch = jnp.zeros((images, *network.image_shape))
    params, state = split(variables)

    def loss(params: Any, state: Any, batch: jax.Array) -> jax.Array:
        return jnp.sum(network.train({"params": params, **state}, batch)[0])

    count = clock.operations(jax.grad(loss), params, state, batch)
    return None if count is None else count / images


def in_bfloat16(network: Network) -> Network:
    """The same network, whose training mode computes in bfloat16; its variables stay as they are."""

    def train(variables: Variables, images: jax.Array) -> Any:
        params, state = split(variables)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return network.train({"params": half, **state}, images.astype(jnp.bfloat16))

    return dataclasses.replace(network, apply_train=train)


def ready(program: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call of a jitted function, compiled now, that waits for its device."""
    arguments = jax.device_put(arguments)  # those of stages lie on the host
    compiled = jax.jit(program).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def unlearning(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """A step of random unlearning, against the same in PyTorch."""
    from benchmarks.on_device import pytorch

    del folder
    network, init = registry.build(sizes.model)
    config, variables = sizes.unlearning, jax.jit(init)(jax.random.key(0))
    model = pytorch.network(sizes.model, variables)
    forward, compiled = pytorch.compiled(model, config.batch_size, backend=sizes.backend)

    def ours(network: Network) -> Callable[[], Any]:
        unlearn = partial(random_unlearning, network, config=config)
        return ready(lambda variables, key: unlearn(variables, key=key), variables, jax.random.key(1))

    def theirs(forward: Callable[..., Any]) -> Callable[[], None]:
        return lambda: (pytorch.unlearning(model, forward, config), pytorch.wait())[1]

    functions = {"jax": ours(network), "jax, bfloat16": ours(in_bfloat16(network)), "torch, AMP": theirs(model)}
    if compiled:
        functions["torch, AMP, compiled"] = theirs(forward)
    seconds = clock.alternating(functions, repeats=sizes.repeats)
    each = step_operations(network, variables)
    total = None if each is None else each * config.batch_size * config.steps
    yield {
        "batch": config.batch_size,
        "steps": config.steps,
        "step_seconds": {name: round(own / config.steps, 6) for name, own in seconds.items()},
        "images_per_second": {n: round(config.batch_size * config.steps / own, 1) for n, own in seconds.items()},
        "share_of_peak": {name: clock.share_of_peak(total, own) for name, own in seconds.items()},
        **ratios(seconds),
    }


def ratios(seconds: Mapping[str, float]) -> Row:
    """Ours over the faster of PyTorch's, for each of ours."""
    return {"ratio_to_torch": {name: clock.ratio(seconds, name) for name in seconds if name.startswith("jax")}}


def repaired(sizes: Sizes, folder: pathlib.Path) -> Repair:
    """The CIFAR-10 victim, repaired as published; trained once for all parts, and for the bench."""
    cell = victim(sizes)
    return repair(cell.config, folder / cell.group, results="on_device", shared=True)


def repairing(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """Whole OTBR as one program, against the same in PyTorch."""
    from benchmarks.on_device import pytorch

    result = repaired(sizes, folder)
    variables, config = result.stages["victim"].value["variables"], result.config.method.otbr
    model = pytorch.network(sizes.model, variables)
    forward, compiled = pytorch.compiled(model, config.unlearning.batch_size, backend=sizes.backend)
    weights = {name: tensor.to(pytorch.device()) for name, tensor in pytorch.state_of(variables).items()}
    layers = pytorch.convolutions(result.layers)

    def ours(network: Network) -> Callable[[], Any]:
        graph = trace(result.network.apply, variables, jnp.zeros((2, *network.image_shape)))
        whole = partial(otbr, network, graph=graph, config=config)
        return ready(lambda variables, key: whole(variables, key=key), variables, jax.random.key(1))

    def theirs(exact: bool) -> Callable[[], None]:
        run = partial(pytorch.repair, model, forward, weights, layers, config, exact=exact)
        return lambda: (run(), pytorch.wait())[1]

    began = time.perf_counter()
    functions = {"jax": ours(result.network)}
    compiling = time.perf_counter() - began
    functions |= {"jax, bfloat16": ours(in_bfloat16(result.network))}
    functions |= {"torch, exact plans": theirs(True), "torch, Sinkhorn": theirs(False)}
    seconds = clock.alternating(functions, repeats=sizes.repeats)
    yield {
        "seconds": {name: round(own, 4) for name, own in seconds.items()},
        "compile_seconds": round(compiling, 1),
        "torch_compiled": compiled,
        **ratios(seconds),
        "metrics": summarize(result)["metrics"],
    }


def fusion(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """Transport and fusion of all layers, against the same in PyTorch."""
    from benchmarks.on_device import pytorch

    result = repaired(sizes, folder)
    config: OTBRConfig = result.config.method.otbr
    variables, scores = result.stages["victim"].value["variables"], result.stages["scores"].value
    pruned = result.stages["pruned"].value
    ours = partial(fuse, layers=result.layers, config=config.fusion)
    given = (pruned.variables, variables, scores, pruned.info.pruned)
    states = [{n: t.to(pytorch.device()) for n, t in pytorch.state_of(v).items()} for v in given[:2]]
    changed = {pytorch.name_of(name): jax.device_get(value) for name, value in scores.items()}
    own = {name: pytorch.torch.tensor(value, device=pytorch.device()) for name, value in changed.items()}
    layers = pytorch.convolutions(result.layers)

    def theirs(exact: bool) -> Callable[[], None]:
        run = partial(pytorch.fuse, *states, own, layers, config, exact=exact)
        return lambda: (run(), pytorch.wait())[1]

    functions = {"jax": ready(lambda *arrays: ours(*arrays), *given)}
    functions |= {"torch, exact plans": theirs(True), "torch, Sinkhorn": theirs(False)}
    seconds = clock.alternating(functions, repeats=sizes.repeats)
    plans = result.stages["fused"].value.info.plans
    yield {
        "layers": len(result.layers),
        "neurons": sum(layer.neurons for layer in result.layers),
        "iterations": max(int(plan.iterations) for plan in plans.values()),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        **ratios(seconds),
    }


def grid(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """The grid gamma x lambda with its measurements, against a single setting; and both without measuring."""
    from benchmarks import sweep

    result = repaired(sizes, folder)
    config, settings, test = result.config, sizes.sweep, result.test
    variables, scores = result.stages["victim"].value["variables"], result.stages["scores"].value
    network = dataclasses.replace(result.network, prepare=partial(preprocess, config=config.victim.data))
    graph = trace(network.apply, variables, jnp.zeros((2, *network.image_shape)))
    own = config.method.otbr
    setup, single = set_up(network, graph, layers=own.layers), ((own.gamma,), (own.fusion.lam,))
    axes = {"single": (*single, 0), "grid": (settings.gamma, settings.lam, settings.screening_images)}
    functions = {name: ready(sweep.program(setup, *own, []), variables, scores, test) for name, own in axes.items()}
    for name, own in axes.items():
        functions[f"{name}, unmeasured"] = ready(sweep.unmeasured(setup, *own[:2]), variables, scores)
    seconds = clock.alternating(functions, repeats=sizes.repeats)
    assert test is not None
    yield {
        "settings": len(settings.gamma) * len(settings.lam),
        "test_images": len(test.labels),
        "screening_images": settings.screening_images,
        "seconds": {name: round(own, 4) for name, own in seconds.items()},
        "ratio_to_single": round(seconds["grid"] / seconds["single"], 2),
    }


def default(sizes: Sizes, folder: pathlib.Path) -> Rows:
    """The default repair: on digits as `launch.repair` does without arguments, then on the CIFAR-10 victim."""
    for name, config in defaults(sizes).items():
        place = folder / (victim(sizes).group if name == "cifar10" else "digits")
        result = repair(config, place, results="default", shared=name == "cifar10")
        summary = summarize(result)
        yield {
            "on": name,
            "network": f"{config.victim.model.name}-w{config.victim.model.width or 64}",
            "seconds": round(sum(stage.seconds for stage in result.stages.values()), 1),
            "stage_seconds": {name: round(stage.seconds, 1) for name, stage in result.stages.items()},
            "metrics": summary["metrics"],
            "choice": summary["choice"],
        }


PARTS = {
    "training": training,
    "unlearning": unlearning,
    "repair": repairing,
    "fusion": fusion,
    "grid": grid,
    "default": default,
}
"""What yields rows of results/on_device.jsonl, by name."""
