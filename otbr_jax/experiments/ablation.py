"""The comparisons that TSBD stands on: what is set to zero, how it is fine-tuned, which neurons, how much data.

Every victim is repaired in several ways that differ in one thing each from TSBD as it is, for several shares n.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import finetuning, pruning, weight_change
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.data.clean import CleanConfig, load_clean
from otbr_jax.data.sources import Dataset
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.experiments import evaluation, parallel, trigger_activation
from otbr_jax.experiments.checkpoints import write_text
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.progress import progress_bar
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.stages import Stage, content_digest, open_workdir
from otbr_jax.experiments.studies import open_study, row_settings, row_subject, victim_config, victim_metrics
from otbr_jax.experiments.tsbd_run import TSBDRun
from otbr_jax.experiments.victims import open_victim, subject_of, test_set
from otbr_jax.metrics import Metrics
from otbr_jax.report import ablation_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.types import Batch, Variables
from otbr_jax.weight_change import Scores

ACTIVATION_IMAGES = 512
"""How many images, at most, tell how active neurons are, and which of them the trigger activates."""


class Variant(NamedTuple):
    """One way to repair.

    Attributes:
      choice: which neurons, `nwc` (those that changed most), `least active` on clean images, or `random`.
      scheme: what of them is set to zero: `sub-weights` (the share m of their weights that changed most),
        `all weights`, or `whole neurons` (also their biases and normalisation).
      finetuning: `activeness-aware` or `vanilla`.
      compared: the comparisons that it belongs to, and its name there.
    """

    choice: str = "nwc"
    scheme: str = "sub-weights"
    finetuning: str = "activeness-aware"
    compared: Mapping[str, str] = {}


TSBD = Variant(
    compared={
        "what is set to zero": "sub-weights",
        "fine-tuning": "activeness-aware",
        "which neurons": "NWC",
    }
)
"""The method as it is."""

VARIANTS = (
    TSBD,
    Variant(scheme="all weights", compared={"what is set to zero": "all weights"}),
    Variant(scheme="whole neurons", compared={"what is set to zero": "whole neurons"}),
    Variant(finetuning="vanilla", compared={"fine-tuning": "vanilla"}),
    Variant(choice="least active", compared={"which neurons": "least active"}),
    Variant(choice="random", compared={"which neurons": "random"}),
)
CHOICES = ("nwc", "least active", "random")


@settings("")
class AblationConfig(VictimConfig):
    """Everything that decides an ablation.

    A checkpoint in `model` is the only victim, with the backdoor of `attack`: without `attacks` and `poisoning_ratios`.
    """

    attacks: tuple[str, ...] = field(
        default=(),
        choices=(*ATTACKS, "none"),
        doc="names of attacks, each of which gets victims of its own; empty for the one of `attack`.",
    )
    tsbd: TSBDConfig = field(
        default=TSBDConfig(), doc="the method; `n` is the share that tables show, among `n` below."
    )
    clean: CleanConfig = field(default=CleanConfig(), doc="its clean images.")
    n: tuple[float, ...] = field(
        default=(0.1, 0.2, 0.3), at_least=0, at_most=1, doc="shares of neurons that every variant is run for."
    )
    poisoning_ratios: tuple[float, ...] = field(
        default=(0.05, 0.01), above=0, at_most=1, doc="of more victims, beside `attack.poisoning_ratio`."
    )
    fractions: tuple[float, ...] = field(
        default=(0.1, 0.01), above=0, at_most=1, doc="of more sets of clean images, beside `clean.fraction`."
    )
    top: float = field(
        default=0.1,
        above=0,
        at_most=1,
        doc="share of each layer's neurons of which the overlap with the trigger-activated ones is.",
    )

    def check(self) -> None:
        """Every victim has a backdoor, and every variant is run once."""
        super().check()
        for name in ("attacks", "poisoning_ratios"):
            if self.model.checkpoint and getattr(self, name):
                raise wrong(self, name, "none, since model.checkpoint is the victim")
        if self.tsbd.n not in self.n:
            raise wrong(self, "tsbd.n", f"one of n, {[*self.n]}")
        for name, values, own in (
            ("poisoning_ratios", self.poisoning_ratios, self.attack.poisoning_ratio),
            ("fractions", self.fractions, self.clean.fraction),
        ):
            if len({*values, own}) < len(values) + 1:
                raise wrong(self, name, f"each once and not {own:g} again")
        for repair, _ in self.each():
            if repair.attack.name == "none":
                raise wrong(self, "attack.name", "an attack, since a backdoor is to be removed", found="'none'")

    def each(self) -> list[tuple[RepairConfig, tuple[Variant, ...]]]:
        """The settings of every run, and the variants that are run there."""
        runs: list[tuple[RepairConfig, tuple[Variant, ...]]] = []
        for name in self.attacks or (self.attack.name,):
            attack = dataclasses.replace(self.attack, name=name)
            ratio, fraction = self.attack.poisoning_ratio, self.clean.fraction
            more = {"poisoned": _percent(ratio), "clean images": _percent(fraction)}
            first = TSBD._replace(compared={**TSBD.compared, **more})
            runs.append((self._run(attack, self.clean), (first, *VARIANTS[1:])))
            for other in self.poisoning_ratios:
                poisoned = dataclasses.replace(attack, poisoning_ratio=other)
                variant = TSBD._replace(compared={"poisoned": _percent(other)})
                runs.append((self._run(poisoned, self.clean), (variant,)))
            for other in self.fractions:
                clean = dataclasses.replace(self.clean, fraction=other)
                runs.append((self._run(attack, clean), (TSBD._replace(compared={"clean images": _percent(other)}),)))
        return runs

    def _run(self, attack: Any, clean: CleanConfig) -> RepairConfig:
        victim = victim_config(self, attack=attack)
        fields = {field.name: getattr(victim, field.name) for field in dataclasses.fields(VictimConfig)}
        return RepairConfig(**fields, defense="tsbd", tsbd=self.tsbd, clean=clean)


class Ablated(NamedTuple):
    """What was found in one run.

    Attributes:
      config: its settings, with batches no larger than there are clean images.
      variants: the ways of repair.
      victim: the victim's metrics.
      reinitialized: after re-initialisation, `[variants, n]` each.
      finetuned: after fine-tuning, the same.
      overlap: `{choice: [layers]}`, share of the most trigger-activated neurons of a layer that are among the first of
        the choice, too.
      images: how many clean images there were.
      reached: whether clean unlearning reached chance.
      provenance: what the data are.
    """

    config: RepairConfig
    variants: tuple[Variant, ...]
    victim: Metrics
    reinitialized: Metrics
    finetuned: Metrics
    overlap: Mapping[str, jax.Array]
    images: int
    reached: bool
    provenance: str


def ablate(
    config: AblationConfig, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> list[Ablated]:
    """Repairs every victim that `config` names in every way, and measures it.

    Leaves in `workdir`: `ablation.json` with all rows, and `ablation.html`, a page with the tables and figures.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    mesh, subject, layers, dataset = open_study(config, layers=config.tsbd.layers, devices=devices)
    for name, size in config.each()[0][0].batch_sizes().items():
        parallel.check_batch_size(size, mesh, name=name)
    network, found = subject.network, []
    with open_workdir(workdir, subject=subject_of(config)) as directory:
        for repair, variants in config.each():
            clean = load_clean(
                repair.clean,
                dataset,
                image_shape=network.image_shape,
                num_classes=network.num_classes,
                seed=config.seed,
            )
            images = len(clean.images.labels)
            fitted = dataclasses.replace(repair, tsbd=_fitted(repair.tsbd, images // mesh.size * mesh.size))
            run = _Ablating(fitted, directory, subject, mesh, layers, clean)
            found.append(run.ablated(dataset, variants, config.n, top=config.top))
        all_rows = rows(config, found)
        write_text(directory.path / "ablation.json", json.dumps(all_rows, indent=1) + "\n")
        write_text(directory.path / "ablation.html", ablation_page.render(all_rows, n=config.tsbd.n))
    return found


def rows(config: AblationConfig, found: Sequence[Ablated]) -> list[dict[str, Any]]:
    """A row of results for each run and variant, but for commit, hardware and date; fractions in [0, 1]."""
    subject, settings, result = row_subject(config), row_settings(config), []
    for one in found:
        attack = one.config.attack
        for index, variant in enumerate(one.variants):
            overlap = one.overlap[variant.choice]
            curve = [
                {
                    "n": n,
                    "reinitialized": _plain(Metrics(*(metric[index, place] for metric in one.reinitialized))),
                    "finetuned": _plain(Metrics(*(metric[index, place] for metric in one.finetuned))),
                }
                for place, n in enumerate(config.n)
            ]
            result.append(
                subject
                | {"seed": config.seed, "attack": attack.name, "poisoning_ratio": attack.poisoning_ratio}
                | {"clean_fraction": one.config.clean.fraction, "clean_images": one.images}
                | {name: getattr(variant, name) for name in ("choice", "scheme", "finetuning")}
                | {"compared": dict(variant.compared), "n": config.tsbd.n, "m": config.tsbd.m}
                | {"victim": _plain(one.victim), "reached_chance": one.reached, "curve": curve}
                | {"tac_overlap": {"layers": _round(jnp.mean(overlap)), "last": _round(overlap[-1]), "top": config.top}}
                | {"data": one.provenance, "config": settings | {"attack": attack.settings()}}
            )
    return result


@dataclasses.dataclass(frozen=True)
class _Ablating(TSBDRun):
    """The stages of an ablation: those of TSBD up to the scores, then one with all variants."""

    def ablated(self, dataset: Dataset, variants: tuple[Variant, ...], ns: Sequence[float], *, top: float) -> Ablated:
        """Repairs the run's victim in every way."""
        victim = open_victim(self, dataset)
        unlearned = self.unlearned(victim.stage)
        scores = self.scores(victim.stage, unlearned)
        weight_change.check_scores(scores.value)
        test = test_set(self, dataset.test, victim)
        stage = self._variants(victim.stage, unlearned, scores, test, variants, ns, top)
        value = stage.value
        return Ablated(
            self.config, variants, victim_metrics(self, victim, dataset.test), Metrics(**value["reinitialized"]),
            Metrics(**value["finetuned"]), value["overlap"], len(self.clean.images.labels),
            bool(unlearned.value["info"].reached), dataset.provenance,
        )  # fmt: skip

    def _variants(
        self,
        victim: Stage,
        unlearned: Stage,
        scores: Stage,
        test: TestSet,
        variants: tuple[Variant, ...],
        ns: Sequence[float],
        top: float,
    ) -> Stage:
        key, nwc = self.key("finetuned"), {layer.name: scores.value[layer.name] for layer in self.layers}
        aware = self.config.tsbd.finetuning
        kinds = {"activeness-aware": aware, "vanilla": dataclasses.replace(aware, alpha=0.0)}
        shape = (len(variants), len(ns))

        def compute() -> Any:
            before, after, clean, tested = parallel.replicate(
                (victim.value["variables"], unlearned.value["variables"], self.images, test), self.mesh
            )
            choices = self._choices(nwc, before, clean)
            change = self._changes(before, tested)
            overlap = {
                name: jnp.stack(
                    [found.overlap for found in weight_change.correlations(choice, change, top=top)[1].values()]
                )
                for name, choice in choices.items()
            }
            measure = jax.jit(
                lambda variables, tested: evaluation.measure(
                    self.network, variables, tested, prepare=self.prepare, mesh=self.mesh
                )
            )
            tune = {kind: jax.jit(partial(self._tuned, config=config)) for kind, config in kinds.items()}
            measured = {part: np.zeros((3, *shape), np.float32) for part in ("reinitialized", "finetuned")}
            with progress_bar(f"variants: {self.config.attack.name}", shape[0] * shape[1], unit="run") as advance:
                for row, variant in enumerate(variants):
                    for column, n in enumerate(ns):
                        start = self._zeroed(before, after, choices[variant.choice], variant.scheme, self.count(n))
                        measured["reinitialized"][:, row, column] = measure(start, tested)
                        measured["finetuned"][:, row, column] = measure(
                            tune[variant.finetuning](start, clean, key), tested
                        )
                        advance()
            return {part: Metrics(*values)._asdict() for part, values in measured.items()} | {"overlap": overlap}

        def like() -> Any:
            one = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in Metrics._fields}
            by_layer = jax.ShapeDtypeStruct((len(self.layers),), jnp.float32)
            return {"reinitialized": one, "finetuned": one, "overlap": dict.fromkeys(CHOICES, by_layer)}

        return self.directory.run(
            "ablated",
            compute,
            like=like,
            config=self.settings()
            | {"variants": [(v.choice, v.scheme, v.finetuning) for v in variants], "n": [self.count(n) for n in ns]}
            | {"m": self.config.tsbd.m, "finetuning": dataclasses.asdict(aware), "top": top}
            | {"layers": [layer.name for layer in self.layers], "test": content_digest(test)},
            key=key,
            code=__name__,
            parents=(victim, unlearned, scores),
        )

    def _choices(self, nwc: Scores, variables: Variables, clean: Batch) -> dict[str, Scores]:
        """Scores of neurons, those to be taken first the highest."""
        active = trigger_activation.clean_activation(
            self.network, variables, self.prepare(clean.images[:ACTIVATION_IMAGES]), self.layers
        )
        least = {name: -values for name, values in active.items()}
        return {
            "nwc": nwc,
            "least active": least,
            "random": trigger_activation.random_scores(nwc, key=self.key("random")),
        }

    def _changes(self, variables: Variables, test: TestSet) -> Scores:
        """TAC, on test images that the attacker wants another answer for."""
        others = np.flatnonzero(np.asarray(test.labels != test.goals))[:ACTIVATION_IMAGES]
        return trigger_activation.trigger_activated_change(
            self.network,
            variables,
            self.prepare(test.clean[others]),
            self.prepare(test.triggered[others]),
            self.layers,
        )

    def _zeroed(self, before: Variables, after: Variables, scores: Scores, scheme: str, count: int) -> Variables:
        share = 1.0 if scheme == "all weights" else self.config.tsbd.m
        kind = "neurons" if scheme == "whole neurons" else "weights"
        return pruning.reinitialize(before, after, scores, self.layers, count=count, share=share, scheme=kind)[0]

    def _tuned(
        self, start: Variables, clean: Batch, key: jax.Array, *, config: finetuning.FinetuningConfig
    ) -> Variables:
        tuned, _ = finetuning.finetune(
            self.network, start, clean, key=key, config=config, prepare=self.augmented, place=self.place
        )
        return tuned


def _fitted(config: TSBDConfig, images: int) -> TSBDConfig:
    """The same with batches of at most so many images."""
    unlearning, tuning = config.unlearning, config.finetuning
    return dataclasses.replace(
        config,
        unlearning=dataclasses.replace(unlearning, batch_size=min(unlearning.batch_size, images)),
        finetuning=dataclasses.replace(tuning, batch_size=min(tuning.batch_size, images)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _plain(found: Metrics) -> dict[str, float]:
    return {name: _round(value) for name, value in found._asdict().items()}


def _round(value: Any) -> float:
    return round(float(value), 6)
