"""MM-BD: the target class of a backdoor has a far larger maximum margin than other classes.

Source: Wang, Xiang, Miller, Kesidis, MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern
Types Using a Maximum Margin Statistic, S&P 2024, arXiv 2205.06900. What differs: margins are maximised by Adam on
images before a logistic function (`steps.margin`, as in `trigger_size`), where the authors take steps of gradient
ascent and clip images to [0, 1]; and the null distribution's power is K - 1, as in the paper, where their code has
K, the number of classes.

A gamma distribution that is fitted to few margins, without the largest one, is too narrow: its p-values are
anti-conservative. Of ten independent normal margins 19 in 100 p-values are below 0.05, of 43 margins 5 in 100; with the
exponential distribution none are. Of six margins 32 in 100 are, of five 46, of three 70, of two all: fewer than
`FEWEST` are no comparison.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import Verdict, verdict_of
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.margin import MarginConfig, maximum_margins
from otbr_jax.types import Variables

NULLS = ("gamma", "exponential")
FEWEST = 6
"""Classes that a distribution can be fitted to, without the one of the largest margin."""


@settings("mm_bd")
class MMBDConfig:
    """How maximum margins are searched, and when one is too large."""

    margin: MarginConfig = field(
        default=MarginConfig(steps=300, images=30, learning_rate=0.1), doc="how maximum margins are searched."
    )
    null: str = field(
        default="gamma",
        choices=NULLS,
        doc="the distribution of clean networks' margins, fitted to all margins but the largest.",
    )
    significance: float = field(
        default=0.05, above=0, below=1, doc="the p-value below which a network counts as backdoored."
    )


def search_margins(
    setup: Setup, settings: MarginConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> jax.Array:
    """The maximum margin of each class, `[classes]`: how far an image can raise its logit above all others."""
    return maximum_margins(setup.network, victim, key=key, config=settings, axis_name=setup.axis_name, on_step=report)


def p_values(maximum_margins: np.ndarray, *, null: str = "gamma") -> np.ndarray:
    """The probability that the largest of as many clean margins is as large as each of these, `[classes]`.

    `1 - H(r)^(K - 1)` for K classes, where H is fitted to all margins but the largest. A gamma distribution's shape,
    location and scale are fitted by maximum likelihood; an exponential one starts at the smallest margin and has their
    mean. If all margins but the largest are equal, a larger one has the p-value 0, all others 1.

    Args:
      maximum_margins: float64 `[classes]`, at least two.
      null: one of `NULLS`.
    """
    from scipy import stats  # slow to import, and not needed by other detectors

    others = np.delete(maximum_margins, np.argmax(maximum_margins))
    if np.ptp(others) < 1e-9 * max(1.0, float(np.max(np.abs(others)))):
        return np.where(maximum_margins > np.max(others), 0.0, 1.0)
    fitted = stats.expon(loc=np.min(others), scale=np.mean(others) - np.min(others))
    if null == "gamma":
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of the maximum-likelihood fit
            shape, loc, scale = stats.gamma.fit(others)
        fitted = stats.gamma(shape, loc=loc, scale=scale)
    with np.errstate(divide="ignore"):  # where the null has no margin as small, the p-value is 1
        probabilities: np.ndarray = -np.expm1((len(maximum_margins) - 1) * np.log1p(-fitted.sf(maximum_margins)))
    return probabilities


def plan(config: MMBDConfig) -> Plan:
    """One step, `maximum_margins`."""
    return (
        Step(
            "maximum_margins",
            search_margins,
            needs("victim"),
            config.margin,
            key="largest_margins",
            shown=Shown("searching maximum margins", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
    )


def verdict(config: MMBDConfig, values: Mapping[str, Any]) -> Verdict:
    """The verdict on the largest margin's p-value; a class's score is its negative decimal logarithm."""
    margins = np.asarray(values["maximum_margins"], np.float64)
    probabilities = p_values(margins, null=config.null)
    scores = np.abs(np.log10(np.maximum(probabilities, 1e-300)))
    return verdict_of(
        scores,
        threshold=rounded(-np.log10(config.significance)),
        suspect=int(np.argmax(margins)),
        p_value=float(np.min(probabilities)),
        evidence={"maximum_margin": tuple(rounded(margin) for margin in margins)},
    )


DETECTOR = Detector(
    name="mm_bd",
    Config=MMBDConfig,
    data="none",
    plan=plan,
    verdict=verdict,
    fewest_classes=FEWEST,
)
