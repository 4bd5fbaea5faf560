"""The one interpreter of jaxprs: calls of all kinds, literals, constants, and rules in place of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import closed_call_p

from otbr_jax.graph.evaluate import CALLS, CUSTOM, RECOMPUTED, equations, evaluate, inner_programs, inside

X = jnp.linspace(-1, 1, 5)


@jax.custom_jvp
def bent(x):
    return jnp.maximum(x, 0)


bent.defjvp(lambda primals, tangents: (bent(*primals), 7 * tangents[0]))


@jax.custom_vjp
def turned(x):
    return 3 * x


turned.defvjp(lambda x: (turned(x), None), lambda _, given: (-given,))


def nested(x):
    return jax.jit(lambda x: jax.jit(jnp.sin)(x) + 1)(x) * 2


PROGRAMS = {
    "nested jit": nested,
    "custom_jvp": lambda x: bent(x) + 1,
    "custom_vjp": lambda x: turned(x) + 1,
    "remat": lambda x: jax.checkpoint(nested)(x) - 1,
    "constants": lambda x: x + np.arange(5, dtype=np.float32),
    "scan": lambda x: jax.lax.scan(lambda total, each: (total + each, total), 0.0, x)[1],
    "input as output": lambda x: x,
    "literal as output": lambda x: 2.0,
}


def program(function):
    closed = jax.make_jaxpr(function)(X)
    return closed.jaxpr, closed.consts


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("closed", [(), CALLS], ids=["entered", "closed"])
def test_evaluate_computes_what_the_function_does(name, closed):
    (result,) = evaluate(*program(PROGRAMS[name]), [X], closed=closed)
    np.testing.assert_array_equal(result, PROGRAMS[name](X))


@pytest.mark.parametrize("name", ["nested jit", "custom_jvp", "custom_vjp", "remat"])
def test_a_rule_sees_what_is_inside_calls_unless_they_are_closed(name):
    def seen(closed):
        names = []
        evaluate(*program(PROGRAMS[name]), [X], lambda eqn, _: names.append(eqn.primitive.name), closed=closed)
        return names

    assert set(seen(CALLS)) < set(seen(()))
    assert {"sin", "max", "mul"} & set(seen(()))
    assert not {"sin", "max"} & set(seen(CALLS))


def test_derivatives_of_functions_own_survive_where_their_calls_are_closed():
    def total(x, closed):
        return evaluate(*program(PROGRAMS["custom_vjp"]), [x], closed=closed)[0].sum()

    assert jax.grad(total)(X, CUSTOM).tolist() == [-1] * 5
    assert jax.grad(total)(X, RECOMPUTED).tolist() == [3] * 5


def test_closed_calls_are_entered():
    jaxpr, consts = program(nested)
    eqns = [
        eqn.replace(primitive=closed_call_p, params={"call_jaxpr": eqn.params["jaxpr"]}) if inside(eqn) else eqn
        for eqn in jaxpr.eqns
    ]
    (result,) = evaluate(jaxpr.replace(eqns=eqns), consts, [X])
    np.testing.assert_array_equal(result, nested(X))


def test_a_rule_replaces_an_operation_inside_calls():
    def rule(eqn, operands):
        return [jnp.cos(operands[0])] if eqn.primitive.name == "sin" else None

    (result,) = evaluate(*program(PROGRAMS["remat"]), [X], rule)
    np.testing.assert_allclose(result, (jnp.cos(X) + 1) * 2 - 1, rtol=1e-6)


def test_values_may_be_anything_that_a_rule_understands():
    def rule(eqn, operands):
        called = inside(eqn)
        if called:
            return evaluate(*called, operands, rule, constant=lambda _: 0)
        return [1 + max(operands)] * len(eqn.outvars)

    assert evaluate(*program(nested), [0], rule, constant=lambda _: 0) == [3]


def test_inside_opens_calls_alone_and_parts_finds_all_programs():
    scan = next(eqn for eqn in program(PROGRAMS["scan"])[0].eqns if eqn.primitive.name == "scan")
    assert inside(scan) is None
    assert [len(part.eqns) for part in inner_programs(scan)] == [2]  # an addition, and the copy of what is carried
    branches = program(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: jnp.cos(x) + 1, x))[0].eqns[-1]
    assert sorted(len(part.eqns) for part in inner_programs(branches)) == [1, 2]


def test_equations_are_those_inside_too():
    names = [eqn.primitive.name for eqn in equations(program(PROGRAMS["remat"])[0])]
    assert names[0] in RECOMPUTED
    assert names.count("sin") == 1
