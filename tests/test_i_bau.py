"""I-BAU: hypergradients in closed form, the search and a whole round in PyTorch, and the whole way to a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_small
import tuning_runs
from torch.nn import functional

from otbr_jax import Batch, InputError, run, set_up
from otbr_jax.defenses import i_bau as method
from otbr_jax.defenses.i_bau import IBAUConfig, hypergradient, inversion_loss, search
from otbr_jax.defenses.tuning import Tuned
from otbr_jax.types import split

TINY = IBAUConfig(rounds=2, batch_size=8, learning_rate=1e-3, iterations=3)


@pytest.fixture(scope="module")
def positive(small):
    """(network, variables whose running variances are above zero, neuron graph)."""
    network, variables, graph = small
    statistics = {
        name: {"mean": bn["mean"], "var": jnp.abs(bn["var"]) + 0.2} for name, bn in variables["batch_stats"].items()
    }
    return network, {"params": variables["params"], "batch_stats": statistics}, graph


@pytest.fixture(scope="module")
def clean():
    keys = jax.random.split(jax.random.key(1))
    return Batch(jax.random.uniform(keys[0], (20, 8, 8, 1)), jax.random.randint(keys[1], (20,), 0, 10))


@pytest.mark.parametrize("seed", range(6))
def test_of_a_quadratic_problem_hypergradients_have_a_closed_form(seed):
    draw = np.random.default_rng(seed)
    size, others = draw.integers(1, 6), draw.integers(1, 5)
    half = draw.normal(size=(size, size))
    curvature = half @ half.T + np.eye(size)
    cross, goal, theta = draw.normal(size=(size, others)), draw.normal(size=size), draw.normal(size=others)
    lowest = np.linalg.solve(curvature, cross @ theta)
    expected = theta + cross.T @ np.linalg.solve(curvature, lowest - goal)

    def inner(t, params):
        return t @ jnp.asarray(curvature) @ t / 2 - t @ jnp.asarray(cross) @ params["theta"]

    def outer(t, params):
        return jnp.sum((t - goal) ** 2) / 2 + jnp.sum(params["theta"] ** 2) / 2, None

    rate = 1 / np.linalg.eigvalsh(curvature).max()
    at = (jnp.asarray(lowest, jnp.float32), {"theta": jnp.asarray(theta, jnp.float32)})
    _, found = hypergradient(outer, inner, *at, iterations=400, rate=rate)
    np.testing.assert_allclose(found["theta"], expected, rtol=2e-3, atol=2e-3)
    # Few terms are the truncated sum; none the direct gradient.
    _, direct = hypergradient(outer, inner, *at, iterations=0, rate=rate)
    np.testing.assert_allclose(direct["theta"], theta, rtol=1e-5)
    v, step = np.zeros(size), np.eye(size) - rate * curvature
    for _ in range(3):
        v = step @ v + (lowest - goal)
    _, few = hypergradient(outer, inner, *at, iterations=3, rate=rate)
    np.testing.assert_allclose(few["theta"], theta + rate * cross.T @ v, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_the_search_is_pytorchs(positive, clean, norm):
    network, variables, _ = positive
    config = IBAUConfig(batch_size=5, norm=norm)
    draws = jnp.arange(20).reshape(4, 5)
    found = jax.jit(
        lambda v: search(network, v, draws, lambda at: Batch(clean.images[at], clean.labels[at]), config=config)
    )(variables)

    arrays, trigger = torch_small.to_torch(variables), torch.zeros(8, 8, 1, requires_grad=True)
    optimizer = torch.optim.SGD([trigger], lr=10)
    for images in torch.tensor(np.asarray(clean.images)).split(5):
        answers = torch_small.logits(arrays, images).argmax(1)
        loss = -functional.cross_entropy(torch_small.logits(arrays, images + trigger), answers)
        optimizer.zero_grad()
        (loss + 0.001 * trigger.pow(2).sum()).backward()
        optimizer.step()
    expected = trigger.detach() * min(1, norm / float(trigger.detach().norm()))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)
    assert float(jnp.linalg.norm(found)) <= norm * 1.0001


def test_hypergradients_of_a_network_are_pytorchs(positive, clean):
    network, variables, _ = positive
    params, state = split(variables)
    batch, trigger = Batch(clean.images[:6], clean.labels[:6]), 0.3 * jax.random.normal(jax.random.key(2), (8, 8, 1))

    def outer(t, p):
        logits = network.apply({"params": p, **state}, batch.images + t)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), batch.labels]), None

    def inner(t, p):
        return inversion_loss(network, t, {"params": p, **state}, batch, penalty=0.001)

    _, found = jax.jit(lambda t, p: hypergradient(outer, inner, t, p, iterations=3, rate=0.1))(trigger, params)

    arrays = torch_small.to_torch(variables)
    images, labels = (torch.tensor(np.asarray(part)) for part in batch)
    at = torch.tensor(np.asarray(trigger), requires_grad=True)
    weights = [arrays[name] for name in arrays if name.startswith("params/")]
    loss = functional.cross_entropy(torch_small.logits(arrays, images + at), labels.long())
    slope, *direct = torch.autograd.grad(loss, [at, *weights])
    lower = -functional.cross_entropy(torch_small.logits(arrays, images + at), labels.long())
    (grad,) = torch.autograd.grad(lower + 0.001 * at.pow(2).sum(), at, create_graph=True)
    moved, v = at - 0.1 * grad, torch.zeros_like(at)
    for _ in range(3):
        v = torch.autograd.grad(moved, at, v, retain_graph=True)[0] + slope
    for weight, one, other in zip(weights, direct, torch.autograd.grad(moved, weights, v), strict=True):
        weight.grad = one + other
    torch_small.compare(found, arrays, rtol=2e-3, atol=1e-5)


def test_rounds_change_weights_and_no_statistics(positive, clean):
    network, variables, graph = positive
    setup, given = set_up(network, graph), {"victim": variables, "clean": clean}
    found, history = run(method.plan(method.IBAUSettings(i_bau=TINY)), setup, given, key=jax.random.key(3))["unlearned"]
    assert history["loss"].shape == history["trigger_norm"].shape == (2,)
    assert np.all(np.asarray(history["trigger_norm"]) > 0)
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], variables["batch_stats"])
    assert not np.array_equal(found["params"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])
    lost = Tuned(found, history | {"loss": jnp.array([1.0, jnp.inf])})
    message = "i_bau.learning_rate: expected a finite loss, found inf in epoch 2 of 2; lower it from 0.001"
    with pytest.raises(InputError, match=message):
        method.check_unlearned(TINY, lost)


def test_too_few_images_are_named(clean):
    with pytest.raises(InputError, match="i_bau.batch_size: expected at most 20, as many as there are clean images, "):
        method.DEFENSE.given(method.IBAUSettings(), clean, 0)


def test_a_run_leaves_a_report(tmp_path):
    _, summary, page = tuning_runs.run("i_bau", tmp_path / "w", i_bau=dataclasses.replace(TINY, batch_size=32))
    assert [*summary["metrics"]] == ["victim", "unlearned"]
    assert len(summary["finetuning"]["trigger_norm"]) == 2
    assert summary["neurons"]["changed"] > 0
    assert "unlearned by hypergradients" in page
