"""TSBD: two-stage defence with a few per cent of clean data (arXiv 2405.20291)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.contrib.detection_steps import detection_steps, is_flagged, plain_findings, pruning_detector
from otbr_jax.contrib.pruning_detection import Findings, PruningDetectionConfig
from otbr_jax.defenses.defense import Defense, Outcome, count_neurons
from otbr_jax.defenses.grid import Built, Grid
from otbr_jax.defenses.otbr import SCORES, OTBRConfig, Unlearned
from otbr_jax.defenses.tuning import plain_history, tuning_step
from otbr_jax.defenses.unlearning import clean_unlearning_step, unlearning_warnings
from otbr_jax.detectors.detector import conclude
from otbr_jax.errors import InputError
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.prune import SCHEMES, ReinitInfo, neurons_to_prune, reinitialize
from otbr_jax.steps.sampling import split_folds
from otbr_jax.steps.score import Scores
from otbr_jax.steps.select import Selection, SelectionConfig, select_reinitialization
from otbr_jax.steps.select import candidates as pairs_of
from otbr_jax.steps.unlearn import CleanUnlearningConfig, CleanUnlearningInfo
from otbr_jax.types import Augment, Batch, Network, Variables, unchanged

log = logging.getLogger(__name__)


@settings("tsbd")
class TSBDConfig:
    """The whole method; the defaults are the published ones."""

    unlearning: CleanUnlearningConfig = field(default=CleanUnlearningConfig(), doc="step 1, clean unlearning.")
    n: float = field(
        default=0.15, at_least=0, at_most=1, doc="step 2, share of neurons whose weights are re-initialised."
    )
    m: float = field(default=0.7, at_least=0, at_most=1, doc="step 2, share of their weights that is set to zero.")
    scheme: str = field(
        default="weights",
        choices=SCHEMES,
        doc="step 2, what is set to zero: `weights` of the neurons, as published, or `neurons`, all their parameters; "
        "m then has no effect.",
    )
    finetuning: FinetuningConfig = field(default=FinetuningConfig(), doc="step 3, activeness-aware fine-tuning.")
    layers: str = field(
        default="auto", choices=LAYERS, doc="which layers are scored and re-initialised, see `choose_layers`."
    )

    def shares(self, m: Sequence[float] = ()) -> tuple[float, ...]:
        """The values of m to try, of these or the setting; whole neurons lose all weights, whatever m is."""
        return (1.0,) if self.scheme == "neurons" else tuple(m) or (self.m,)


@settings("sweep")
class SweepConfig:
    """The grid of settings that the report shows beside the chosen one; empty for none."""

    n: tuple[float, ...] = field(default=(), at_least=0, at_most=1, doc="shares of neurons.")
    m: tuple[float, ...] = field(
        default=(),
        at_least=0,
        at_most=1,
        doc="shares of their weights; empty for `tsbd.m`. Every pair (n, m) costs a fine-tuning.",
    )

    def check(self) -> None:
        """Shares of weights come with shares of neurons."""
        if self.m and not self.n:
            raise wrong(self, "n", f"shares of neurons beside sweep.m {[*self.m]}", found="none")


@settings("")
class TSBDSettings:
    """All settings of the defence `tsbd`."""

    tsbd: TSBDConfig = field(default=TSBDConfig(), doc="the published method.")
    detection: PruningDetectionConfig = field(
        formerly="suspicion",
        default=PruningDetectionConfig(),
        doc="whether to check for a backdoor first, with the clean images: nothing is repaired if no class is flagged.",
    )
    otbr: OTBRConfig = field(
        default=OTBRConfig(), doc="how networks are pruned and fused where a backdoor is checked for."
    )
    selection: SelectionConfig = field(default=SelectionConfig(), doc="how n and m are chosen with the clean images.")
    sweep: SweepConfig = field(default=SweepConfig(), doc="settings that the report shows beside the chosen one.")

    def pairs(self, grid: SelectionConfig | SweepConfig) -> tuple[tuple[float, float], ...]:
        """The settings (n, m) of a grid, `selection` or `sweep`, in order of strength."""
        return pairs_of(grid.n, self.tsbd.shares(grid.m))


class Reinitialized(NamedTuple):
    """The network after zero re-initialisation, and what was set to zero."""

    variables: Variables
    info: ReinitInfo


class TSBDInfo(NamedTuple):
    """The info of all steps; `scores` are the neuron weight changes, `{layer name: [neurons]}`."""

    unlearning: CleanUnlearningInfo
    scores: Mapping[str, jax.Array]
    reinit: ReinitInfo
    finetuning: Mapping[str, jax.Array]


def predict_clean(setup: Setup, settings: None, *, victim: Variables, clean: Batch, **_: Any) -> PredictedImages:
    """The clean images in [0, 1], and their predictions."""
    images = jnp.asarray(clean.images).astype(jnp.float32) / 255
    return PredictedImages(Batch(images, jnp.argmax(setup.network.answer(victim, images), axis=-1).astype(jnp.int32)))


class SelectionSettings(NamedTuple):
    """The settings of `select`: the pairs (n, m), what is zeroed, how it is fine-tuned, and the tolerance."""

    pairs: tuple[tuple[float, float], ...]
    scheme: str
    finetuning: FinetuningConfig
    tolerance: float


def select(
    setup: Setup,
    settings: SelectionSettings,
    *,
    victim: Variables,
    unlearned: Unlearned,
    scores: Scores,
    clean: Batch,
    folds: tuple[jax.Array, jax.Array],
    key: jax.Array,
    report: Report | None,
    findings: Findings | None = None,
) -> Selection:
    """Chooses n and m by held-out clean images; computes nothing if no class is flagged."""
    counts, shares = sizes(setup, settings.pairs)

    def selected() -> Selection:
        return select_reinitialization(
            setup.network,
            victim,
            unlearned.variables,
            scores,
            setup.layers,
            clean,
            folds,
            counts=counts,
            shares=shares,
            scheme=settings.scheme,
            key=key,
            config=settings.finetuning,
            tolerance=settings.tolerance,
            augment=setup.augment,
            on_candidate=report,
        )

    if findings is None:
        return selected()
    rest = jax.eval_shape(selected)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
    return jax.lax.cond(findings.detected.flagged, selected, lambda: none)


def sizes(setup: Setup, pairs: Sequence[tuple[float, float]]) -> tuple[jax.Array, jax.Array]:
    """Numbers of neurons and shares of weights of all settings, `[settings]` each."""
    counts = jnp.array([neurons_to_prune(n, setup.neurons) for n, _ in pairs], jnp.int32)
    return counts, jnp.array([m for _, m in pairs], jnp.float32)


class ReinitSettings(NamedTuple):
    """The settings of `zero`: the pairs (n, m) to choose from, or the only one, and what is zeroed."""

    pairs: tuple[tuple[float, float], ...]
    scheme: str


def zero(
    setup: Setup,
    settings: ReinitSettings,
    *,
    victim: Variables,
    unlearned: Unlearned,
    scores: Scores,
    selected: Selection | None = None,
    findings: Findings | None = None,
    **_: Any,
) -> Reinitialized:
    """Step 2: the weights that changed most, of the neurons that changed most, are set to zero."""
    counts, shares = sizes(setup, settings.pairs)
    chosen = 0 if selected is None else selected.chosen
    count, share = counts[chosen], shares[chosen]
    if findings is not None:
        count = jnp.where(findings.detected.flagged, count, 0)
    reinitialized = reinitialize(
        victim, unlearned.variables, scores, setup.layers, count=count, share=share, scheme=settings.scheme
    )
    return Reinitialized(*reinitialized)


def plan(config: TSBDSettings) -> Plan:
    """unlearned -> scores (-> predicted -> inverted -> detected) (-> selected) -> reinitialized -> finetuned."""
    method, chosen = config.tsbd, config.selection
    steps: list[Step] = [
        clean_unlearning_step(method.unlearning, group="tsbd.unlearning"),
        SCORES,
    ]
    findings: dict[str, str] = {}
    if config.detection.gamma:
        shown = Shown("predictions of clean images")
        steps.append(Step("predicted", predict_clean, needs("victim", "clean"), key="answered", shown=shown))
        steps += detection_steps(config.detection, config.otbr, images="predicted")
        findings = {"findings": "detected"}
    pairs: tuple[tuple[float, float], ...] = ((method.n, method.shares()[0]),)
    selected: list[str] = []
    if chosen.n:
        pairs, selected = config.pairs(chosen), ["selected"]
        steps.append(
            Step(
                "selected",
                select,
                needs("victim", "unlearned", "scores", "clean", "folds", **findings),
                SelectionSettings(pairs, method.scheme, method.finetuning, chosen.tolerance),
                key="finetuned",
                shown=Shown("choosing n and m, clean images only", total=len(pairs) * chosen.folds, unit="run"),
            )
        )
    return (
        *steps,
        Step(
            "reinitialized",
            zero,
            needs("victim", "unlearned", "scores", *selected, **findings),
            ReinitSettings(pairs, method.scheme),
            shown=Shown("zero re-initialisation"),
        ),
        tuning_step(
            "finetuned",
            method.finetuning,
            "activeness-aware fine-tuning",
            group="tsbd.finetuning",
            start="reinitialized",
            detected="detected" if findings else "",
        ),
    )


def tsbd(
    network: Network,
    variables: Variables,
    clean: Batch,
    graph: NeuronGraph,
    *,
    key: jax.Array,
    config: TSBDConfig,
    augment: Augment = unchanged,
    axis_name: str | None = None,
) -> tuple[Variables, TSBDInfo]:
    """Repairs a network with a few clean images. Pure; jits; runs inside `jax.pmap` with `axis_name`.

    Guarantee: touches no data but `clean`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      clean: clean images `[n, h, w, c]` as the network's `prepare` takes them, and their labels `[n]`; on a mapped axis
        each device's own part.
      graph: its neuron graph; `config.layers` says which of its layers are scored and re-initialised.
      key: typed PRNG key: the order of the images, and their augmentation.
      config: the method's settings.
      augment: `(images, key) -> images`, before the network's `prepare`.
      axis_name: mapped axis whose devices share each batch.

    Returns:
      `(repaired variables, TSBDInfo)`.

    Raises:
      InputError: if there are no such layers, or there are fewer images than one batch.
    """
    setup = plans.set_up(network, graph, layers=config.layers, axis_name=axis_name, augment=augment)
    given = {"victim": variables, "clean": clean}
    values = plans.run(plan(TSBDSettings(tsbd=config)), setup, given, key=key)
    reinit, finetuned = values["reinitialized"].info, values["finetuned"]
    return finetuned.variables, TSBDInfo(values["unlearned"].info, values["scores"], reinit, finetuned.history)


def given(config: TSBDSettings, clean: Batch | None, seed: int) -> Mapping[str, Any]:
    """The clean images, and the held-out parts where n is selected; raises InputError if they are too few."""
    assert clean is not None  # as `data` says
    images, chosen = len(clean.labels), config.selection
    fitted = images - round(chosen.held_out * images) if chosen.n else images
    for stage, available in (("unlearning", images), ("finetuning", fitted)):
        size = getattr(config.tsbd, stage).batch_size
        if available < size:
            held = f" ({images} but those held out to choose n)" if available < images else ""
            raise InputError(
                f"tsbd.{stage}.batch_size: expected at most {available}, as many as there are clean images{held}, "
                f"found {size}"
            )
    if not chosen.n:
        return {"clean": clean}
    folds = split_folds(np.asarray(clean.labels), held_out=chosen.held_out, folds=chosen.folds, seed=seed)
    return {"clean": clean, "folds": folds}


def build(
    setup: Setup,
    setting: tuple[jax.Array, jax.Array],
    *,
    config: TSBDSettings,
    victim: Variables,
    unlearned: Unlearned,
    scores: Scores,
    clean: Batch,
    key: jax.Array,
) -> Built:
    """Re-initialises the neurons and weights of a setting, and fine-tunes the network."""
    count, share = setting
    start, _ = reinitialize(
        victim, unlearned.variables, scores, setup.layers, count=count, share=share, scheme=config.tsbd.scheme
    )
    repaired, _ = finetune(
        setup.network,
        start,
        clean,
        key=plans.named_key(key, "finetuned"),
        config=config.tsbd.finetuning,
        augment=setup.augment,
    )
    return Built({"reinitialized": start, "finetuned": repaired})


def grid(config: TSBDSettings) -> Grid | None:
    """The pairs (n, m) that are measured."""
    pairs = config.pairs(config.sweep)
    if not pairs:
        return None
    return Grid(
        axes={"n": config.sweep.n, "m": config.tsbd.shares(config.sweep.m)},
        settings=pairs,
        arrays=lambda setup: sizes(setup, pairs),
        build=partial(build, config=config),
        needs=("victim", "unlearned", "scores", "clean"),
        along=("n", "m"),
        strength="n m, share of weights re-initialised",
        network="finetuned",
        unit="run",
    )


def chosen_setting(config: TSBDSettings, values: Mapping[str, Any]) -> tuple[float, float]:
    """The n and m of a run: those that were selected, or the settings; 0, 0 if no class is flagged."""
    if not is_flagged(values):
        return 0.0, 0.0
    if "selected" not in values:
        return config.tsbd.n, config.tsbd.shares()[0]
    return config.pairs(config.selection)[int(values["selected"].chosen)]


def outcome(config: TSBDSettings, values: Mapping[str, Any]) -> Outcome:
    """What was chosen and done, and the histories of unlearning and fine-tuning."""
    changed = is_flagged(values)
    unlearning, reinit = values["unlearned"].info, values["reinitialized"].info
    epochs = int(unlearning.epochs)
    accuracy = rounded(unlearning.accuracy[epochs - 1])
    selection = None
    if "selected" in values and changed:
        selected = values["selected"]
        selection = [
            {"n": n, "m": m, "held_out_accuracy": rounded(accuracy), "held_out_loss": rounded(loss)}
            for (n, m), accuracy, loss in zip(
                config.pairs(config.selection), selected.accuracy, selected.loss, strict=True
            )
        ]
    n, m = chosen_setting(config, values)
    chosen_by = "no class flagged" if not changed else "held-out clean images" if selection else "config"
    scored, count = count_neurons(reinit.neurons)
    zeroed = sum(int(mask.sum()) for mask in reinit.zeroed.values())
    history = plain_history(values["finetuned"])
    detected = "detected" in values
    return Outcome(
        choice={"n": n, "m": m, "chosen_by": chosen_by},
        done=f"{zeroed:,} weights of {count} of {scored} neurons re-initialised, {len(history['loss'])} epochs of "
        "fine-tuning",
        did="re-initialised",
        neurons={"scored": scored, "reinitialized": count, "weights_zeroed": zeroed},
        touched=reinit.neurons,
        scores=values["scores"],
        scored="Which neurons clean unlearning changed",
        warnings=unlearning_warnings(unlearning, name="tsbd.unlearning"),
        verdict=conclude(DETECTOR, config, values) if detected else None,
        more={
            "detection": plain_findings(config.detection, values) if detected else None,
            "selection": selection,
            "unlearning": {"epochs": epochs, "accuracy": accuracy, "reached_chance": bool(unlearning.reached)},
            "finetuning": history,
        },
    )


DETECTOR = pruning_detector("tsbd", TSBDSettings, data="clean images", plan=plan, is_calibrated=lambda config: True)
"""The detector of this defence, where it has one: by pruning and fusing, on clean images."""

DEFENSE = Defense(
    name="tsbd",
    Config=TSBDSettings,
    data="clean images",
    layers=lambda config: config.tsbd.layers,
    plan=plan,
    networks=lambda config: ("victim", "unlearned", "reinitialized", "finetuned"),
    outcome=outcome,
    given=given,
    grid=grid,
    detector=lambda config: DETECTOR if config.detection.gamma else None,
    batch_sizes=lambda config: {
        f"tsbd.{stage}.batch_size": getattr(config.tsbd, stage).batch_size for stage in ("unlearning", "finetuning")
    },
    source="arXiv 2405.20291",
)
