"""SAU: one step of the search, the shared risk and a step of repair as in PyTorch, and the whole way to a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_small
import tuning_runs
from conftest import disturbed
from torch.nn import functional

from otbr_jax import Batch, InputError, run, set_up
from otbr_jax.defenses import sau as method
from otbr_jax.defenses.sau import SAUConfig, objective, perturb
from otbr_jax.types import split

TINY = SAUConfig(rounds=2, batch_size=8, learning_rate=1e-3, steps=2)


@pytest.fixture(scope="module")
def two(small):
    """(network, repaired variables, suspicious variables, neuron graph); both answer images in several ways."""
    network, variables, graph = small

    @jax.jit
    def made(variables):
        ours = disturbed(variables, jax.random.key(3))
        theirs = jax.tree.map(lambda a, b: a + (b - a) / 4, ours, disturbed(ours, jax.random.key(4)))
        return [
            {
                "params": jax.tree.map(lambda p: 2 * p, each["params"]),
                "batch_stats": {
                    name: {"mean": bn["mean"], "var": 0.2 + jnp.abs(bn["var"])}
                    for name, bn in each["batch_stats"].items()
                },
            }
            for each in (ours, theirs)
        ]

    return network, *made(variables), graph


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(1))
    return Batch(jax.random.uniform(keys[0], (24, 8, 8, 1)), jax.random.randint(keys[1], (24,), 0, 10))


def torch_attack(ours, theirs, images, labels, config):
    """The perturbation after all steps, by PyTorch's gradients."""
    change = torch.full_like(images, config.bound)
    before = [torch_small.logits(arrays, images).argmax(1) for arrays in (ours, theirs)]
    counts = []
    for _ in range(config.steps):
        change = change.detach().requires_grad_(True)
        logits = [torch_small.logits(arrays, images + change) for arrays in (ours, theirs)]
        answers = [own.argmax(1) for own in logits]
        fooled = [now != then for now, then in zip(answers, before, strict=True)]
        shared = fooled[0] & fooled[1] & (answers[0] == answers[1])
        counts.append((int(fooled[0].sum()), int(fooled[1].sum()), int(shared.sum())))
        adversarial = sum(
            functional.cross_entropy(own[~done], labels[~done], reduction="sum")
            for own, done in zip(logits, fooled, strict=True)
        )
        p, q = (own.softmax(1).clamp(min=1e-8) for own in logits)
        middle = ((p + q) / 2).log()
        divergence = functional.kl_div(middle, p, reduction="none") + functional.kl_div(middle, q, reduction="none")
        loss = -config.beta_1 * adversarial / 2 + config.beta_2 * divergence[~shared].sum() / 2
        (slope,) = torch.autograd.grad(loss / len(images), change)
        change = (change - config.step * slope.sign()).clamp(-config.bound, config.bound)
    return change.detach(), counts


@pytest.mark.parametrize(("steps", "step"), [(1, 0.05), (3, 0.05)])
def test_the_search_is_pytorchs_and_bounded(two, batch, steps, step):
    network, ours, theirs, _ = two
    config = SAUConfig(steps=steps, step=step)
    found = jax.jit(lambda a, b: perturb(network, a, b, batch, config=config))(ours, theirs) - batch.images
    images, labels = (torch.tensor(np.asarray(part)) for part in batch)
    expected, counts = torch_attack(*map(torch_small.to_torch, (ours, theirs)), images, labels.long(), config)
    assert 0 < counts[0][0] < 24
    assert 0 < counts[0][1] < 24
    assert counts[0][2] > 0
    assert float(jnp.max(jnp.abs(found))) <= config.bound + 1e-6
    assert float(jnp.min(found)) < config.bound - step / 2  # it moved
    # Of a gradient that is nearly zero rounding decides the sign.
    assert np.mean(np.abs(np.asarray(found) - expected.numpy()) < 1e-5) > 0.995


def test_a_step_of_repair_is_pytorchs(two, batch):
    network, ours, theirs, graph = two
    config = SAUConfig(steps=1, step=0.1, lambda_2=0.3)
    params, state = split(ours)
    setup = set_up(network, graph, layers="convolutions")
    evaluated, grads = jax.jit(lambda p: objective(setup, p, config, victim=theirs)(p, state, batch))(params)

    perturbed = jax.jit(lambda a, b: perturb(network, a, b, batch, config=config))(ours, theirs)
    arrays, suspicious = map(torch_small.to_torch, (ours, theirs))
    images, labels = (torch.tensor(np.asarray(part)) for part in batch)
    labels, moved = labels.long(), torch.tensor(np.asarray(perturbed))
    logits, plain = torch_small.logits(arrays, moved), torch_small.logits(suspicious, images).argmax(1)
    wrong = torch_small.logits(suspicious, moved).argmax(1)
    misled = (wrong != labels) & (wrong != plain)
    assert 0 < int(misled.sum()) < 24
    p = logits.softmax(1).gather(1, wrong[:, None])[:, 0]
    risk = -torch.log(1 - p)[misled].sum() / 24
    clean = functional.cross_entropy(torch_small.logits(arrays, images), labels)
    loss = clean + 0.3 * functional.cross_entropy(logits, labels) + risk
    loss.backward()
    np.testing.assert_allclose(evaluated.loss, loss.item(), rtol=1e-4)
    torch_small.compare(grads, arrays, rtol=5e-3, atol=1e-4)


def test_no_statistics_move(two, batch):
    network, ours, _, graph = two
    setup, given = set_up(network, graph), {"victim": ours, "clean": batch}
    found, history = run(method.plan(method.SAUSettings(sau=TINY)), setup, given, key=jax.random.key(3))["unlearned"]
    assert history["loss"].shape == (2,)
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], ours["batch_stats"])
    assert not np.array_equal(found["params"]["conv1"]["kernel"], ours["params"]["conv1"]["kernel"])


def test_too_few_images_are_named(batch):
    with pytest.raises(InputError, match="sau.batch_size: expected at most 24, as many as there are clean images, "):
        method.DEFENSE.given(method.SAUSettings(), batch, 0)


def test_a_run_leaves_a_report(tmp_path):
    _, summary, page = tuning_runs.run("sau", tmp_path / "w", sau=dataclasses.replace(TINY, batch_size=32))
    assert [*summary["metrics"]] == ["victim", "unlearned"]
    assert len(summary["finetuning"]["loss"]) == 2
    assert summary["neurons"]["changed"] > 0
    assert "shared adversarial examples unlearned" in page
