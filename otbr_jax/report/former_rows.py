"""Rows of earlier versions as they would be written today. All former names of what rows hold are in this file.

Names of settings, which rows hold in `config`, are not: `settings.field(..., formerly=...)` has those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DETECTED_BY = {
    "procedural pictures": "trigger_size",
    "images made from the network": "otbr_plus",
    "clean images": "tsbd",
}
"""Detectors by the images that older rows name instead."""
_OF_VERDICTS = ("backdoored", "suspect", "score", "scores", "threshold", "p_value")


_FORMERLY = {
    "answered": "predicted",
    "answers": "class_bias",
    "comes_back": "relearning",
    "comes_back_never": "relearning_never",
    "judged": "detected",
    "margin": "maximum_margin",
    "moved": "changed",
    "patched": "trigger_finetuned",
    "pictures": "procedural",
    "reached": "minimal",
    "recovered": "relearned",
    "short_cuts": "trigger_size",
    "taught": "distilled",
    "undone": "reverted",
    "usual": "calibrated",
}
"""Former names of keys, detectors and steps, and today's."""
_ABOUT_UNLEARNING = {"taught": "unlearned_triggers"}
"""The same of a whole row."""
_GROUPS = {"reach.": "inversion.", "teaching.": "unlearning."}
"""The same of groups of settings in texts."""
_STAGES = {
    "lessons": "trigger unlearning",
    "margins": "maximum margins",
    "pictures": "procedural images",
    "search": "trigger inversion",
}
"""The same of the stages whose growth was measured."""
_OF_OTHERS = ("config", "grid", "versions")


def current(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as it would be written today, whatever it was written with; `settings` reads its config."""
    names = _FORMERLY | _ABOUT_UNLEARNING
    row = {names.get(name, name): value if name in _OF_OTHERS else _renamed(value) for name, value in values.items()}
    for name in ("detector", "step"):
        if isinstance(row.get(name), str):
            row[name] = _FORMERLY.get(row[name], row[name])
    if "detector" in row and "cell" in row:
        row["cell"] = "/".join(_FORMERLY.get(part, part) for part in row["cell"].split("/"))
    if "stage" in row:
        row["stage"] = _STAGES.get(row["stage"], row["stage"])
    if isinstance(row.get("settings"), str):
        for former, group in _GROUPS.items():
            row["settings"] = row["settings"].replace(former, group)
    return _with_verdict(row)


def _renamed(value: Any) -> Any:
    """A value whose keys, and those inside it, have the names of today."""
    if isinstance(value, Mapping):
        return {_FORMERLY.get(name, name): _renamed(inner) for name, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value


def _with_verdict(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with a `verdict`, as `Verdict.plain` says it.

    Older rows of repairs have a `judgement`, which holds what is now `verdict` and `detection`; older rows of detectors
    have a verdict's fields beside their own; those of a spread and of screenings say what `stands_out`.
    """
    if "judgement" in values:
        return _of_judgement(
            {name: value for name, value in values.items() if name != "judgement"}, values["judgement"]
        )
    if isinstance(values.get("backdoored"), bool) and "detector" in values:
        rest = {name: value for name, value in values.items() if name not in _OF_VERDICTS}
        known = {name: values[name] for name in _OF_VERDICTS if name in values}
        backdoored = _backdoored(known["backdoored"])
        return rest | {"verdict": {"detector": values["detector"], **known, "backdoored": backdoored}}
    if "stands_out" in values:
        rest = {name: value for name, value in values.items() if name != "stands_out"}
        flagged = values["stands_out"]
        if isinstance(flagged, bool):
            return {"suspect": rest["suspect"], "score": rest["suspicion"], "backdoored": _backdoored(flagged)}
        return rest | {"flagged": flagged}
    verdicts = {name: _with_verdict(values[name]) for name in ("of_some", "of_all") if values.get(name)}
    return {**values, **verdicts} if verdicts else values


def _of_judgement(rest: dict[str, Any], judgement: Mapping[str, Any] | None) -> dict[str, Any]:
    if judgement is None:
        return rest | {"verdict": None, "detection": None}
    known, scores = dict(judgement), judgement["suspicion"]
    for name in ("stands_out", "suspicion", "false_positive_rate", "score"):
        known.pop(name, None)
    verdict = {
        "detector": _DETECTED_BY.get(known.pop("by", ""), ""),
        "backdoored": _backdoored(judgement["stands_out"]),
        "suspect": known.pop("suspect"),
        "score": scores[judgement["suspect"]],
        "scores": scores,
        "threshold": known.pop("threshold", None),
        "p_value": known.pop("p_value", None),
        "evidence": known.pop("evidence", {}),
    }
    if "reach_cost" in known:
        known["trigger_size"] = known.pop("reach_cost")
    elif "trigger_size" in known:
        known["trigger_size"] = {"patch": known["trigger_size"]}
        if "perturbation_strength" in known:
            known["trigger_size"] |= {"perturbation": known.pop("perturbation_strength")}
        known["trigger_success"] = {"patch": known["trigger_success"]}
    return rest | {"verdict": verdict, "detection": known}


def _backdoored(flagged: bool) -> str:
    return "yes" if flagged else "no"
