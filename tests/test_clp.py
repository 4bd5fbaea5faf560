"""CLP: scores by hand, scales and variances found by what they do, and the whole way to a report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tuning_runs
from test_anp import backdoored

from otbr_jax import plan as plans
from otbr_jax import set_up
from otbr_jax.defenses import clp as method
from otbr_jax.defenses.clp import (
    AgreementConfig,
    CLPConfig,
    CLPSettings,
    SweepConfig,
    clp,
    largest_singular_values,
    normalisation_gains,
)
from otbr_jax.detectors.trigger_size import ImagesConfig
from otbr_jax.settings import change
from otbr_jax.types import named_leaves, replace_leaves


@pytest.fixture(scope="module")
def amplifying(moved):
    """(network, graph, variables in which neuron 2 of the second convolution is far stronger than the others)."""
    network, _, variables, graph = moved
    leaves = named_leaves(variables)
    positive = {name: jnp.abs(leaf) + 0.5 for name, leaf in leaves.items() if name.endswith("/var")}
    layer = graph.main_convolutions[1]
    kernel = leaves[layer.name].at[..., 2].multiply(50.0)
    return network, graph, replace_leaves(variables, positive | {layer.name: kernel})


def test_the_score_is_the_singular_value_times_what_the_normalisation_multiplies_with(amplifying):
    network, graph, variables = amplifying
    setup, leaves = set_up(network, graph, layers="convolutions"), named_leaves(variables)
    gains = jax.jit(lambda v: normalisation_gains(setup, v, key=jax.random.key(0)))(variables)
    layer = setup.layers[1]
    names = [vector.name for vector in layer.vectors]
    scale, variance = (next(name for name in names if name.endswith(end)) for end in ("/scale", "/var"))
    by_hand = np.abs(leaves[scale]) / np.sqrt(leaves[variance])
    np.testing.assert_allclose(gains[layer.name], by_hand, rtol=1e-5)
    found = largest_singular_values(leaves[layer.name], layer)
    for neuron in range(layer.neurons):
        matrix = np.asarray(leaves[layer.name])[..., neuron].reshape(9, -1).T  # inputs, positions
        np.testing.assert_allclose(found[neuron], np.linalg.svd(matrix)[1][0], rtol=1e-5)


def test_only_channels_far_above_their_layer_are_pruned(amplifying):
    network, graph, variables = amplifying
    repaired, found = clp(network, variables, graph, key=jax.random.key(0), config=CLPConfig(u=1.4))
    layer = graph.main_convolutions[1]
    assert found.pruned[layer.name].tolist() == [False, False, True, False]
    assert not np.any(named_leaves(repaired)[layer.name][..., 2])
    same, nothing = clp(network, variables, graph, key=jax.random.key(0), config=CLPConfig(u=3.0))
    assert not any(mask.any() for mask in nothing.pruned.values())  # of 4 channels none is so far above
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_a_run_leaves_a_report(tmp_path):
    own = {"clp": CLPConfig(u=1.2), "sweep": SweepConfig(u=(1.0, 1.2))}
    result, summary, page = tuning_runs.run("clp", tmp_path / "w", **own)
    assert [*summary["metrics"]] == ["victim", "pruned"]
    assert summary["neurons"]["pruned"] > 0
    assert [row["u"] for row in summary["sweep"]] == [1.0, 1.2]
    assert summary["sweep"][1]["pruned"] == summary["metrics"]["pruned"]
    assert "channels pruned" in page
    none = change(result.config, sweep=SweepConfig(u=()))
    assert method.grid(none.method) is None


def test_the_chosen_u_keeps_predictions_and_the_next_does_not():
    """Each of four channels speaks for a class, and a fifth for none; they are pruned in order of their gains."""
    network, variables, graph, *_ = backdoored()
    scale = jnp.array([1.0, 1.1, 1.2, 1.3, 1.5])
    own = {"scale": scale, "bias": jnp.full(5, 0.5), "var": jnp.full(5, 0.1), "mean": jnp.full(5, 0.5)}
    names = {name: f"{'params' if name in ('scale', 'bias') else 'batch_stats'}/bn/{name}" for name in own}
    head = jnp.diag(1 / scale)[:, :4]
    variables = replace_leaves(
        variables, {names[name]: leaf for name, leaf in own.items()} | {"params/linear/kernel": head}
    )
    # In standard deviations above the mean, the gains are -1.14, -0.62, -0.10, 0.42 and 1.45.
    grid, tolerance = (1.0, 0.2, 0.0), 0.1
    config = CLPSettings(
        selection=AgreementConfig(u=grid[::-1], tolerance=tolerance), images=ImagesConfig(made=200, images=100)
    )
    setup = set_up(network, graph, layers="convolutions")
    found = plans.run(method.plan(config), setup, {"victim": variables}, key=jax.random.key(0))
    images, predictions = found["procedural"].batch
    victim = {"victim": variables, "scores": found["scores"]}
    chosen = int(found["selected"].chosen)

    @jax.jit
    def agreement(u):
        pruned = method.prune(setup, u, **victim).variables
        return jnp.mean(jnp.argmax(network.answer(pruned, images), 1) == predictions)

    by_hand = [1.0, *(float(agreement(u)) for u in grid)]
    np.testing.assert_allclose(found["selected"].agreement, by_hand, atol=1e-6)
    assert 0 < chosen < len(grid), by_hand
    assert all(share >= 1 - tolerance for share in by_hand[: chosen + 1])
    assert by_hand[chosen + 1] < 1 - tolerance
    told = method.outcome(config, found)
    assert told.choice == {"u": grid[chosen - 1], "chosen_by": "procedural images"}
    assert sum(mask.sum() for mask in found["pruned"].pruned.values()) == told.neurons["pruned"] > 0
    # Without tolerance for what the first channel costs, nothing is pruned.
    none = AgreementConfig(u=(0.0,), tolerance=0.0)
    select = jax.jit(lambda: method.select(setup, none, **victim, procedural=found["procedural"], report=None))
    assert select().chosen == 0
    assert not any(mask.any() for mask in method.prune_chosen(setup, None, **victim, selected=select()).pruned.values())


def test_without_a_grid_the_plan_is_the_published_one():
    assert [step.name for step in method.plan(CLPSettings())] == ["scores", "pruned"]
