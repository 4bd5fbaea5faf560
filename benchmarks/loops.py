"""Training steps in a loop on the device, with and without `convolutions.channels_last`.

    python -m benchmarks.loops

Prints, and appends to results/loops.jsonl, the time of one training step of a small PreAct-ResNet (batch 64,
16 x 16): called from the host, inside `lax.scan` as JAX differentiates it, and inside `lax.scan` in channels-last
layout. The ratios are what carries over to other machines. On CPUs the plain loop is an order of magnitude slower.
"""

import json
import time

import jax
import jax.numpy as jnp
import optax

from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.types import split

STEPS = 10


def main() -> None:
    origin = provenance()
    network, init = registry.build(ModelConfig(name="preact_resnet18", width=16, image_shape=(16, 16, 1)))
    start = split(init(jax.random.key(0)))
    images = jax.random.uniform(jax.random.key(1), (64, 16, 16, 1))
    labels = jnp.zeros(64, jnp.int32)

    def loss(params, state):
        logits, state = network.train({"params": params, **state}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), state

    def step(carry, differentiate):
        params, state = carry
        (_, state), grads = differentiate(jax.value_and_grad(loss, has_aux=True))(params, state)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), state

    def scanned(differentiate):
        return jax.jit(lambda carry: jax.lax.scan(lambda c, _: (step(c, differentiate), None), carry, length=STEPS)[0])

    single = jax.jit(lambda carry: step(carry, lambda f: f))

    def from_the_host(carry):
        for _ in range(STEPS):
            carry = single(carry)
        return carry

    programs = {"host loop": from_the_host, "scan": scanned(lambda f: f), "scan, channels last": scanned(channels_last)}
    seconds = {}
    for name, program in programs.items():
        jax.block_until_ready(program(start))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(program(start))
            times.append((time.perf_counter() - began) / STEPS)
        seconds[name] = sorted(times)[2]
        print(f"{name:<22}{1000 * seconds[name]:9.2f} ms a step")
    row = {
        **origin,
        "milliseconds_per_step": {name: round(1000 * value, 2) for name, value in seconds.items()},
    }
    with open(ROOT / "results" / "loops.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{'scan / channels last':<22}{seconds['scan'] / seconds['scan, channels last']:9.2f}")
    print(f"{'host / channels last':<22}{seconds['host loop'] / seconds['scan, channels last']:9.2f}")


if __name__ == "__main__":
    main()
