"""FreeEagle: intermediate representations of other classes have a high posterior of the target class, too.

The network is cut in two. For each class an intermediate representation is optimised that the second part classifies as
that class. Its posteriors of the other classes leak information: features of a backdoor override all others, and so the
target class has a high posterior whatever class the representation is of.

Source: Fu et al., FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases, USENIX Security 2023, arXiv
2302.14500, and the authors' code, whose settings these are. What differs: the network is cut by `graph.cut`, at half of
its kernels, where the authors name a layer of each architecture; quartiles are interpolated; and only class-agnostic
backdoors are detected, not class-specific ones. The authors choose a threshold on networks for development; 2 is close
to that of their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import Verdict, verdict_of
from otbr_jax.graph.cut import cut
from otbr_jax.inversion import descend
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.types import Network, Variables

FEWEST = 4
"""Classes that an outlier needs: of three the metric is at most 1, of two always a half."""


@settings("free_eagle")
class FreeEagleConfig:
    """Where the network is cut, how representations are optimised, and when a class is flagged."""

    cut: float = field(
        default=0.5, at_least=0, at_most=1, doc="share of the network's kernels in front of the cut; 0 is the input."
    )
    dummies: int = field(default=1, at_least=1, doc="representations of each class, which are averaged.")
    steps: int = field(default=1000, at_least=1, doc="of Adam.")
    learning_rate: float = field(default=0.01, above=0, doc="of Adam.")
    weight_decay: float = field(default=5e-3, at_least=0, doc="added to the gradients, as PyTorch's Adam does.")
    threshold: float = field(default=2.0, above=0, doc="the anomaly metric from which a class is flagged.")


def leaked_posteriors(network: Network, variables: Variables, *, key: jax.Array, config: FreeEagleConfig) -> jax.Array:
    """Posteriors of the second part of the network for each class's representation, `[classes, classes]`. Pure; jits.

    Args:
      network: the functions of the network.
      variables: its variables.
      key: typed PRNG key of the starts.
      config: the settings.
    """
    classes, count = network.num_classes, config.dummies * network.num_classes
    noise_key, start_key = jax.random.split(key)
    noise = network.prepare(jax.random.uniform(noise_key, (count, *network.image_shape)))
    parts = cut(network.apply, variables, jax.ShapeDtypeStruct(noise.shape, noise.dtype), share=config.cut)
    labels = jnp.repeat(jnp.arange(classes), config.dummies)
    # Behind a ReLU nothing is below 0, which noise shows of any network.
    lowest = jnp.where(jnp.min(parts.front(variables, noise)) >= 0, 0.0, -jnp.inf).astype(parts.inner.dtype)

    def loss(inner: jax.Array, *_: None) -> jax.Array:
        logits = parts.rest(variables, inner).astype(jnp.float32)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    optimised, _ = descend(
        loss,
        jax.random.uniform(start_key, parts.inner.shape, parts.inner.dtype),
        optimizer=optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(config.learning_rate)),
        steps=config.steps,
        project=lambda inner: jnp.maximum(inner, lowest),
    )
    # The second part takes as many as it was traced with: each class's mean is repeated.
    means = jnp.mean(optimised.point.reshape(classes, config.dummies, *parts.inner.shape[1:]), axis=1)
    logits = parts.rest(variables, jnp.repeat(means, config.dummies, axis=0))[:: config.dummies]
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def leak(
    setup: Setup, settings: FreeEagleConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> jax.Array:
    """Posteriors, `[classes, classes]`, a row for each class's representation."""
    del report
    return leaked_posteriors(setup.network, victim, key=key, config=settings)


def anomaly_metrics(posteriors: np.ndarray) -> np.ndarray:
    """How far the mean posterior of each class is above the upper quartile, in interquartile ranges.

    Args:
      posteriors: float64 `[classes, classes]`, at least two classes; a row for each class's representation.

    Returns:
      `(v - q3) / (q3 - q1)` for each class, where v is its mean posterior for the other classes' representations.
    """
    others = posteriors * (1 - np.eye(len(posteriors)))
    means = others.sum(axis=0) / (len(posteriors) - 1)
    low, high = np.percentile(means, [25, 75])
    metrics: np.ndarray = (means - high) / max(high - low, 1e-6 * max(high, 1e-30))
    return metrics


def plan(config: FreeEagleConfig) -> Plan:
    """One step, `posteriors`."""
    return (Step("posteriors", leak, needs("victim"), config, shown=Shown("optimising intermediate representations")),)


def verdict(config: FreeEagleConfig, values: Mapping[str, Any]) -> Verdict:
    """The verdict on the largest anomaly metric."""
    return verdict_of(anomaly_metrics(np.asarray(values["posteriors"], np.float64)), threshold=config.threshold)


DETECTOR = Detector(
    name="free_eagle",
    Config=FreeEagleConfig,
    data="none",
    plan=plan,
    verdict=verdict,
    fewest_classes=FEWEST,
)
