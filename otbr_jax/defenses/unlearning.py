"""Clean unlearning as a step of a plan: the first step of TSBD and RNP."""

from __future__ import annotations

import logging
from functools import partial

import jax
import numpy as np

from otbr_jax.defenses.otbr import Unlearned
from otbr_jax.errors import InputError
from otbr_jax.plan import Report, Setup, Shown, Step, needs
from otbr_jax.steps.unlearn import CleanUnlearningConfig, CleanUnlearningInfo, clean_unlearning
from otbr_jax.types import Batch, Variables

log = logging.getLogger(__name__)


def clean_unlearning_step(config: CleanUnlearningConfig, *, group: str) -> Step:
    """The step `unlearned`: gradient ascent on the clean images until chance. Errors call its settings `group`."""
    return Step(
        "unlearned",
        unlearn_clean,
        needs("victim", "clean"),
        config,
        check=partial(check_clean_unlearning, name=group),
        shown=Shown("unlearning clean images", total=config.max_epochs, unit="epoch"),
    )


def unlearn_clean(
    setup: Setup,
    settings: CleanUnlearningConfig,
    *,
    victim: Variables,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Unlearned:
    """Step 1: clean unlearning until chance."""
    unlearned, info = clean_unlearning(
        setup.network,
        victim,
        clean,
        key=key,
        config=settings,
        augment=setup.augment,
        axis_name=setup.axis_name,
        on_epoch=report,
    )
    return Unlearned(unlearned, info)


def check_clean_unlearning(settings: CleanUnlearningConfig, unlearned: Unlearned, *, name: str) -> None:
    """Raises InputError, which calls the settings `name`, if clean unlearning diverged; warns if it missed chance."""
    info, leaves = unlearned.info, jax.tree.leaves(unlearned.variables)
    epochs = int(info.epochs)
    loss = info.loss[epochs - 1]
    if not np.isfinite(loss) or not all(bool(np.isfinite(leaf).all()) for leaf in leaves):
        raise InputError(
            f"{name}.learning_rate: expected a finite loss, found {loss} in epoch {epochs}; lower it from "
            f"{settings.learning_rate:g}"
        )
    for line in unlearning_warnings(info, name=name):
        log.warning("%s", line)


def unlearning_warnings(info: CleanUnlearningInfo, *, name: str) -> list[str]:
    """A line if clean unlearning, whose settings are called `name`, did not reach chance; empty otherwise."""
    if info.reached:
        return []
    epochs = int(info.epochs)
    return [
        f"clean unlearning did NOT reach chance: accuracy {100 * info.accuracy[epochs - 1]:.1f} % after {epochs} "
        f"epochs; raise {name}.max_epochs or its learning_rate"
    ]
