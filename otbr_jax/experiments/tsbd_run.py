"""The stages of TSBD: victim -> unlearned -> scores -> selected -> reinitialized -> finetuned -> evaluation."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import finetuning, pruning, selection, unlearning, weight_change
from otbr_jax.augmentation import augment
from otbr_jax.data.clean import Clean, split_folds
from otbr_jax.errors import InputError
from otbr_jax.experiments import evaluation, judging
from otbr_jax.runs.devices import replicate, split_batch
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.measuring import measure_networks
from otbr_jax.runs.progress import progress_bar
from otbr_jax.experiments.repair_config import RepairConfig, SweepConfig
from otbr_jax.runs.loop import SAVE_EVERY, restore_state, save_state
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import Stage, content_digest
from otbr_jax.neuron_graph import Layer
from otbr_jax.selection import SelectionConfig
from otbr_jax.types import Batch, Variables

log = logging.getLogger(__name__)


def check_clean(config: RepairConfig, *, images: int) -> None:
    """Raises InputError if there are fewer clean images than a batch of a stage needs."""
    fitted = images - round(config.selection.held_out * images) if config.selection.n else images
    for stage, available in (("unlearning", images), ("finetuning", fitted)):
        size = getattr(config.tsbd, stage).batch_size
        if available < size:
            held = f" ({images} but those held out to choose n)" if available < images else ""
            raise InputError(
                f"tsbd.{stage}.batch_size: expected at most {available}, as many as there are clean images{held}, "
                f"found {size}"
            )


@dataclasses.dataclass(frozen=True)
class TSBDRun(Run[RepairConfig]):
    """The stages of TSBD: each method says what a stage computes and what it depends on."""

    layers: tuple[Layer, ...]
    clean: Clean

    def defend(self, victim: Stage) -> dict[str, Stage]:
        """The stages of a repair, the last of which holds the repaired network; uses the clean images only."""
        unlearned = self.unlearned(victim)
        scores = self.scores(victim, unlearned)
        weight_change.check_scores(scores.value)
        stages = {"unlearned": unlearned, "scores": scores}
        if self.config.suspicion.gamma:
            stages |= judging.judge(self, self.layers, victim, unlearned, scores, self.answered(victim))
        if self.config.selection.n and not judging.left_alone(stages):
            stages["selected"] = self.selected(victim, unlearned, scores)
        n, m = chosen_setting(self.config, stages)
        reinitialized = self.reinitialized(victim, unlearned, scores, n=n, m=m)
        epochs = 0 if judging.left_alone(stages) else self.config.tsbd.finetuning.epochs
        return stages | {"reinitialized": reinitialized, "finetuned": self.finetuned(reinitialized, epochs=epochs)}

    def answered(self, victim: Stage) -> Batch:
        """The clean images in [0, 1], and what the network answers them with."""
        images = self.images.images.astype(jnp.float32) / 255
        logits = jax.jit(lambda v, x: self.network.apply(v, self.prepare(x)))(victim.value["variables"], images)
        return Batch(images, jnp.argmax(logits, axis=-1).astype(jnp.int32))

    @property
    def images(self) -> Batch:
        """The clean images, uint8, and their labels."""
        return Batch(jnp.asarray(self.clean.images.images), jnp.asarray(self.clean.images.labels))

    def augmented(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """uint8 images -> images as the network takes them, cropped and flipped as `clean` says."""
        clean = self.config.clean
        return self.prepare(augment(images, key=key, crop_padding=clean.crop_padding, flip=clean.flip))

    @property
    def place(self) -> Callable[[Batch], Batch]:
        """Splits a batch over the devices."""
        return partial(split_batch, mesh=self.mesh)

    def count(self, n: float) -> int:
        """How many neurons the share `n` means."""
        return pruning.neurons_to_prune(n, sum(layer.neurons for layer in self.layers))

    def grid(self, grid: SelectionConfig | SweepConfig) -> tuple[jax.Array, jax.Array]:
        """Numbers of neurons and shares of weights of all settings of a grid, `[settings]` each."""
        pairs = self.config.pairs(grid)
        counts = jnp.array([self.count(n) for n, _ in pairs], jnp.int32)
        return counts, jnp.array([m for _, m in pairs], jnp.float32)

    def settings(self) -> dict[str, Any]:
        """What every stage that sees clean images depends on."""
        config = self.config
        return {
            "network": self.network_digest(),
            "clean": [content_digest(self.clean.images), config.clean.crop_padding, config.clean.flip],
            "data": [config.data.mean, config.data.std],
        }

    def unlearned(self, victim: Stage) -> Stage:
        """TSBD step 1: clean unlearning until chance."""
        config, key = self.config.tsbd.unlearning, self.key("unlearned")

        def function(variables: Variables, clean: Batch, key: jax.Array, *, on_step: Callable[..., None] | None) -> Any:
            unlearned, info = unlearning.clean_unlearning(
                self.network,
                variables,
                clean,
                key=key,
                config=config,
                prepare=self.augmented,
                place=self.place,
                on_epoch=on_step,
            )
            return {"variables": unlearned, "info": info}

        stage = self.stage(
            "unlearned",
            function,
            (victim.value["variables"], self.images, key),
            title="unlearning clean images",
            config=self.settings() | dataclasses.asdict(config),
            key=key,
            parents=(victim,),
            total=config.max_epochs,
            unit="epoch",
        )
        info = stage.value["info"]
        epochs = int(info.epochs)
        loss, accuracy = info.loss[epochs - 1], info.accuracy[epochs - 1]
        if not np.isfinite(loss):
            raise InputError(
                f"tsbd.unlearning.learning_rate: expected a finite loss, found {loss} in epoch {epochs}; lower it from "
                f"{config.learning_rate:g}"
            )
        if not info.reached:
            log.warning(
                "clean unlearning did not reach chance: accuracy %.3f after %d epochs; raise "
                "tsbd.unlearning.max_epochs or its learning_rate",
                *(accuracy, epochs),
            )
        return stage

    def scores(self, victim: Stage, unlearned: Stage) -> Stage:
        """The neuron weight changes of every layer that is repaired."""

        def function(before: Variables, after: Variables, *, on_step: Any) -> Any:
            return weight_change.neuron_weight_changes(before, after, self.layers)

        return self.stage(
            "scores",
            function,
            (victim.value["variables"], unlearned.value["variables"]),
            title="neuron weight changes",
            config=[layer.name for layer in self.layers],
            parents=(victim, unlearned),
        )

    def selected(self, victim: Stage, unlearned: Stage, scores: Stage) -> Stage:
        """Chooses n and m by clean images that are held out."""
        config, key = self.config, self.key("finetuned")
        chosen, clean = config.selection, self.images
        counts, shares = self.grid(chosen)
        labels = self.clean.images.labels
        folds = split_folds(labels, held_out=chosen.held_out, folds=chosen.folds, seed=config.seed)

        def function(
            variables: Variables,
            unlearned: Variables,
            nwc: weight_change.Scores,
            clean: Batch,
            folds: Any,
            key: jax.Array,
            *,
            on_step: Any,
        ) -> Any:
            return selection.select_reinitialization(
                self.network,
                variables,
                unlearned,
                nwc,
                self.layers,
                clean,
                folds,
                counts=counts,
                shares=shares,
                scheme=config.tsbd.scheme,
                key=key,
                config=config.tsbd.finetuning,
                tolerance=chosen.tolerance,
                prepare=self.augmented,
                place=self.place,
                on_candidate=on_step,
            )

        return self.stage(
            "selected",
            function,
            (victim.value["variables"], unlearned.value["variables"], scores.value, clean, folds, key),
            title="choosing n and m, clean images only",
            config=self.settings()
            | {
                "selection": dataclasses.asdict(chosen),
                "m": config.tsbd.m,
                "scheme": config.tsbd.scheme,
                "layers": [x.name for x in self.layers],
            }
            | {"finetuning": dataclasses.asdict(config.tsbd.finetuning), "seed": config.seed},
            key=key,
            parents=(victim, unlearned, scores),
            total=len(counts) * chosen.folds,
            unit="run",
        )

    def reinitialized(self, victim: Stage, unlearned: Stage, scores: Stage, *, n: float, m: float) -> Stage:
        """TSBD step 2: the weights that changed most, of the neurons that changed most, are set to zero."""
        count, scheme = self.count(n), self.config.tsbd.scheme

        def function(before: Variables, after: Variables, nwc: weight_change.Scores, *, on_step: Any) -> Any:
            variables, info = pruning.reinitialize(before, after, nwc, self.layers, count=count, share=m, scheme=scheme)
            return {"variables": variables, "info": info}

        return self.stage(
            "reinitialized",
            function,
            (victim.value["variables"], unlearned.value["variables"], scores.value),
            title="zero re-initialisation",
            config={"count": count, "m": m, "scheme": scheme},
            parents=(victim, unlearned, scores),
        )

    def finetuned(self, reinitialized: Stage, *, epochs: int) -> Stage:
        """TSBD step 3: activeness-aware fine-tuning, epoch by epoch; goes on from the last saved epoch."""
        config, key = dataclasses.replace(self.config.tsbd.finetuning, epochs=epochs), self.key("finetuned")
        start: Variables = jax.tree.map(jnp.asarray, reinitialized.value["variables"])
        optimizer = finetuning.optimizer_of(config, steps=config.steps(len(self.clean.images.labels)))
        step = finetuning.step_fn(self.network, start, optimizer)
        history = {name: np.full(config.epochs, np.nan, np.float32) for name in ("loss", "accuracy")}

        @jax.jit
        def epoch(carry: finetuning.Finetuning, clean: Batch, key: jax.Array) -> Any:
            carry, info = finetuning.finetune_epoch(
                step, carry, clean, key=key, batch_size=config.batch_size, prepare=self.augmented, place=self.place
            )
            return carry, jnp.mean(info.loss), jnp.mean(info.accuracy)

        def compute(progress: pathlib.Path) -> tuple[Any, dict[str, Any]]:
            carry, done, saved_at = finetuning.begin(start, optimizer), 0, time.monotonic()
            like = {"done": np.int32(0), "carry": carry, "history": history}
            if (saved := restore_state(progress, like)) is not None:
                carry, done = saved["carry"], int(saved["done"])
                history.update(saved["history"])
            carry, clean = replicate((carry, self.images), self.mesh)
            with progress_bar("activeness-aware fine-tuning", config.epochs, unit="epoch") as advance:
                for _ in range(done):
                    advance()
                for index in range(done, config.epochs):
                    if finetuning.ends_early(history["loss"][:index], patience=config.patience):
                        break
                    carry, loss, accuracy = epoch(carry, clean, jax.random.fold_in(key, index))
                    history["loss"][index], history["accuracy"][index] = loss, accuracy
                    if not np.isfinite(history["loss"][index]):
                        shutil.rmtree(progress, ignore_errors=True)
                        raise InputError(
                            f"tsbd.finetuning.learning_rate: expected a finite loss, found {history['loss'][index]} in "
                            f"epoch {index + 1} of {config.epochs}; lower it from {config.learning_rate:g}"
                        )
                    advance(loss=float(loss), acc=float(accuracy))
                    if index + 1 < config.epochs and time.monotonic() - saved_at >= SAVE_EVERY:
                        saved_at = time.monotonic()
                        save_state(progress, {"done": np.int32(index + 1), "carry": carry, "history": history})
            value = {"variables": finetuning.variables_of(carry)}
            return value | ({"history": history} if config.epochs else {}), {}

        def like() -> Any:
            value = {"variables": finetuning.variables_of(finetuning.begin(start, optimizer))}
            return value | ({"history": history} if config.epochs else {})

        return self.directory.run_long(
            "finetuned",
            compute,
            like=like,
            config=self.settings() | dataclasses.asdict(config),
            key=key,
            code=__name__,
            parents=(reinitialized,),
        )

    def evaluation(self, test: TestSet, stages: Mapping[str, Stage]) -> Stage:
        """Metrics and predictions of all networks; and of a grid of n and m, each fine-tuned for it, for comparison."""
        config, key = self.config, self.key("finetuned")
        names = ("victim", "unlearned", "reinitialized", "finetuned")
        networks = {name: stages[name].value["variables"] for name in names}
        counts, shares = self.grid(config.sweep)

        def function(
            networks: Any, nwc: Any, clean: Batch, test: TestSet, key: jax.Array, *, on_step: Any
        ) -> dict[str, Any]:
            measure = partial(evaluation.measure, self.network, test=test, prepare=self.prepare, mesh=self.mesh)
            measured = measure_networks(self, networks, test)

            def one(candidate: tuple[jax.Array, jax.Array]) -> Any:
                count, share = candidate
                start, _ = pruning.reinitialize(
                    networks["victim"],
                    networks["unlearned"],
                    nwc,
                    self.layers,
                    count=count,
                    share=share,
                    scheme=config.tsbd.scheme,
                )
                tuned, _ = finetuning.finetune(
                    self.network,
                    start,
                    clean,
                    key=key,
                    config=config.tsbd.finetuning,
                    prepare=self.augmented,
                    place=self.place,
                )
                found = {"reinitialized": measure(start), "finetuned": measure(tuned)}
                if on_step is not None:
                    jax.debug.callback(on_step)
                return found

            if len(counts):  # Orbax saves no empty arrays
                measured["sweep"] = jax.lax.map(one, (counts, shares))
            return measured

        return self.stage(
            "evaluation",
            function,
            (networks, stages["scores"].value, self.images, test, key),
            title="measuring, other n and m" if len(counts) else "measuring",
            config=self.settings()
            | {
                "sweep": [counts.tolist(), shares.tolist(), config.tsbd.scheme],
                "finetuning": dataclasses.asdict(config.tsbd.finetuning),
            }
            | {"test": content_digest(test)},
            key=key,
            parents=tuple(stages[name] for name in (*names, "scores")),
            total=max(1, len(counts)),
            unit="run",
        )


def chosen_setting(config: RepairConfig, stages: Mapping[str, Stage]) -> tuple[float, float]:
    """The n and m of a run: those that were chosen, or the settings; 0, 0 where nothing stands out."""
    if judging.left_alone(stages):
        return 0.0, 0.0
    if "selected" not in stages:
        return config.tsbd.n, config.tsbd.shares()[0]
    return config.pairs(config.selection)[int(stages["selected"].value.chosen)]
