"""What a defence is: a plan, and what a reader wants to know of a run of it."""

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
    """What a reader wants to know of a run, as plain JSON values but for arrays that a page draws.

    Attributes:
      choice: the settings that were used, and `chosen_by` whom.
      done: what was done, in a clause.
      did: what happened to the neurons of `touched`, in a word.
      neurons: how many were scored, and touched.
      touched: `{layer name: bool [neurons]}`.
      scores: `{layer name: [neurons]}`, by which they were chosen, the highest first.
      score: what a score is, in words.
      scored: what a score says, a heading.
      warnings: what went less well than it should, a sentence each.
      verdict: whether the network is backdoored; None of a defence that does not ask.
      more: what only this method has to say, by name.
      plan: the transport plan to show, `(layer name, [neurons, neurons])`, None without.
    """

    choice: Mapping[str, Any]
    done: str
    did: str
    neurons: Mapping[str, int]
    touched: Mapping[str, jax.Array]
    scores: Scores
    score: str = "neuron weight change (L1)"
    scored: str = "Which neurons unlearning moved"
    warnings: Sequence[str] = ()
    verdict: Verdict | None = None
    more: Mapping[str, Any] = {}
    plan: tuple[str, Any] | None = None


def nothing_more(config: Any, clean: Batch | None, seed: int) -> Mapping[str, Any]:
    """The `Defense.given` of a defence that needs nothing but the network, and clean images if it takes any."""
    del config, seed
    return {} if clean is None else {"clean": clean}


@dataclasses.dataclass(frozen=True)
class Defense:
    """A method that repairs networks. A file of this package with a `DEFENSE` in it is all that one takes.

    Attributes:
      name: as `--config.defense` names it.
      Config: its settings, a dataclass whose fields are groups of settings. All have defaults.
      data: what it takes beside the network: `none`, or `clean images`.
      layers: `config -> which layers it repairs`, see `choose_layers`.
      plan: `config -> Plan`. Its steps may need `victim`, the suspicious network's variables, and what `given` returns.
      networks: `config -> names`: `victim` and the steps whose value has `variables`; the last is the repaired network.
      outcome: `(config, {step: value}) -> Outcome`.
      check: `(setup, config)`; raises InputError if the method cannot be used on such a network.
      given: `(config, clean images or None, seed) -> {name: arrays}`; raises InputError if the images are too few.
      candidates: `config -> Candidates`, None without any.
      detector: `config -> Detector`, which takes the same settings; None for a defence that does not look whether there
        is a backdoor.
      batch_sizes: `config -> {setting: size}`, the batches that devices share.
      source: where it was published, such as `arXiv 2405.20291`; by default here.
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
    """How many neurons masks `{layer: bool [neurons]}` are about, and how many of them are true."""
    return sum(int(mask.size) for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
