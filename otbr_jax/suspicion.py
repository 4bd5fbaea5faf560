"""Is there a backdoor, for which class, and is it gone? Judged by images that were made from the network itself.

Three things tell the attacker's class. A patch that is reverse-engineered for it covers less of the image than those
of other classes (Neural Cleanse's observation). So is a perturbation of the whole image weaker, which tells triggers
that no small patch imitates. And while neurons are pruned and fused in order of their weight change, the patch stops
working, and images made for the class stop being recognised, before those of other classes: both live on the neurons
that are taken first. Each is found in clean networks too, where one class is easier to imitate and another falls first
by chance; so what a class has of all three is added, the two that say less by half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.inversion import InversionConfig, Inverted, trigger_success
from otbr_jax.synthetic import SyntheticConfig
from otbr_jax.types import Batch, Network, Variables


@dataclasses.dataclass(frozen=True)
class SuspicionConfig:
    """How a network is judged, and gamma and lambda are chosen, without data.

    Attributes:
      gamma: shares of neurons to try, each in [0, 1]; empty for no judgement: gamma and lambda are then the method's.
      lam: the paper's lambdas to try, each in [0, 1].
      synthetic: how images are made from the network.
      patch: how a patch is reverse-engineered on them for each class.
      perturbation: how a perturbation of the whole image is.
      agreement: settings at which fewer of the images keep their answer say nothing about single classes, in [0, 1].
      least_agreement: settings at which fewer of the images of other classes than the suspicious one keep their answer
        are not chosen, in [0, 1].
      threshold: the suspicion from which a class stands out.
      remaining: what may remain of the suspicious class for a setting to count as repaired, see `remaining`.
    """

    gamma: tuple[float, ...] = ()
    lam: tuple[float, ...] = (0.5, 0.75)
    synthetic: SyntheticConfig = SyntheticConfig()
    patch: InversionConfig = InversionConfig(steps=80)
    perturbation: InversionConfig = InversionConfig(steps=80, learning_rate=0.03, size=30.0)
    agreement: float = 0.9
    least_agreement: float = 0.6
    threshold: float = 0.41
    remaining: float = 0.02

    def __post_init__(self) -> None:
        for field in ("gamma", "lam"):
            for value in getattr(self, field):
                if not 0 <= value <= 1:
                    raise InputError(f"suspicion.{field}: expected fractions in [0, 1], found {value}")
        if self.gamma and not self.lam:
            raise InputError(f"suspicion.lam: expected lambdas beside suspicion.gamma {[*self.gamma]}, found none")
        for field in ("agreement", "least_agreement", "remaining"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"suspicion.{field}: expected a share in [0, 1], found {getattr(self, field)}")


class Answers(NamedTuple):
    """How a network answers the images that were made from the original; leading axes for several networks.

    Attributes:
      agreement: `[classes]`, of the images that the original gives a class, the share that keeps it; 1 without any.
      success: `[classes]`, of the images of other classes, the share that a class's trigger turns into it.
    """

    agreement: jax.Array
    success: jax.Array


def answers(
    network: Network,
    variables: Variables,
    images: Batch,
    triggers: Inverted,
    *,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> Answers:
    """Asks a network; `images` are `[n, h, w, c]` in [0, 1] with the original's answers `[n]`."""
    found = jnp.argmax(network.apply(variables, prepare(images.images)), axis=-1)
    classes = jnp.arange(network.num_classes)
    own = images.labels[None, :] == classes[:, None]
    count = jnp.sum(own, axis=1)
    kept = jnp.sum(own & (found == images.labels)[None, :], axis=1)
    agreement = jnp.where(count > 0, kept / jnp.maximum(count, 1), 1.0)

    def success(trigger: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        mask, pattern, target = trigger
        return trigger_success(network, variables, images, mask, pattern, target, prepare=prepare)

    return Answers(agreement, jax.lax.map(success, (triggers.mask, triggers.pattern, classes)))


def suspicions(triggers: Inverted, along: Answers, *, agreement: float) -> jax.Array:
    """How far every class stands out, `[classes]`, below 2; the sum of three kinds of evidence.

    How much smaller its patch is: `1 - size / median size`. Half of how much weaker its perturbation is:
    `1 - strength / median strength`. And half of how much earlier it falls than any other class: what it has lost more
    than the one that lost most of the others, or 0. What is lost is `1 - mean over settings (remaining)`, see
    `remaining`, over the settings at which the share `agreement` of the images keeps its answer, or over all if there
    are none. The halves are the simplest weights that told the bench's victims from its clean networks.

    Args:
      triggers: the original network's, one for each class.
      along: `[settings, classes]`, of networks with more and more neurons pruned and fused.
      agreement: in [0, 1].
    """
    together = jnp.mean(along.agreement, axis=1)
    admitted = together >= agreement
    admitted = jnp.where(jnp.any(admitted), admitted, True)
    left = along.agreement * jnp.minimum(_relative(along.success), 1.0)
    lost = 1 - jnp.sum(left * admitted[:, None], axis=0) / jnp.sum(admitted)
    others = jnp.max(jnp.where(jnp.eye(len(lost), dtype=bool), -jnp.inf, lost[None, :]), axis=1)
    smaller, weaker = (1 - _relative(values[None])[0] for values in (triggers.size, triggers.strength))
    return smaller + (weaker + jnp.maximum(lost - others, 0.0)) / 2


def remaining(along: Answers, suspect: jax.Array | int) -> jax.Array:
    """What remains of a suspicious class at every setting, `[settings]`, at least 0.

    The share of its images that keep their answer, times how well its trigger works against the median of all classes.
    Images made for the attacker's class hold what the backdoor looks for, and so are lost with it.
    """
    return along.agreement[:, suspect] * _relative(along.success)[:, suspect]


class Judgement(NamedTuple):
    """What was found, and which setting was chosen.

    Attributes:
      suspicion: `[classes]`, see `suspicions`.
      suspect: the class with the highest one.
      stands_out: whether that reaches the threshold: nothing to repair otherwise.
      remaining: `[settings]`, of the suspect.
      chosen: index of the setting with the highest agreement among those that leave little of the suspect; where none
        does, of the one that leaves least among those that still agree enough.
    """

    suspicion: jax.Array
    suspect: jax.Array
    stands_out: jax.Array
    remaining: jax.Array
    chosen: jax.Array


def judge(triggers: Inverted, along: Answers, *, config: SuspicionConfig) -> Judgement:
    """Judges a network by its triggers and by how networks with more and more neurons pruned answer.

    Args:
      triggers: the original network's, one for each class.
      along: `[settings, classes]`, in order of strength.
      config: what counts as suspicious and as repaired.
    """
    suspicion = suspicions(triggers, along, agreement=config.agreement)
    suspect = jnp.argmax(suspicion)
    left = remaining(along, suspect)
    gone = left <= config.remaining
    agreement = jnp.mean(along.agreement, axis=1)
    others = jnp.mean(along.agreement, axis=1, where=jnp.arange(len(suspicion)) != suspect)
    sound = (others >= config.least_agreement) | (others == jnp.max(others))
    least = jnp.argmin(jnp.where(sound, left, jnp.inf))
    chosen = jnp.where(jnp.any(gone & sound), jnp.argmax(jnp.where(gone & sound, agreement, -1.0)), least)
    return Judgement(suspicion, suspect, suspicion[suspect] >= config.threshold, left, chosen)


def _relative(values: jax.Array) -> jax.Array:
    """Values `[settings, classes]` over the median of each setting; 1 where that is 0."""
    middle = jnp.median(values, axis=1, keepdims=True)
    return jnp.where(middle > 0, values / jnp.where(middle > 0, middle, 1.0), 1.0)
