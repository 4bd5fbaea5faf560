"""The interpreter of jaxprs: computes a program, or whatever a rule makes of its operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from jax.extend.core import Literal

RECOMPUTED = frozenset("remat remat2 checkpoint".split())
"""Calls that are recomputed in the backward pass; entering them would keep their values instead."""
CUSTOM = frozenset("custom_jvp_call custom_vjp_call".split())
"""Calls with a custom derivative; entering them would differentiate what they compute."""
CALLS = frozenset("jit pjit closed_call core_call".split()) | RECOMPUTED | CUSTOM
"""Operations that compute the jaxpr inside them."""

Rule = Callable[[Any, Sequence[Any]], Sequence[Any] | None]


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    rule: Rule = lambda eqn, operands: None,
    *,
    constant: Callable[[Any], Any] = lambda value: value,
    closed: Collection[str] = (),
) -> list[Any]:
    """The outputs of a jaxpr, equation by equation. Values may be arrays, or whatever `rule` makes of all operations.

    Args:
      jaxpr: the program (`closed.jaxpr`).
      consts: its constants (`closed.consts`).
      args: a value for each of its inputs.
      rule: `(equation, operands) -> results`, or None: then a call is entered, and any other operation is computed.
      constant: the value that stands for an array written in the program.
      closed: names of `CALLS` that are not entered, but computed like any other operation.
    """
    values = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = rule(eqn, operands)
        if results is None and (called := None if eqn.primitive.name in closed else inside(eqn)):
            results = evaluate(*called, operands, rule, constant=constant, closed=closed)
        elif results is None:
            results = compute(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def compute(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation for arrays."""
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return [*results] if eqn.primitive.multiple_results else [results]


def inside(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr that a call computes, and its constants; None for other operations."""
    if eqn.primitive.name not in CALLS:
        return None
    part = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return getattr(part, "jaxpr", part), getattr(part, "consts", ())


def inner_programs(eqn: Any) -> Iterator[Any]:
    """All programs inside an equation, closed or not: those of calls, loop bodies and branches."""
    waiting = [*eqn.params.values()]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, tuple | list):
            waiting[:0] = value
        elif hasattr(value, "eqns"):
            yield value


def equations(program: Any) -> Iterator[Any]:
    """All equations of a program, closed or not, each followed by those inside it."""
    for eqn in program.eqns:
        yield eqn
        for part in inner_programs(eqn):
            yield from equations(part)
