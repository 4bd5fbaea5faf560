"""A network cut in two at a place where one array is all that the images have become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from otbr_jax.types import ApplyFn, Variables

_INLINED = frozenset(("jit", "pjit", "closed_call"))
_KERNELS = frozenset(("conv_general_dilated", "dot_general"))


class Cut(NamedTuple):
    """The two parts of a network, for as many images as it was traced with.

    Attributes:
      inner: shape and kind of the array between them, the images first.
      front: `(variables, images [n, h, w, c]) -> inner`.
      rest: `(variables, inner) -> logits [n, classes]`.
      before: how many of the network's convolutions and products are in front.
    """

    inner: jax.ShapeDtypeStruct
    front: Callable[[Variables, jax.Array], jax.Array]
    rest: Callable[[Variables, jax.Array], jax.Array]
    before: int


def cut(apply: ApplyFn, variables: Variables, images: jax.ShapeDtypeStruct, *, share: float) -> Cut:
    """Cuts a network where nearest to `share` of its convolutions and matrix products are in front.

    Any network that JAX can trace has such a place: at the latest its input. Between two kernels the cut is the last
    possible one, behind the normalisation and the activation. Residual blocks are cut between, never inside.

    Args:
      apply: evaluation-mode function of the network.
      variables: its variables (arrays or `jax.ShapeDtypeStruct`).
      images: shape and kind of the images as it takes them, `[n, h, w, c]`.
      share: in [0, 1]; 0 cuts at the input.
    """

    def inlined(variables: Variables, images: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(apply)(variables, images)
        (logits,) = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((variables, images)))
        return logits

    closed = jax.make_jaxpr(inlined)(variables, images)
    jaxpr, equations = closed.jaxpr, closed.jaxpr.eqns
    (logits,), image = jaxpr.outvars, jaxpr.invars[-1]
    seen, depends, used = {image}, [], {logits: len(equations)}
    for place, eqn in enumerate(equations):
        own = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
        used |= dict.fromkeys(own, place)
        depends.append(any(atom in seen for atom in own))
        if depends[-1]:
            seen.update(eqn.outvars)
    kernels = [depends[place] and _has_kernel(eqn) for place, eqn in enumerate(equations)]
    places: list[tuple[float, int, Any, int]] = []
    alive, before = {image}, 0
    for place, eqn in enumerate(equations):
        alive = {atom for atom in alive if used.get(atom, -1) >= place}
        if len(alive) == 1 and jnp.issubdtype((one := next(iter(alive))).aval.dtype, jnp.inexact):
            places.append((abs(before - share * sum(kernels)), -place, one, before))
        before += kernels[place]
        alive |= set(eqn.outvars) if depends[place] else set()
    _, where, inner, before = min(places, key=lambda found: found[:2])

    def front(variables: Variables, images: jax.Array) -> jax.Array:
        values = _values(jaxpr, closed.consts, variables) | {image: images}
        return _continue(equations[:-where], values)[inner]

    def rest(variables: Variables, array: jax.Array) -> jax.Array:
        values = _values(jaxpr, closed.consts, variables) | {inner: array}
        still = [eqn for place, eqn in enumerate(equations) if place >= -where or not depends[place]]
        return _continue(still, values)[logits]

    return Cut(jax.ShapeDtypeStruct(inner.aval.shape, inner.aval.dtype), front, rest, before)


def _has_kernel(eqn: Any) -> bool:
    """Whether an equation, or one inside it, is a convolution or a product."""
    inner = [part for value in eqn.params.values() for part in (value if isinstance(value, tuple) else (value,))]
    jaxprs = [getattr(part, "jaxpr", part) for part in inner if hasattr(part, "eqns") or hasattr(part, "jaxpr")]
    return eqn.primitive.name in _KERNELS or any(_has_kernel(each) for jaxpr in jaxprs for each in jaxpr.eqns)


def _values(jaxpr: Any, consts: Sequence[Any], variables: Variables) -> dict[Any, Any]:
    return dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
        zip(jaxpr.invars[:-1], jax.tree.leaves(variables), strict=True)
    )


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
    values = _continue(jaxpr.eqns, values)
    return [_read(values, atom) for atom in jaxpr.outvars]


def _continue(equations: Sequence[Any], values: dict[Any, Any]) -> dict[Any, Any]:
    """All values after these equations; calls are entered."""
    for eqn in equations:
        operands = [_read(values, atom) for atom in eqn.invars]
        if eqn.primitive.name in _INLINED:
            inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, operands)
        else:
            with eqn.ctx.manager:
                found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = found if eqn.primitive.multiple_results else [found]
        values = values | dict(zip(eqn.outvars, results, strict=True))
    return values


def _read(values: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else values[atom]
