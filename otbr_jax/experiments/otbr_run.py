"""The stages of OTBR: victim -> unlearned -> scores -> pruned -> fused -> evaluation.

Where gamma and lambda are chosen without data, synthetic -> inverted -> judged come before pruning, and patched,
which starts from the victim again, comes last.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import distillation, fusion, patching, pruning, synthetic, unlearning, weight_change
from otbr_jax.augmentation import augment
from otbr_jax.defenses.otbr import prune_changed
from otbr_jax.experiments import judging, otbr_grid
from otbr_jax.runs.devices import split_batch
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.measuring import measure_networks
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import Stage, content_digest
from otbr_jax.layer_choice import neighbours
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Batch, Variables


@dataclasses.dataclass(frozen=True)
class OTBRRun(Run[RepairConfig]):
    """The stages of OTBR: each method says what a stage computes and what it depends on."""

    layers: tuple[Layer, ...]

    @property
    def neighbours(self) -> tuple[Layer, ...]:
        """The layers that are not repaired but touch those that are."""
        return neighbours(self.subject.graph, self.layers)

    def defend(self, victim: Stage) -> dict[str, Stage]:
        """The stages of a repair, the last of which holds the repaired network; uses no data."""
        stages = self.suspected(victim)
        unlearned, scores = stages["unlearned"], stages["scores"]
        gamma, lam = chosen_setting(self.config, stages)
        pruned = self.pruned(victim, unlearned, scores, gamma=gamma)
        stages |= {"pruned": pruned, "fused": self.fused(victim, scores, pruned, lam=lam)}
        if self.config.distills:
            stages["distilled"] = self.distilled(victim, stages)
        if self.config.patching.triggers:
            stages["patched"] = self.patched(victim, stages)
        return stages

    def suspected(self, victim: Stage) -> dict[str, Stage]:
        """The stages that find suspicious neurons and, if `config.suspicion` says how, classes; nothing is changed."""
        unlearned = self.unlearned(victim)
        scores = self.scores(victim, unlearned)
        weight_change.check_scores(scores.value)
        stages = {"unlearned": unlearned, "scores": scores}
        if self.config.suspicion.gamma or self.config.distills:
            stages["synthetic"] = self.synthetic(victim)
        if self.config.suspicion.gamma:
            made = stages["synthetic"]
            stages |= judging.judge(self, self.layers, victim, unlearned, scores, Batch(*made.value["images"]), made)
        return stages

    def unlearned(self, victim: Stage) -> Stage:
        """OTBR step 1: random unlearning; noise and batches are split over the devices."""
        config = self.config.otbr.unlearning

        def function(variables: Variables, key: jax.Array, *, on_step: Callable[[], None] | None) -> Any:
            unlearned, info = unlearning.random_unlearning(
                self.network,
                variables,
                key=key,
                config=config,
                place=partial(split_batch, mesh=self.mesh),
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
        layers, ranking = self.layers, self.config.otbr.ranking

        def function(before: Variables, after: Variables, *, on_step: Any) -> Any:
            return weight_change.rankable(weight_change.neuron_weight_changes(before, after, layers), ranking=ranking)

        return self.stage(
            "scores",
            function,
            (victim.value["variables"], unlearned.value["variables"]),
            title="neuron weight changes",
            config={"layers": [layer.name for layer in layers], "ranking": ranking},
            parents=(victim, unlearned),
        )

    def count(self, gamma: float) -> int:
        """How many neurons the share `gamma` means."""
        return pruning.neurons_to_prune(gamma, sum(layer.neurons for layer in self.layers))

    def synthetic(self, victim: Stage) -> Stage:
        """Images made from the network, and what it answers them with."""
        config, key = self.config.suspicion.synthetic, self.key("synthetic")

        def function(variables: Variables, key: jax.Array, *, on_step: Any) -> Any:
            made, info = synthetic.synthesize(
                self.network, variables, key=key, config=config, prepare=self.prepare, on_step=on_step
            )
            logits = self.network.apply(variables, self.prepare(made.images))
            return {"images": Batch(made.images, jnp.argmax(logits, axis=-1).astype(jnp.int32)), "info": info}

        return self.stage(
            "synthetic",
            function,
            (victim.value["variables"], key),
            title="making images from the network",
            config=judging.network_settings(self) | dataclasses.asdict(config),
            key=key,
            parents=(victim,),
            total=config.steps,
        )

    def pruned(self, victim: Stage, unlearned: Stage, scores: Stage, *, gamma: float) -> Stage:
        """OTBR step 2: the share gamma of the neurons that changed most loses its weights."""
        layers, count, m = self.layers, self.count(gamma), self.config.otbr.m

        def function(variables: Variables, unlearned: Variables, nwc: weight_change.Scores, *, on_step: Any) -> Any:
            pruned, info = prune_changed(variables, unlearned, nwc, layers, count=count, m=m)
            return {"variables": pruned, "info": info}

        return self.stage(
            "pruned",
            function,
            (victim.value["variables"], unlearned.value["variables"], scores.value),
            title="pruning",
            config={"gamma": gamma, "count": count, "m": m},
            parents=(victim, unlearned, scores),
        )

    def fused(self, victim: Stage, scores: Stage, pruned: Stage, *, lam: float) -> Stage:
        """OTBR step 3: the pruned network is aligned with the victim by transport, and interpolated."""
        config, key = dataclasses.replace(self.config.otbr.fusion, lam=lam), self.key("fused")

        def function(
            variables: Variables,
            original: Variables,
            nwc: weight_change.Scores,
            neurons: Any,
            key: jax.Array,
            *,
            on_step: Any,
        ) -> Any:
            fused, info = fusion.fuse(
                variables, original, nwc, neurons, self.layers, config=config, neighbours=self.neighbours, key=key
            )
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

    def distilled(self, victim: Stage, stages: Mapping[str, Stage]) -> Stage:
        """The fused network, taught what the victim answers its images; as it is if no class stands out."""
        fused, made, key = stages["fused"], stages["synthetic"], self.key("distilled")
        alone = judging.left_alone(stages)

        def function(variables: Variables, teacher: Variables, images: Any, key: jax.Array, *, on_step: Any) -> Any:
            return {"variables": variables if alone else self.taught(variables, teacher, images, key)}

        return self.stage(
            "distilled",
            function,
            (fused.value["variables"], victim.value["variables"], Batch(*made.value["images"]).images, key),
            title="distillation",
            config=judging.network_settings(self) | dataclasses.asdict(self.config.distillation) | {"alone": alone},
            key=key,
            parents=(fused, victim, made),
        )

    def taught(self, variables: Variables, teacher: Variables, images: jax.Array, key: jax.Array) -> Variables:
        """What distillation makes of a network."""
        config = self.config.distillation
        return distillation.distill(
            self.network,
            variables,
            teacher,
            images,
            key=key,
            config=config,
            prepare=self.prepare,
            augment=partial(augmented, crop_padding=config.crop_padding),
        )

    def patched(self, victim: Stage, stages: Mapping[str, Stage]) -> Stage:
        """The network, taught that suspicious classes' triggers mean nothing; as it is if no class stands out."""
        config, made_config, key = self.config.patching, self.config.suspicion.synthetic, self.key("patched")
        judgement = stages["judged"].value["judgement"]
        guilty, threshold = bool(judgement.stands_out), self.config.suspicion.threshold

        def function(
            variables: Variables,
            images: Batch,
            suspicion: jax.Array,
            key: jax.Array,
            *,
            on_step: Any,
        ) -> Any:
            if not guilty:
                return {"variables": variables}
            patched, info = patching.patch_classes(
                self.network,
                variables,
                images,
                suspicion,
                threshold=threshold,
                key=key,
                config=config,
                synthetic=made_config,
                prepare=self.prepare,
                augment=partial(augmented, crop_padding=config.crop_padding),
            )
            return {"variables": patched, "info": info}

        made = stages["synthetic"]
        return self.stage(
            "patched",
            function,
            (
                victim.value["variables"],
                Batch(*made.value["images"]),
                judgement.suspicion,
                key,
            ),
            title="patching",
            config=judging.network_settings(self)
            | {"patching": dataclasses.asdict(config), "synthetic": dataclasses.asdict(made_config)}
            | {"guilty": guilty, "threshold": threshold},
            key=key,
            parents=(victim, made, stages["judged"]),
        )

    def evaluation(self, test: TestSet, stages: Mapping[str, Stage]) -> Stage:
        """Metrics and predictions of all networks, and of the grid gamma x lambda, in one program."""
        config, layers = self.config, self.layers
        keys = {name: self.key(name) for name in ("fused", "distilled")}
        images = Batch(*stages["synthetic"].value["images"]).images if config.distills else None
        counts = [self.count(gamma) for gamma in config.sweep.gamma] if config.lams else []
        networks = {name: stages[name].value["variables"] for name in config.networks}

        def function(
            networks: Any, nwc: weight_change.Scores, test: TestSet, images: Any, keys: Any, *, on_step: Any
        ) -> Any:
            measured = measure_networks(self, networks, test)

            def finish(fused: Variables) -> Variables:
                if images is None:
                    return fused
                return self.taught(fused, networks["victim"], images, keys["distilled"])

            if counts:  # Orbax saves no empty arrays
                measured["sweep"] = otbr_grid.sweep(
                    self.network,
                    networks["victim"],
                    networks["unlearned"],
                    nwc,
                    test,
                    layers,
                    counts=jnp.array(counts, jnp.int32),
                    lams=jnp.array(config.lams, jnp.float32),
                    config=config.otbr,
                    neighbours=self.neighbours,
                    key=keys["fused"],
                    prepare=self.prepare,
                    mesh=self.mesh,
                    finish=finish,
                    on_setting=on_step,
                )
            return measured

        return self.stage(
            "evaluation",
            function,
            (networks, stages["scores"].value, test, images, keys),
            title="measuring, gamma x lambda",
            config={
                "network": self.network_digest(),
                "sweep": [counts, config.lams],
                "otbr": dataclasses.asdict(config.otbr),
                "distillation": dataclasses.asdict(config.distillation),
                "data": [content_digest(test), config.data.mean, config.data.std],
            },
            parents=tuple(stages[name] for name in (*config.networks, "scores")),
            total=len(counts),
            unit="gamma",
        )


def augmented(images: jax.Array, key: jax.Array, *, crop_padding: int) -> jax.Array:
    """Images in [0, 1], each moved by up to `crop_padding` pixels."""
    return augment(images, key=key, crop_padding=crop_padding, flip=False)


def chosen_setting(config: RepairConfig, stages: Mapping[str, Stage]) -> tuple[float, float]:
    """gamma and lambda of a repair: the configuration's, or those that were chosen; 0, 0 where nothing stands out."""
    if "judged" not in stages:
        return config.otbr.gamma, config.otbr.fusion.lam
    if judging.left_alone(stages):
        return 0.0, 0.0
    chosen = int(stages["judged"].value["judgement"].chosen)
    return tuple(itertools.product(config.suspicion.gamma, config.suspicion.lam))[chosen]
