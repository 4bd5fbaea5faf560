"""The stages of OTBR: victim -> unlearned -> scores -> pruned -> fused -> evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import fusion, pruning, unlearning, weight_change
from otbr_jax.experiments import otbr_grid, parallel
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.measuring import measure_networks
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.runs import Run
from otbr_jax.experiments.stages import Stage, content_digest
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class OTBRRun(Run[RepairConfig]):
    """The stages of OTBR: each method says what a stage computes and what it depends on."""

    layers: tuple[Layer, ...]

    def defend(self, victim: Stage) -> dict[str, Stage]:
        """The stages of a repair, the last of which holds the repaired network; uses no data."""
        unlearned = self.unlearned(victim)
        scores = self.scores(victim, unlearned)
        weight_change.check_scores(scores.value)
        pruned = self.pruned(victim, scores)
        return {
            "unlearned": unlearned,
            "scores": scores,
            "pruned": pruned,
            "fused": self.fused(victim, scores, pruned),
        }

    def unlearned(self, victim: Stage) -> Stage:
        """OTBR step 1: random unlearning; noise and batches are split over the devices."""
        config = self.config.otbr.unlearning

        def function(variables: Variables, key: jax.Array, *, on_step: Callable[[], None] | None) -> Any:
            unlearned, info = unlearning.random_unlearning(
                self.network,
                variables,
                key=key,
                config=config,
                place=partial(parallel.split_batch, mesh=self.mesh),
                on_step=on_step,
            )
            return {"variables": unlearned, "info": info}

        key = self.key("unlearned")
        return self.stage(
            "unlearned",
            function,
            (victim.value["variables"], key),
            title="unlearning on noise",
            config={"network": self.network_digest(), **dataclasses.asdict(config)},
            key=key,
            parents=(victim,),
            total=config.steps,
        )

    def scores(self, victim: Stage, unlearned: Stage) -> Stage:
        """The neuron weight changes of every layer that is repaired."""
        layers = self.layers

        def function(before: Variables, after: Variables, *, on_step: Any) -> Any:
            return weight_change.neuron_weight_changes(before, after, layers)

        return self.stage(
            "scores",
            function,
            (victim.value["variables"], unlearned.value["variables"]),
            title="neuron weight changes",
            config=[layer.name for layer in layers],
            parents=(victim, unlearned),
        )

    def pruned(self, victim: Stage, scores: Stage) -> Stage:
        """OTBR step 2: the share gamma of the neurons that changed most loses its weights."""
        layers, gamma = self.layers, self.config.otbr.gamma
        count = pruning.neurons_to_prune(gamma, sum(layer.neurons for layer in layers))

        def function(variables: Variables, nwc: weight_change.Scores, *, on_step: Any) -> Any:
            pruned, info = pruning.prune(variables, nwc, layers, count=count)
            return {"variables": pruned, "info": info}

        return self.stage(
            "pruned",
            function,
            (victim.value["variables"], scores.value),
            title="pruning",
            config={"gamma": gamma, "count": count},
            parents=(victim, scores),
        )

    def fused(self, victim: Stage, scores: Stage, pruned: Stage) -> Stage:
        """OTBR step 3: the pruned network is aligned with the victim by transport, and interpolated."""
        config, key = self.config.otbr.fusion, self.key("fused")

        def function(
            variables: Variables,
            original: Variables,
            nwc: weight_change.Scores,
            neurons: Any,
            key: jax.Array,
            *,
            on_step: Any,
        ) -> Any:
            fused, info = fusion.fuse(variables, original, nwc, neurons, self.layers, config=config, key=key)
            return {"variables": fused, "info": info}

        return self.stage(
            "fused",
            function,
            (pruned.value["variables"], victim.value["variables"], scores.value, pruned.value["info"].pruned, key),
            title="transport and fusion",
            config=config,
            key=key,
            parents=(victim, scores, pruned),
        )

    def evaluation(self, test: TestSet, stages: Mapping[str, Stage]) -> Stage:
        """Metrics and predictions of all networks, and of the grid gamma x lambda, in one program."""
        config, layers, key = self.config, self.layers, self.key("fused")
        total = sum(layer.neurons for layer in layers)
        counts = [pruning.neurons_to_prune(gamma, total) for gamma in config.sweep.gamma] if config.lams else []
        networks = {
            "victim": stages["victim"].value["variables"],
            "unlearned": stages["unlearned"].value["variables"],
            "pruned": stages["pruned"].value["variables"],
            "fused": stages["fused"].value["variables"],
        }

        def function(networks: Any, nwc: weight_change.Scores, test: TestSet, key: jax.Array, *, on_step: Any) -> Any:
            measured = measure_networks(self, networks, test)
            if counts:  # Orbax saves no empty arrays
                measured["sweep"] = otbr_grid.sweep(
                    self.network,
                    networks["victim"],
                    nwc,
                    test,
                    layers,
                    counts=jnp.array(counts, jnp.int32),
                    lams=jnp.array(config.lams, jnp.float32),
                    config=config.otbr.fusion.transport,
                    key=key,
                    prepare=self.prepare,
                    mesh=self.mesh,
                    on_setting=on_step,
                )
            return measured

        return self.stage(
            "evaluation",
            function,
            (networks, stages["scores"].value, test, key),
            title="measuring, gamma x lambda",
            config={
                "network": self.network_digest(),
                "sweep": [counts, config.lams],
                "transport": dataclasses.asdict(config.otbr.fusion.transport),
                "data": [content_digest(test), config.data.mean, config.data.std],
            },
            parents=tuple(stages[name] for name in ("victim", "unlearned", "scores", "pruned", "fused")),
            total=len(counts),
            unit="gamma",
        )
