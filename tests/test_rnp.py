"""RNP: mask updates as PyTorch computes them, what stops it, and the whole way to a report."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tuning_runs
from test_anp import batches, found_gates, in_torch
from torch.nn import functional

from otbr_jax import InputError
from otbr_jax.defenses import gating
from otbr_jax.defenses import rnp as method
from otbr_jax.defenses.gating import ThresholdConfig, ThresholdSweepConfig
from otbr_jax.defenses.otbr import Unlearned
from otbr_jax.defenses.rnp import RecoveringConfig, RNPConfig, RNPSettings
from otbr_jax.defenses.unlearning import check_clean_unlearning
from otbr_jax.steps import gates
from otbr_jax.steps.unlearn import CleanUnlearningConfig, CleanUnlearningInfo
from otbr_jax.types import Batch, named_leaves

UNLEARNING = CleanUnlearningConfig(max_epochs=6, batch_size=32, learning_rate=1e-3)


def test_masks_move_as_in_pytorch(small):
    network, variables, graph = small
    leaves = named_leaves(variables)
    positive = {name: jnp.abs(leaf) + 0.5 for name, leaf in leaves.items() if name.endswith("/var")}
    variables = gates.replace_leaves(variables, positive)
    own, config = found_gates(network, variables, graph), RecoveringConfig(learning_rate=2.0)
    step = jax.jit(method.step_fn(network, variables, own, config=config))
    masks = gates.open_gates(variables, own)
    carry = gating.Learning(masks, gating.sgd(config).init(masks))
    learned = {name: torch.ones(mask.shape, requires_grad=bool(own[name])) for name, mask in masks.items()}
    optimizer = torch.optim.SGD([learned[name] for name in learned if own[name]], lr=2.0, momentum=0.9)
    logits, (images, labels) = in_torch(variables), batches(4)
    for x, y in zip(images, labels, strict=True):
        carry, found = step(carry, Batch(x, y))
        loss = functional.cross_entropy(logits(learned, x), torch.tensor(np.asarray(y)).long())
        optimizer.zero_grad()
        (0.2 * loss).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in learned.values():
                mask.clamp_(0, 1)
        np.testing.assert_allclose(found.loss, loss.item(), rtol=1e-5)
        for name, mask in carry.masks.items():
            np.testing.assert_allclose(mask, learned[name].detach(), atol=1e-5)
    values = np.concatenate([np.asarray(mask).ravel() for mask in carry.masks.values()])
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.min() < 0.95


def test_what_cannot_be_used_is_one_line(caplog):
    images = Batch(np.zeros((20, 8, 8, 1), np.uint8), np.zeros(20, np.int32))
    with pytest.raises(InputError, match=r"rnp.recovering.batch_size: expected at most 20, as many as there are clean"):
        method.DEFENSE.given(
            RNPSettings(rnp=RNPConfig(unlearning=dataclasses.replace(UNLEARNING, batch_size=4))), images, 0
        )
    info = CleanUnlearningInfo(np.array([np.nan]), np.array([0.1]), np.int32(1), np.bool_(False))
    with pytest.raises(InputError, match=r"rnp.unlearning.learning_rate: .* found nan in epoch 1; lower it from 0.001"):
        check_clean_unlearning(UNLEARNING, Unlearned({}, info), name="rnp.unlearning")
    with caplog.at_level(logging.WARNING):
        check_clean_unlearning(UNLEARNING, Unlearned({}, info._replace(loss=np.array([1.0]))), name="rnp.unlearning")
    assert "did NOT reach chance: accuracy 10.0 % after 1 epochs" in caplog.text


def test_a_run_leaves_a_report(tmp_path):
    recovering = RecoveringConfig(epochs=5, batch_size=32, learning_rate=0.02)
    own = {
        "rnp": RNPConfig(unlearning=UNLEARNING, recovering=recovering),
        "selection": ThresholdConfig(thresholds=(0.2, 0.8)),
        "sweep": ThresholdSweepConfig(thresholds=(0.2, 0.9)),
    }
    result, summary, page = tuning_runs.run("rnp", tmp_path / "w", **own)
    assert [*summary["metrics"]] == ["victim", "unlearned", "pruned"]
    assert [row["threshold"] for row in summary["sweep"]] == [0.2, 0.9]
    assert summary["choice"]["chosen_by"] == "clean images"
    assert summary["unlearning"]["epochs"] <= 6
    assert "channels of normalisations pruned" in page
    # The unlearned network is what masks are learned on; the suspicious one is pruned, and nothing of it is moved.
    victim, pruned = named_leaves(result.stages["victim"].value["variables"]), named_leaves(result.variables)
    scales = {name for name, gate in result.stages["gates"].value.items() if gate}
    for name, leaf in pruned.items():
        assert np.all((leaf == victim[name]) | ((leaf == 0) & (name in scales)))
