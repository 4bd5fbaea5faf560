"""BCU: what is drawn anew by count and by scale, distillation as PyTorch's, and the whole way to a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tuning_runs
from torch import nn
from torch.nn import functional

from otbr_jax import InputError, run, set_up, trace
from otbr_jax.defenses.bcu import (
    BCUConfig,
    BCUSettings,
    DistillationSettings,
    distillation,
    layer_shares,
    objective,
    reinitialize_weights,
)
from otbr_jax.defenses.bcu import plan as plan_of
from otbr_jax.detectors.trigger_size import ImagesConfig
from otbr_jax.graph.graph import Layer
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.types import Batch, named_leaves, split

SHARES = (0.01, 0.01, 0.03, 0.09, 0.27, 0.1)
TUNING = FinetuningConfig(epochs=2, batch_size=8, alpha=0.0)
TINY = BCUSettings(images=ImagesConfig(made=20, images=16), bcu=BCUConfig(finetuning=TUNING))


def layer(name, *, kind="conv", main_path=True, fed_by=()):
    return Layer(name, kind, (3,), (2,), 4, 4, dict.fromkeys(fed_by, (0, 1, 2, 3)), main_path=main_path)


def test_shares_rise_from_front_to_back():
    """A ResNet-18's layers have the shares that its stages have in the published code."""
    layers, last = [layer("stem")], "stem"
    for stage in range(4):
        if stage:
            layers.append(layer(f"{stage}.shortcut", main_path=False, fed_by=(last,)))
        for index in range(4):
            layers.append(layer(f"{stage}.{index}", fed_by=(last,)))
            last = f"{stage}.{index}"
    layers.append(layer("fc", kind="dense", main_path=False, fed_by=(last,)))
    found = layer_shares(layers, SHARES)
    expected = {"stem": SHARES[0], "fc": SHARES[5]}
    assert found == {each.name: expected.get(each.name) or SHARES[1 + int(each.name[0])] for each in layers}


def test_as_many_weights_are_reinitialised_and_no_others(tiny):
    network, variables = tiny
    graph = trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))
    shares = (0.2, 0.05, 0.5, 0.4)
    student = jax.jit(lambda v: reinitialize_weights(v, graph.layers, shares, key=jax.random.key(0)))(variables)
    wanted = layer_shares(graph.layers, shares)
    assert set(wanted) == set(student.drawn) == {each.name for each in graph.layers}
    assert {*wanted.values()} == {*shares}
    before, after = named_leaves(variables), named_leaves(student.variables)
    for name, leaf in before.items():
        changed = np.asarray(after[name]) != np.asarray(leaf)
        if name not in wanted:
            assert not changed.any()
            continue
        np.testing.assert_array_equal(changed, student.drawn[name])
        spread = (leaf.size * wanted[name] * (1 - wanted[name])) ** 0.5
        assert abs(changed.sum() - leaf.size * wanted[name]) < 4.5 * spread + 1
        if changed.sum() > 100:
            scale = np.std(np.asarray(after[name])[changed]) / np.sqrt(np.mean(np.asarray(leaf) ** 2))
            assert 0.7 < scale < 1.3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_pytorchs(temperature):
    draw = np.random.default_rng(0)
    student, teacher = (draw.normal(size=(6, 10)).astype(np.float32) * 3 for _ in range(2))
    theirs = torch.tensor(student, requires_grad=True)
    target = functional.softmax(torch.tensor(teacher) / temperature, 1)
    loss = nn.KLDivLoss(reduction="batchmean")(functional.log_softmax(theirs / temperature, 1), target)
    loss.backward()
    value, grads = jax.value_and_grad(distillation)(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(grads, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("statistics", ["kept", "moved"])
def test_the_temperature_rises_with_the_epoch(small, statistics):
    network, variables, graph = small
    setup, (params, state) = set_up(network, graph, layers="convolutions"), split(variables)
    images = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
    other = jax.tree.map(lambda leaf: 1.2 * leaf, params)

    @jax.jit
    def evaluated(epoch):
        own = objective(setup, params, DistillationSettings(3.0, 100, statistics), victim=variables, epoch=epoch)
        return own(other, state, Batch(images, jnp.zeros(6, jnp.int32)))[0]

    teacher, student = network.apply(variables, images), {"params": other, **state}
    ours = network.apply(student, images) if statistics == "kept" else network.train(student, images)[0]
    for epoch, temperature in ((0, 1.03), (99, 4.0)):
        np.testing.assert_allclose(evaluated(epoch).loss, distillation(ours, teacher, temperature), rtol=1e-3)


def test_running_statistics_are_kept_by_default(small):
    network, variables, graph = small
    plan, setup = plan_of(TINY), set_up(network, graph)
    found, history = run(plan, setup, {"victim": variables}, key=jax.random.key(0))["distilled"]
    assert np.isfinite(history["loss"]).all()
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], variables["batch_stats"])


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="bcu.shares: expected at least 3, of the first layer, hidden layers and the"):
        BCUConfig(shares=(0.1, 0.2))
    with pytest.raises(InputError, match="bcu.finetuning.batch_size: expected at most 16, images.images, found 17"):
        dataclasses.replace(TINY, bcu=BCUConfig(finetuning=dataclasses.replace(TUNING, batch_size=17)))


def test_a_run_leaves_a_report(tmp_path):
    _, summary, page = tuning_runs.run("bcu", tmp_path / "w", images=TINY.images, bcu=TINY.bcu)
    assert [*summary["metrics"]] == ["victim", "redrawn", "distilled"]
    assert len(summary["finetuning"]["loss"]) == 2
    assert "weights reinitialised, distilled on 16 procedural images, 2 epochs" in page
