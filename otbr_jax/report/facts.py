"""The facts of a run that the answers of a report rest on: what was flagged, what changed, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from otbr_jax.detectors.verdict import Backdoored, Verdict, read_verdict
from otbr_jax.report.leaderboard import LEARNED, LEFT
from otbr_jax.report.summary import is_changed


class Facts(NamedTuple):
    """What is known after a run.

    Attributes:
      method: its name in capitals.
      verdict: whether it is backdoored; None where no detector ran.
      changed: whether the network afterwards is another one.
      reverted: whether unlearning was in vain.
      acc: before and after, shares in [0, 1]; None where it was not measured.
      asr: the same.
      ra: the same.
      summary: of `results.summarize`.
    """

    method: str
    verdict: Verdict | None
    changed: bool
    reverted: bool
    acc: tuple[float, float] | None
    asr: tuple[float, float] | None
    ra: tuple[float, float] | None
    summary: Mapping[str, Any]

    @property
    def flagged(self) -> bool:
        """Whether a class is flagged."""
        return self.verdict is not None and self.verdict.backdoored == Backdoored.YES

    @property
    def undecided(self) -> bool:
        """Whether it is neither yes nor no: no detector ran, or the verdict is *cannot tell*."""
        return self.verdict is None or self.verdict.backdoored == Backdoored.CANNOT_TELL

    @property
    def known(self) -> bool:
        """Whether a trigger is known that works on the suspicious network."""
        return self.asr is not None and self.asr[0] >= LEARNED

    @property
    def left(self) -> bool:
        """Whether the backdoor is known to be there still, or was detected and not removed."""
        if self.known and self.asr is not None:
            return self.asr[1] > LEFT
        return self.flagged and not self.changed

    @property
    def lost(self) -> float:
        """Accuracy before less accuracy after; 0 where it was not measured."""
        return 0.0 if self.acc is None else self.acc[0] - self.acc[1]

    @property
    def target(self) -> int | None:
        """The attacker's class, where there is one and the settings say it."""
        attack = self.summary.get("config", {}).get("attack", {})
        return None if attack.get("labels") == "all_to_all" else attack.get("target")


def read_facts(summary: Mapping[str, Any]) -> Facts:
    """The facts of `results.summarize`; of its fields, `metrics` is enough."""
    before, after = ([*summary["metrics"].values()][place] or {} for place in (0, -1))
    verdict, unlearned = summary.get("verdict"), summary.get("unlearned_triggers") or ()

    def both(metric: str) -> tuple[float, float] | None:
        first, last = before.get(metric), after.get(metric)
        return None if first is None or last is None else (first, last)

    return Facts(
        method=summary["defense"].upper() if "defense" in summary else "The method",
        verdict=None if verdict is None else read_verdict(verdict),
        changed=is_changed(summary),
        reverted=any(each["reverted"] for each in unlearned),
        acc=both("acc"),
        asr=both("asr"),
        ra=both("ra"),
        summary=summary,
    )
