"""What a defence is: a plan, and the outcome of a run of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from otbr_jax.defenses.grid import Grid
from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import Verdict
from otbr_jax.metrics import rounded as rounded  # defences import it from here
from otbr_jax.plan import Plan, Setup
from otbr_jax.steps.score import Scores
from otbr_jax.types import Batch


class Outcome(NamedTuple):
    """What a defence reports of a run, as plain JSON values, and arrays that the report draws.

    Attributes:
      choice: the settings that were used, and `chosen_by`: by what they were chosen.
      done: what was done, in a clause.
      did: what happened to the neurons of `touched`, in a word such as `pruned`.
      neurons: how many were scored, and how many of them `touched` has.
      touched: `{layer name: bool [neurons]}`.
      scores: `{layer name: [neurons]}`, higher for neurons that are more likely touched.
      score: what a score is, in words.
      scored: what the scores show, a heading.
      warnings: what the user should know, a sentence each.
      verdict: whether the network is backdoored; None for a defence without a detector.
      more: what only this method reports, by name.
      plan: the transport plan to show, `(layer name, [neurons, neurons])`; None without one.
    """

    choice: Mapping[str, Any]
    done: str
    did: str
    neurons: Mapping[str, int]
    touched: Mapping[str, jax.Array]
    scores: Scores
    score: str = "neuron weight change (L1)"
    scored: str = "Which neurons unlearning changed"
    warnings: Sequence[str] = ()
    verdict: Verdict | None = None
    more: Mapping[str, Any] = {}
    plan: tuple[str, Any] | None = None


def nothing_more(config: Any, clean: Batch | None, seed: int) -> Mapping[str, Any]:
    """The `Defense.given` of a defence that needs the network alone, or the network and clean images."""
    del config, seed
    return {} if clean is None else {"clean": clean}


@dataclasses.dataclass(frozen=True)
class Defense:
    """A method that repairs networks. A file of this package with a `DEFENSE` in it is all that one takes.

    Attributes:
      name: as `--config.defense` names it.
      Config: its settings, a dataclass whose fields are groups of settings. All have defaults.
      data: what it takes besides the network: `none`, or `clean images`.
      layers: `config -> name`, which layers it repairs; see `choose_layers`.
      plan: `config -> Plan`. Its steps may need `victim`, the suspicious network's variables, and what `given` returns.
      networks: `config -> names`: `victim` and the steps whose value has `variables`; the last is the repaired network.
      outcome: `(config, {step: value}) -> Outcome`.
      check: `(setup, config)`; raises InputError if the method cannot be used on such a network.
      given: `(config, clean images or None, seed) -> {name: arrays}`; raises InputError if the images are too few.
      grid: `config -> Grid`, the settings to measure beside the chosen one; None for none.
      detector: `config -> Detector`, which takes the same settings; None for a defence that does not check for a
        backdoor first.
      batch_sizes: `config -> {setting: size}`, the batches that devices share.
      source: where it was published, such as `arXiv 2405.20291`; by default in this project.
    """

    name: str
    Config: type
    data: str
    layers: Callable[[Any], str]
    plan: Callable[[Any], Plan]
    networks: Callable[[Any], tuple[str, ...]]
    outcome: Callable[[Any, Mapping[str, Any]], Outcome]
    check: Callable[[Setup, Any], None] = lambda setup, config: None
    given: Callable[[Any, Batch | None, int], Mapping[str, Any]] = nothing_more
    grid: Callable[[Any], Grid | None] = lambda config: None
    detector: Callable[[Any], Detector | None] = lambda config: None
    batch_sizes: Callable[[Any], Mapping[str, int]] = lambda config: {}
    source: str = "otbr_jax"


def count_neurons(masks: Mapping[str, Any]) -> tuple[int, int]:
    """The number of neurons in masks `{layer: bool [neurons]}`, and how many of them are true."""
    return sum(int(mask.size) for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
