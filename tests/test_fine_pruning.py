"""Fine-pruning: activations as hooks in PyTorch see them, what is pruned and stays so, and a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tuning_networks
import tuning_runs

from otbr_jax import InputError, set_up, trace
from otbr_jax import plan as plans
from otbr_jax.defenses import fine_pruning
from otbr_jax.defenses.fine_pruning import FinePruningSettings, PruningConfig, SweepConfig, classifier_of, counts_of
from otbr_jax.types import named_leaves

KERNEL = "params/linear/kernel"


@pytest.fixture(scope="module")
def pair():
    """(setup, what a plan is given, the network in PyTorch, images and labels in PyTorch)."""
    network, variables, model = tuning_networks.pair()
    clean, theirs = tuning_networks.few_images()
    setup = set_up(network, trace(network.apply, variables, clean.images[:1]))
    return setup, {"victim": variables, "clean": clean}, model.eval(), theirs


def settings(**pruning):
    tuning = dataclasses.replace(tuning_runs.BRIEF, batch_size=16, learning_rate=0.1)
    return FinePruningSettings(PruningConfig(**pruning), tuning)


def test_the_least_active_channels_are_pruned_and_stay_so(pair):
    setup, given, model, (images, _) = pair
    found = plans.run(fine_pruning.plan(settings(step=0.0, share=0.5)), setup, given, key=jax.random.key(0))
    seen = []
    hook = model.linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    expected = seen[0].mean(0).numpy()
    np.testing.assert_allclose(found["activations"][KERNEL], expected, atol=1e-5)
    lost = np.asarray(found["pruned"].pruned[KERNEL])
    assert lost.sum() == 2
    assert expected[lost].max() < expected[~lost].min()
    before, pruned, after = (
        np.asarray(named_leaves(variables)[KERNEL])
        for variables in (given["victim"], found["pruned"].variables, found["finetuned"].variables)
    )
    np.testing.assert_array_equal(pruned, np.where(lost[:, None], 0, before))
    assert not after[lost].any()
    assert np.all(after[~lost] != pruned[~lost])
    # As if PyTorch's channel were silent.
    with torch.no_grad():
        silent = model.linear(seen[0] * torch.tensor(~lost))
    ours = setup.network.answer(found["pruned"].variables, given["clean"].images)
    np.testing.assert_allclose(ours, silent, atol=1e-4)


@pytest.mark.parametrize("tolerance", [0.0, 0.2, 1.0])
def test_as_many_are_pruned_as_clean_images_do_not_miss(pair, tolerance):
    setup, given, model, (images, _) = pair
    with torch.no_grad():
        labels = model(images).argmax(1)  # the network is right about all of them
        features = model.features(images)[1]
    clean = given["clean"]._replace(labels=jnp.asarray(labels.numpy()))
    plan = fine_pruning.plan(settings(step=0.25, tolerance=tolerance))[:3]
    found = plans.run(plan, setup, given | {"clean": clean}, key=jax.random.key(0))
    order, right = features.mean(0).argsort(), []
    for count in range(4):
        kept = torch.ones(4)
        kept[order[:count]] = 0
        with torch.no_grad():
            right.append((model.linear(features * kept).argmax(1) == labels).float().mean().item())
    np.testing.assert_allclose(found["selected"].accuracy, right, atol=1e-6)
    chosen = next((count for count in range(4) if right[count] < 1 - tolerance), 4) - 1
    assert int(found["pruned"].pruned[KERNEL].sum()) == chosen == int(found["selected"].chosen)


def test_numbers_of_channels(pair):
    setup, *_ = pair
    assert classifier_of(setup).name == KERNEL
    assert [counts_of(setup, step) for step in (0.01, 0.25, 0.3, 0.9)] == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 2), (0,)]
    graph = setup.graph._replace(layers=setup.graph.layers[:-1])
    with pytest.raises(InputError, match=r"^defense: expected a network whose last layer gives its 10 classes.*, found "
                       "params/conv2/kernel, conv with 4 neurons; defences"):  # fmt: skip
        fine_pruning.DEFENSE.check(dataclasses.replace(setup, graph=graph), settings())


def test_a_run_leaves_a_report(tmp_path):
    own = {"finetuning": tuning_runs.BRIEF, "pruning": PruningConfig(step=0.1, tolerance=0.1)}
    result, summary, page = tuning_runs.run("fine_pruning", tmp_path / "w", sweep=SweepConfig(share=(0.0, 0.5)), **own)
    assert [*summary["metrics"]] == ["victim", "pruned", "finetuned"]
    assert [row["share"] for row in summary["sweep"]] == [0.0, 0.5]
    assert summary["sweep"][0]["pruned"] == summary["metrics"]["victim"]
    assert summary["oracle"]["share"] in (0.0, 0.5)
    pruning = summary["pruning"]
    assert pruning["clean_accuracy_pruned"] >= pruning["clean_accuracy"] - 0.1
    assert summary["choice"] == {
        "share": round(pruning["pruned"] / pruning["channels"], 6),
        "chosen_by": "clean images",
    }
    lost = np.asarray(result.stages["pruned"].value.pruned[pruning["classifier"]])
    assert lost.sum() == pruning["pruned"] > 0
    assert not np.asarray(named_leaves(result.variables)[pruning["classifier"]])[lost].any()
    assert f"{lost.sum()} of {lost.size} channels before the classifier pruned, fine-tuned, 2 epochs" in page
    tuning_runs.assert_bad_input_is_one_line(
        "fine_pruning", tmp_path / "w", group="finetuning", own=lambda tuning: {"finetuning": tuning}
    )


def test_the_defaults():
    config = FinePruningSettings()
    assert fine_pruning.grid(config) is None
    assert (config.pruning.step, config.pruning.tolerance) == (0.01, 0.02)
