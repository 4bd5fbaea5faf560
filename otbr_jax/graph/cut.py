"""A network cut in two where a single array carries all information about the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from otbr_jax.graph.evaluate import CUSTOM, RECOMPUTED, equations, evaluate, inner_programs
from otbr_jax.types import ApplyFn, Variables

_KERNELS = frozenset(("conv_general_dilated", "dot_general"))


class Cut(NamedTuple):
    """The two parts of a network, for as many images as it was traced with.

    Attributes:
      inner: shape and dtype of the array between them, the images first.
      front: `(variables, images [n, h, w, c]) -> inner`.
      rest: `(variables, inner) -> logits [n, classes]`.
      before: number of the network's convolutions and products in front.
    """

    inner: jax.ShapeDtypeStruct
    front: Callable[[Variables, jax.Array], jax.Array]
    rest: Callable[[Variables, jax.Array], jax.Array]
    before: int


def cut(apply: ApplyFn, variables: Variables, images: jax.ShapeDtypeStruct, *, share: float) -> Cut:
    """Cuts a network where the share of its convolutions and matrix products in front is nearest to `share`.

    Any network that JAX can trace has such a place: at the latest its input. Between two kernels the cut is the last
    possible one, after the normalisation and the activation. Cuts lie between residual blocks, never inside one.

    Args:
      apply: evaluation-mode function of the network.
      variables: its variables (arrays or `jax.ShapeDtypeStruct`).
      images: shape and dtype of its images, `[n, h, w, c]`.
      share: in [0, 1]; 0 cuts at the input.
    """

    def inlined(variables: Variables, images: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(apply)(variables, images)
        (logits,) = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((variables, images)))
        return logits

    closed = jax.make_jaxpr(inlined)(variables, images)
    jaxpr, eqns = closed.jaxpr, closed.jaxpr.eqns
    (logits,), image = jaxpr.outvars, jaxpr.invars[-1]
    reached, depends, used = {image}, [], {logits: len(eqns)}
    for place, eqn in enumerate(eqns):
        own = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
        used |= dict.fromkeys(own, place)
        depends.append(any(atom in reached for atom in own))
        if depends[-1]:
            reached.update(eqn.outvars)
    kernels = [depends[place] and _has_kernel(eqn) for place, eqn in enumerate(eqns)]
    places: list[tuple[float, int, Any, int]] = []
    alive, before = {image}, 0
    for place, eqn in enumerate(eqns):
        alive = {atom for atom in alive if used.get(atom, -1) >= place}
        if len(alive) == 1 and jnp.issubdtype((one := next(iter(alive))).aval.dtype, jnp.inexact):
            places.append((abs(before - share * sum(kernels)), -place, one, before))
        before += kernels[place]
        alive |= set(eqn.outvars) if depends[place] else set()
    _, where, inner, before = min(places, key=lambda place: place[:2])
    later = [eqn for place, eqn in enumerate(eqns) if place >= -where or not depends[place]]
    front_jaxpr = jaxpr.replace(eqns=eqns[:-where], outvars=[inner])
    rest_jaxpr = jaxpr.replace(eqns=later, invars=[*jaxpr.invars[:-1], inner])

    def front(variables: Variables, images: jax.Array) -> jax.Array:
        (array,) = _evaluate(front_jaxpr, closed.consts, [*jax.tree.leaves(variables), images])
        return array

    def rest(variables: Variables, array: jax.Array) -> jax.Array:
        (logits,) = _evaluate(rest_jaxpr, closed.consts, [*jax.tree.leaves(variables), array])
        return logits

    return Cut(jax.ShapeDtypeStruct(inner.aval.shape, inner.aval.dtype), front, rest, before)


def _has_kernel(eqn: Any) -> bool:
    """Whether an equation, or one inside it, is a convolution or a product."""
    return eqn.primitive.name in _KERNELS or any(
        each.primitive.name in _KERNELS for part in inner_programs(eqn) for each in equations(part)
    )


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    # The rest is differentiated: custom derivatives and recomputed calls stay.
    return evaluate(jaxpr, consts, args, closed=CUSTOM | RECOMPUTED)
