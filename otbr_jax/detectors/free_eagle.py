"""FreeEagle: inner representations that mean some class say the attacker's class a little, too.

The network is cut in two. For each class a representation is optimised that the rest of the network takes for that
class; how likely it takes it for each other class says how much that other class attracts. A backdoor's features,
which override all others, make its class attract more.

Source: Fu et al., FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases, USENIX Security 2023, arXiv
2302.14500, and the authors' code, whose settings these are. What differs: the network is cut by `graph.cut`, at half of
its kernels, where the authors name a layer of each architecture; quartiles are interpolated; and only attacks on all
classes are asked for, not those on single ones. The authors settle a threshold on networks for development; that of 2
is about what their code has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.detectors.detector import Detector, Verdict
from otbr_jax.graph.cut import cut
from otbr_jax.metrics import settled
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.convolutions import channels_last
from otbr_jax.types import Network, Variables


@settings("free_eagle")
class FreeEagleConfig:
    """Where the network is cut, how representations are optimised, and when a class attracts too much."""

    cut: float = field(
        default=0.5, at_least=0, at_most=1, doc="share of the network's kernels in front of the cut; 0 is the input."
    )
    dummies: int = field(default=1, at_least=1, doc="representations of each class, whose mean is asked about.")
    steps: int = field(default=1000, at_least=1, doc="of Adam.")
    learning_rate: float = field(default=0.01, above=0, doc="of Adam.")
    weight_decay: float = field(default=5e-3, at_least=0, doc="added to the gradients, as PyTorch's Adam does.")
    threshold: float = field(default=2.0, above=0, doc="the anomaly metric from which a class stands out.")


def leaked_posteriors(network: Network, variables: Variables, *, key: jax.Array, config: FreeEagleConfig) -> jax.Array:
    """What the rest of the network says of each class's representation, `[classes, classes]`: posteriors. Pure; jits.

    Args:
      network: the functions of the network.
      variables: its variables.
      key: typed PRNG key of the starts.
      config: how.
    """
    classes, count = network.num_classes, config.dummies * network.num_classes
    noise_key, start_key = jax.random.split(key)
    noise = network.prepare(jax.random.uniform(noise_key, (count, *network.image_shape)))
    parts = cut(network.apply, variables, jax.ShapeDtypeStruct(noise.shape, noise.dtype), share=config.cut)
    wanted = jnp.repeat(jnp.arange(classes), config.dummies)
    # Behind a ReLU nothing is below 0, which noise shows of any network.
    lowest = jnp.where(jnp.min(parts.front(variables, noise)) >= 0, 0.0, -jnp.inf).astype(parts.inner.dtype)

    def loss(inner: jax.Array) -> jax.Array:
        logits = parts.rest(variables, inner).astype(jnp.float32)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, wanted))

    gradient = channels_last(jax.grad(loss))
    optimizer = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(config.learning_rate))

    def step(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
        inner, moments = carry
        updates, moments = optimizer.update(gradient(inner), moments, inner)
        return (jnp.maximum(optax.apply_updates(inner, updates), lowest), moments), None

    start = jax.random.uniform(start_key, parts.inner.shape, parts.inner.dtype)
    (inner, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=config.steps)
    # The rest takes as many as it was traced with: each class's mean stands in for all of its own.
    means = jnp.mean(inner.reshape(classes, config.dummies, *inner.shape[1:]), axis=1)
    logits = parts.rest(variables, jnp.repeat(means, config.dummies, axis=0))[:: config.dummies]
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def leak(
    setup: Setup, settings: FreeEagleConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> jax.Array:
    """Posteriors, `[classes, classes]`: of each class's representation, of being each class."""
    del report
    return leaked_posteriors(setup.network, victim, key=key, config=settings)


def anomaly_metrics(posteriors: np.ndarray) -> np.ndarray:
    """How far each class attracts other classes' representations beyond the upper quartile, in quartile distances.

    Args:
      posteriors: float64 `[classes, classes]`, at least two: of each class's representation, of being each class.

    Returns:
      `(v - q3) / (q3 - q1)` for each class, where v is its mean posterior over the other classes' representations.
    """
    off = posteriors * (1 - np.eye(len(posteriors)))
    attracted = off.sum(axis=0) / (len(posteriors) - 1)
    low, high = np.percentile(attracted, [25, 75])
    metrics: np.ndarray = (attracted - high) / max(high - low, 1e-6 * max(high, 1e-30))
    return metrics


def plan(config: FreeEagleConfig) -> Plan:
    """One step, `posteriors`."""
    return (Step("posteriors", leak, needs("victim"), config, shown=Shown("optimising inner representations")),)


def verdict(config: FreeEagleConfig, values: Mapping[str, Any]) -> Verdict:
    """The largest anomaly metric."""
    metrics = anomaly_metrics(np.asarray(values["posteriors"], np.float64))
    suspect, scores = int(np.argmax(metrics)), tuple(settled(metric) for metric in metrics)
    return Verdict(scores[suspect], suspect, scores[suspect] > config.threshold, config.threshold, None, scores)


DETECTOR = Detector(
    name="free_eagle",
    Config=FreeEagleConfig,
    data="none",
    by="inner representations",
    score="anomaly metric",
    plan=plan,
    verdict=verdict,
)
