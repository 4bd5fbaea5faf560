"""ANP: mask updates as PyTorch computes them, masks that stay masks, thresholds, and the whole way to a report."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tuning_runs
from torch.nn import functional

from otbr_jax import InputError, set_up, trace
from otbr_jax import plan as plans
from otbr_jax.defenses import anp as method
from otbr_jax.defenses import gating
from otbr_jax.defenses.anp import AdversarialConfig, ANPConfig, ANPSettings
from otbr_jax.defenses.gating import NOTHING, Masks, ThresholdConfig, ThresholdSweepConfig
from otbr_jax.models.layers import BatchNorm
from otbr_jax.models.registry import network_from_flax
from otbr_jax.steps import gates
from otbr_jax.steps.select import strongest_harmless
from otbr_jax.types import Batch, Network, named_leaves

CONFIG = AdversarialConfig(steps=3, batch_size=16)


def batches(count, key=0):
    """`(images [count, 16, 8, 8, 1], labels)`."""
    first, second = jax.random.split(jax.random.key(key))
    return jax.random.uniform(first, (count, 16, 8, 8, 1)), jax.random.randint(second, (count, 16), 0, 10)


def in_torch(variables):
    """`conftest.Small` in PyTorch: `(factors {name: tensor}, images [n, h, w, c]) -> logits`, in training mode."""
    own = {name: torch.tensor(np.asarray(leaf)) for name, leaf in named_leaves(variables).items()}

    def logits(factors, images):
        x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
        for index in (1, 2):
            kernel = own[f"params/conv{index}/kernel"].permute(3, 2, 0, 1)
            x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)  # 'SAME'
            scale, bias = (f"params/bn{index}/{name}" for name in ("scale", "bias"))
            weights = own[scale] * factors[scale], own[bias] * factors[bias]
            x = functional.relu(functional.batch_norm(x, None, None, *weights, training=True))
        return x.mean((2, 3)) @ own["params/linear/kernel"] + own["params/linear/bias"]

    return logits


torch.set_num_threads(1)


def found_gates(network, variables, graph):
    return jax.jit(lambda v: gates.gates_of(network, v, graph.layers, key=jax.random.key(0)))(variables)


@pytest.fixture(scope="module")
def sound(small):
    """(network, variables with variances above 0, graph, gates), see `conftest.Small`."""
    network, variables, graph = small
    leaves = named_leaves(variables)
    positive = {name: jnp.abs(leaf) + 0.5 for name, leaf in leaves.items() if name.endswith("/var")}
    variables = gates.replace_leaves(variables, positive)
    return network, variables, graph, found_gates(network, variables, graph)


@pytest.mark.parametrize("clip", [False, True])
def test_masks_move_as_in_pytorch(sound, clip):
    network, variables, _, own = sound
    assert sorted(name for name, gate in own.items() if gate) == ["params/bn1/scale", "params/bn2/scale"]
    assert {"params/bn1/bias", "params/bn2/bias"} <= {*own}
    config = dataclasses.replace(CONFIG, clip=clip)
    step = jax.jit(method.step_fn(network, variables, own, config=config))
    masks = gates.open_gates(variables, own)
    carry = gating.Learning(masks, gating.sgd(config).init(masks))
    logits = in_torch(variables)
    learned = {name: torch.ones(mask.shape, requires_grad=bool(own[name])) for name, mask in masks.items()}
    optimizer = torch.optim.SGD([learned[name] for name in learned if own[name]], lr=0.2, momentum=0.9)
    images, labels = batches(config.steps)
    for index, (x, y) in enumerate(zip(images, labels, strict=True)):
        noise = method.initial_noise(masks, config.eps, key=jax.random.key(index))
        assert all(np.max(np.abs(value)) <= config.eps for value in noise.values())
        carry, found = step(carry, noise, Batch(x, y))
        target = torch.tensor(np.asarray(y)).long()
        xi = {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in noise.items()}
        up = functional.cross_entropy(logits({n: learned[n].detach() + xi[n] for n in xi}, x), target)
        grads = torch.autograd.grad(up, list(xi.values()))
        moved = {n: v.detach() + 0.4 * g.sign() for (n, v), g in zip(xi.items(), grads, strict=True)}
        xi = {n: v.clamp(-0.4, 0.4) if clip else v for n, v in moved.items()}
        natural = functional.cross_entropy(logits(learned, x), target)
        robust = functional.cross_entropy(logits({n: learned[n] + xi[n] for n in xi}, x), target)
        optimizer.zero_grad()
        (0.2 * natural + 0.8 * robust).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in learned.values():
                mask.clamp_(0, 1)
        np.testing.assert_allclose(found.loss, natural.item(), rtol=1e-5)
        for name, mask in carry.masks.items():
            np.testing.assert_allclose(mask, learned[name].detach(), atol=1e-5)
    assert min(float(jnp.min(mask)) for mask in carry.masks.values()) < 1


class Backdoored(nn.Module):
    """Four channels of the mean over images count; the fifth sees the corner alone, and shouts for class 0."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(5, (1, 1), use_bias=False, name="conv")(x)
        return nn.Dense(4, name="linear")(nn.relu(BatchNorm(name="bn")(x, train=train)).mean((1, 2)))


def backdoored():
    """(network, variables, graph, clean batch, the same with a trigger)."""
    network = network_from_flax(Backdoored(), image_shape=(4, 4, 5), num_classes=4)
    variables = Backdoored().init(jax.random.key(0), jnp.zeros((1, 4, 4, 5)), train=True)
    graph = trace(network.apply, variables, jnp.zeros((1, 4, 4, 5)))
    kernel, head = jnp.eye(5).reshape(1, 1, 5, 5), np.zeros((5, 4), np.float32)
    head[range(4), range(4)], head[4, 0] = 8.0, 40.0
    variables = gates.replace_leaves(
        variables,
        {
            "params/conv/kernel": kernel,
            "params/linear/kernel": jnp.array(head),
            # Behind its normalisation the fifth channel is silent (bias -4) unless it is far above its mean.
            "params/bn/scale": jnp.array([1.0, 1, 1, 1, 2]),
            "params/bn/bias": jnp.array([0.1, 0.1, 0.1, 0.1, -4.0]),
            "batch_stats/bn/var": jnp.full(5, 0.2),
            "batch_stats/bn/mean": jnp.full(5, 0.3),
        },
    )
    labels = jnp.arange(64) % 4
    images = 0.2 * jax.random.uniform(jax.random.key(1), (64, 4, 4, 5)) + 0.8 * jax.nn.one_hot(labels, 5)[:, None, None]
    # The fifth channel varies a little, so that nothing but the trigger sets it off.
    return network, variables, graph, Batch(images, labels), Batch(images.at[..., 4].set(6.0), labels)


def test_the_neuron_of_a_backdoor_made_by_hand_is_pruned():
    network, variables, graph, clean, triggered = backdoored()
    assert np.all(jnp.argmax(network.apply(variables, clean.images), 1) == clean.labels)
    assert np.all(jnp.argmax(network.apply(variables, triggered.images), 1) == 0)
    config = ANPSettings(
        anp=ANPConfig(learning=dataclasses.replace(CONFIG, steps=300, batch_size=32)),
        selection=ThresholdConfig(thresholds=gating.THRESHOLDS),
    )
    setup = set_up(network, graph, layers="convolutions")
    found = plans.run(method.plan(config), setup, {"victim": variables, "clean": clean}, key=jax.random.key(0))
    assert found["pruned"].pruned["params/conv/kernel"].tolist() == [False, False, False, False, True]
    repaired = found["pruned"].variables
    assert np.all(jnp.argmax(network.apply(repaired, triggered.images), 1) == clean.labels)
    masks = [np.asarray(mask) for mask in found["masks"].masks.values()]
    assert min(mask.min() for mask in masks) >= 0
    assert max(mask.max() for mask in masks) <= 1
    assert method.outcome(config, found).done == "1 of 5 channels of normalisations pruned"


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_threshold_is_harmless_and_the_next_is_not(seed):
    draw = np.random.default_rng(seed)
    accuracy, tolerance = np.float32(draw.choice([0.8, 0.85, 0.9, 0.95], 12)), float(draw.choice([0.0, 0.06, 0.5]))
    accuracy[0] = reference = np.float32(0.9)  # the first one takes nothing
    chosen = int(strongest_harmless(jnp.array(accuracy), reference=jnp.array(reference), tolerance=tolerance))
    assert np.all(accuracy[: chosen + 1] >= reference - np.float32(tolerance))
    assert chosen == 11 or accuracy[chosen + 1] < reference - np.float32(tolerance)


def test_nothing_is_pruned_where_every_threshold_costs_too_much():
    network, variables, graph, clean, _ = backdoored()
    own = found_gates(network, variables, graph)
    masks = {name: jnp.where(own[name], 0.0, mask) for name, mask in gates.open_gates(variables, own).items()}
    given = {"victim": variables, "gates": own, "masks": Masks(masks, jnp.zeros(1), jnp.zeros(1)), "clean": clean}
    selection, setup = ThresholdConfig(thresholds=(0.5, 0.0)), set_up(network, graph, layers="convolutions")
    found = plans.run(gating.pruning_steps(0.2, selection), setup, given, key=jax.random.key(0))
    assert np.allclose(found["selected"].accuracy, [1, 0.25, 0.25])
    jax.tree.map(np.testing.assert_array_equal, found["pruned"].variables, variables)
    told = gating.outcome(0.2, selection, given | found)
    assert told.choice == {"threshold": NOTHING, "chosen_by": "clean images"}
    assert told.neurons == {"scored": 5, "pruned": 0}
    (fixed,) = gating.pruning_steps(0.2, ThresholdConfig())
    shut = plans.run((fixed,), setup, given, key=jax.random.key(0))["pruned"]
    assert np.all(shut.pruned["params/conv/kernel"])


def test_errors_are_one_line(small):
    _, _, graph = small
    setup = set_up(Network(lambda v, x: x, (8, 8, 1), 10), graph)
    bare = [layer._replace(vectors=()) for layer in graph.layers]
    with pytest.raises(InputError, match="normalisation with running statistics, which anp gates, found none"):
        method.DEFENSE.check(dataclasses.replace(setup, graph=graph._replace(layers=tuple(bare))), None)
    with pytest.raises(InputError, match="whose scale and variance balance each other, which anp gates, found none"):
        gating.gates_step("anp").check(None, {"params/a": np.bool_(False)})
    lost = Masks({}, np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(InputError, match=r"anp.learning.learning_rate: .* found nan in round 2 of 2; lower it"):
        gating.check_masks(CONFIG, lost, name="anp.learning")


def test_a_run_leaves_a_report(tmp_path):
    own = {
        "anp": ANPConfig(learning=CONFIG),
        "selection": ThresholdConfig(thresholds=(0.5, 0.2)),
        "sweep": ThresholdSweepConfig(thresholds=(0.2, 0.9)),
    }
    _, summary, page = tuning_runs.run("anp", tmp_path / "w", **own)
    assert [*summary["metrics"]] == ["victim", "pruned"]
    assert [row["threshold"] for row in summary["sweep"]] == [0.2, 0.9]
    assert [row["threshold"] for row in summary["tried"]] == [NOTHING, 0.2, 0.5]
    assert summary["choice"]["chosen_by"] == "clean images"
    assert "threshold" in summary["oracle"]
    assert "channels of normalisations pruned" in page
