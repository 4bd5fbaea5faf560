"""Fine-tuning: the same weights as a loop in PyTorch, the same bits in memory and on disk, and a report."""

import dataclasses

import jax
import pytest
import torch
import tuning_networks
import tuning_runs

from otbr_jax import InputError, set_up, trace
from otbr_jax import plan as plans
from otbr_jax.defenses import ft
from otbr_jax.defenses.ft import PUBLISHED, FTSettings


def test_three_steps_are_those_of_a_loop_in_pytorch():
    network, variables, model = tuning_networks.pair()
    clean, (images, labels) = tuning_networks.few_images()
    tuning = dataclasses.replace(PUBLISHED, epochs=3, batch_size=len(labels), learning_rate=0.1)
    setup = set_up(network, trace(network.apply, variables, clean.images[:1]))
    given = {"victim": variables, "clean": clean}
    found = plans.run(ft.plan(FTSettings(tuning)), setup, given, key=jax.random.key(0))["finetuned"]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    model.train()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tuning_networks.assert_same(found.variables, model)
    assert max(abs(found.history["loss"] - torch.tensor(losses).numpy())) < 1e-4
    # And a step far too long is named.
    fast = dataclasses.replace(tuning, learning_rate=1e30)
    with pytest.raises(InputError, match=r"^finetuning.learning_rate: expected a finite loss, .* from 1e\+30$"):
        plans.run(ft.plan(FTSettings(fast)), setup, given, key=jax.random.key(0))


def test_a_run_leaves_a_report_and_is_the_same_in_memory(tmp_path, usual_compiler):
    result, summary, page = tuning_runs.run("ft", tmp_path / "w", finetuning=tuning_runs.BRIEF)
    assert [*summary["metrics"]] == ["victim", "finetuned"]
    assert summary["choice"] == {"chosen_by": "config"}
    assert len(summary["finetuning"]["loss"]) == 2
    assert min(tuning_runs.moved_params(result)) > 0
    assert "fine-tuned, 2 epochs" in page
    tuning_runs.assert_memory_equals_disk(result)
    tuning_runs.assert_bad_input_is_one_line(
        "ft", tmp_path / "w", group="finetuning", own=lambda tuning: {"finetuning": tuning}
    )


def test_the_defaults_are_the_published_ones():
    assert FTSettings().finetuning == PUBLISHED
    assert (PUBLISHED.epochs, PUBLISHED.batch_size, PUBLISHED.learning_rate, PUBLISHED.momentum) == (
        100,
        256,
        0.01,
        0.9,
    )
    assert (PUBLISHED.weight_decay, PUBLISHED.alpha, PUBLISHED.schedule) == (5e-4, 0, "cosine")
