"""Settings: what is declared of a field is what is checked, said and documented; for every class that there is."""

import dataclasses
import importlib
import inspect
import math
import pathlib
import pickle
import typing
from typing import Any

import pytest

import otbr_jax
from otbr_jax import InputError
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.settings import (
    all_names,
    as_dict,
    change,
    declarations,
    describe,
    describe_all,
    field,
    former_names,
    from_dict,
    in_words,
    settings,
    with_current_names,
    wrong,
)
from otbr_jax.studies.ablation import AblationConfig
from otbr_jax.studies.repair_config import RepairConfig, repair_config
from otbr_jax.victims.training import TrainingConfig


def settings_classes():
    """All classes of settings of the package, in the order of their modules."""
    root = pathlib.Path(otbr_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if "\n@settings(" in path.read_text():
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            module = importlib.import_module(name)
            yield from (
                found
                for found in vars(module).values()
                if isinstance(found, type) and "__settings__" in vars(found) and found.__module__ == name
            )


CLASSES = list(dict.fromkeys(settings_classes()))


def example(config_type):
    """Its defaults, and what they do not go without."""
    return config_type(tsbd=TSBDConfig(n=0.1)) if config_type is AblationConfig else config_type()


def label(value):
    return getattr(value, "__name__", value)


def refusal(config_type, given):
    try:
        config_type(**given)
    except InputError as error:
        return str(error)
    return ""


@settings("inner")
class Inner:
    """A group."""

    size: int = field(default=3, at_least=1, at_most=5, unit="pixels", doc="how large it is.")
    names: tuple[str, ...] = field(default=(), choices=("a", "b"), doc="what it is called.")


@settings("outer")
class Outer:
    """Two groups of one kind."""

    rate: float = field(default=0.5, above=0, doc="how fast.")
    pair: tuple[int, int] = field(default=(1, 2), doc="two sides.")
    first: Inner = field(default=Inner(), doc="one.")
    second: Inner = field(default=Inner(size=4), doc="another.")

    def check(self):
        """Sizes differ."""
        if self.first.size == self.second.size:
            raise wrong(self, "second.size", f"another than first.size ({self.first.size})")


@settings("")
class Whole(Outer):
    """More than the one that it inherits from."""

    outer: Outer = field(default=Outer(), doc="the same again.")


def sides(rule, kind):
    """`(value, whether it is allowed)` on both sides of every bound."""

    def next_to(bound, towards):
        return bound + (1 if towards > 0 else -1) if kind is int else math.nextafter(bound, towards)

    for bound, inwards, reached in (
        (rule.at_least, math.inf, True),
        (rule.above, math.inf, False),
        (rule.at_most, -math.inf, True),
        (rule.below, -math.inf, False),
    ):
        if bound is not None:
            yield from ((kind(bound), reached), (next_to(kind(bound), inwards), True))
            yield (next_to(kind(bound), -inwards), False)


@pytest.mark.parametrize("config_type", CLASSES, ids=label)
def test_every_bound_is_checked_from_both_sides(config_type):
    for name in declarations(config_type):
        check_bounds(config_type, name)


def check_bounds(config_type, name):
    kind, default, rule = declarations(config_type)[name]
    many = typing.get_origin(kind) is tuple
    one = typing.get_args(kind)[0] if many else kind
    length = len(default) or 2 if many else 1
    group = f"{config_type.__group__}." if config_type.__group__ else ""
    tried = [*sides(rule, one)]
    if rule.choices:
        tried += [(choice, True) for choice in rule.choices] + [("no such choice", False)]
    if one is float:
        tried += [(math.nan, False), (math.inf, False), (-math.inf, False)]
    tried += [(object(), False), (None, False)]
    for value, allowed in tried:
        found = repr(value) + (" among them" if many else "")
        message = f"{group}{name}: expected {in_words(kind, rule)}, found {found}"
        given = {name: (value,) * length if many else value}
        if allowed:
            assert refusal(config_type, given) != message  # other fields may not fit to it
        else:
            assert refusal(config_type, given) == message


@pytest.mark.parametrize("config_type", CLASSES, ids=label)
def test_every_field_is_documented_where_help_shows_it(config_type):
    attributes = " ".join(inspect.getdoc(config_type).partition("\nAttributes:\n")[2].split())
    for name, declared in declarations(config_type).items():
        assert declared.rule.doc.endswith("."), name
        assert "TODO" not in declared.rule.doc, name
        assert f"{name}: {' '.join(declared.rule.doc.split())}" in attributes


@pytest.mark.parametrize("config_type", CLASSES, ids=label)
def test_every_class_is_a_plain_dataclass(config_type):
    config = example(config_type)
    assert [each.name for each in dataclasses.fields(config)] == [*declarations(config_type)]
    assert dataclasses.replace(config) == config
    assert hash(pickle.loads(pickle.dumps(config))) == hash(config)
    assert from_dict(config_type, as_dict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, next(iter(declarations(config_type))), 1)


@pytest.mark.parametrize("config_type", CLASSES, ids=label)
def test_a_description_has_every_setting_with_its_default(config_type):
    def leaves(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    defaults = as_dict(example(config_type))
    for values in (example(config_type), defaults):
        found = {setting.name: setting.default for setting in describe(config_type, values) if setting.words}
        assert found == dict(leaves(defaults))
    assert [setting[:2] for setting in describe(config_type)] == [setting[:2] for setting in describe(config_type, {})]


def test_a_description_in_words():
    found = describe(Outer, {"second": {"size": 5}})
    assert [setting[:3] for setting in found] == [
        ("rate", "a number above 0", 0.5),
        ("pair", "a list of 2 whole numbers", (1, 2)),
        ("first", "", None),
        ("first.size", "a whole number in [1, 5], in pixels", 3),
        ("first.names", "a list of any of ['a', 'b']", ()),
        ("second", "", None),
        ("second.size", "a whole number in [1, 5], in pixels", 5),
        ("second.names", "a list of any of ['a', 'b']", ()),
    ]
    assert found[3].doc == "how large it is."
    assert inspect.getdoc(Outer).splitlines()[-1] == "  second: another. Default: Inner(size=4)."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first": {"size": 0}}, "first.size: expected a whole number in [1, 5], in pixels, found 0"),
        ({"second": {"size": "4"}}, "second.size: expected a whole number in [1, 5], in pixels, found '4'"),
        ({"second": {"size": True}}, "second.size: expected a whole number in [1, 5], in pixels, found True"),
        ({"second": {"names": ["a", "c"]}}, "second.names: expected a list of any of ['a', 'b'], found 'c' among them"),
        ({"second": 3}, "second: expected a group of settings, found 3"),
        ({"outer": {"first": {"size": 0}}}, "outer.first.size: expected a whole number in [1, 5], in pixels, found 0"),
        ({"outer": {"first": {"size": 4}}}, "outer.second.size: expected another than first.size (4), found 4"),
        ({"outer": {"pair": (1,)}}, "outer.pair: expected a list of 2 whole numbers, found (1,)"),
        (
            {"outer": {"first": {"sise": 4}}},
            "config.outer.first.sise: unknown config field; did you mean config.outer.",
        ),
        ({"rates": {}, "zzz": 1}, "config.rates: unknown config field; did you mean config.rate?"),
        ({"zzz": 1}, "config.zzz: unknown config field; expected one of ['first', 'outer', 'pair', 'rate', 'second']"),
    ],
)
def test_errors_name_the_whole_path(values, message):
    with pytest.raises(InputError) as refused:
        from_dict(Whole, values)
    assert str(refused.value).startswith(message)


def test_what_a_class_says_alone_carries_the_name_of_its_kind():
    with pytest.raises(InputError, match=r"^inner.size: expected a whole number in \[1, 5\], in pixels, found 6$"):
        Inner(size=6)
    with pytest.raises(InputError, match=r"^first: expected a group of settings, found 3$"):
        Whole(first=3)
    with pytest.raises(InputError, match=r"^outer.second.size: expected another than first.size \(4\), found 4$"):
        Outer(first=Inner(4))


@settings("")
class Left:
    """One of two kinds."""

    width: float = field(default=0.5, above=0, doc="how wide.")
    inner: Inner = field(default=Inner(), doc="the same in both.")


@settings("")
class Right:
    """The other."""

    inner: Inner = field(default=Inner(size=2), doc="the same in both.")
    height: int = field(default=1, at_least=1, doc="how high.")


@settings("")
class Composed:
    """A class that consists of others."""

    whole: Whole = field(default=Whole(), beside=True, doc="its fields have their own names.")
    side: str = field(default="left", choices=("left", "right"), doc="which kind.")
    own: Any = field(default=Left(), beside=True, kinds={"left": Left, "right": Right}, by="side", doc="one of two.")


def test_a_composed_class_has_flat_names():
    made = Composed(whole=Whole(rate=0.25), side="right", own=Right(height=4))
    values = as_dict(made)
    assert [*values] == ["rate", "pair", "first", "second", "outer", "side", "inner", "height"]
    assert from_dict(Composed, values) == made == change(Composed(), side="right", own=Right(height=4), rate=0.25)
    assert change(made, height=5, first=Inner(2)).own.height == 5
    assert from_dict(Composed, {"side": "right"}).own == Right()
    names = [setting.name for setting in describe(Composed, values)]
    assert names[:4] == ["rate", "pair", "side", "height"]
    assert {"first.size", "inner.size"} < {*names}
    assert {"width", "height"} < {*all_names(describe_all(Composed))}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0}, "rate: expected a number above 0, found 0"),
        ({"height": 2}, "config.height: unknown config field; expected one of ['first', 'inner', 'outer', 'pair', "),
        ({"heigth": 2, "side": "right"}, "config.heigth: unknown config field; did you mean config.height?"),
        ({"side": "right", "height": 0}, "height: expected a whole number of at least 1, found 0"),
        ({"side": "up"}, "side: expected one of ['left', 'right'], found 'up'"),
        ({"side": ["left"]}, "side: expected one of ['left', 'right'], found ['left']"),
        ({"whole": {}}, "config.whole: unknown config field"),
        ({"inner": {"size": 9}}, "inner.size: expected a whole number in [1, 5], in pixels, found 9"),
    ],
)
def test_a_composed_class_says_flat_names(values, message):
    with pytest.raises(InputError) as refused:
        from_dict(Composed, values)
    assert str(refused.value).startswith(message)


def test_the_settings_of_a_repair_are_those_of_its_defence():
    config = repair_config("tsbd", seed=3)
    assert (config.victim.seed, type(config.method).__name__) == (3, "TSBDSettings")
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(InputError, match=r"^method: expected OTBRSettings of 'otbr', found TSBDSettings$"):
        dataclasses.replace(config, defense="otbr")
    with pytest.raises(InputError, match=r"^config.clp: expected settings of 'tsbd', .*, found 'clp'$"):
        repair_config("tsbd", clp=None)
    with pytest.raises(InputError, match=r"^defense: expected one of .*, found 'magic'$"):
        repair_config("magic")


def test_ints_become_floats_and_lists_tuples():
    config = TrainingConfig(learning_rate=1)
    assert repr(config.learning_rate) == "1.0"
    assert hash(SweepConfig(gamma=[0, 1])) == hash(SweepConfig(gamma=(0.0, 1.0)))
    assert from_dict(RepairConfig, {"sweep": {"gamma": [0, 1]}}).method.sweep.gamma == (0.0, 1.0)


def test_a_field_without_a_declaration_is_refused():
    with pytest.raises(TypeError, match=r"Bare.size: expected a declaration by field\(...\), found none"):

        @settings("bare")
        class Bare:
            """A class with a field that says nothing of itself."""

            size: int = 3


def test_former_names_are_read_as_those_of_today():
    @settings("inner")
    class Inner:
        steps: int = field(default=1, doc="of it.", formerly="rounds")

    @settings("")
    class Outer:
        search: Inner = field(default=Inner(), doc="how.", formerly=("seek", "look"))

    assert from_dict(Outer, {"seek": {"rounds": 5}}) == from_dict(Outer, {"search": {"steps": 5}})
    assert with_current_names(Outer, {"look": {"rounds": 5}, "other": 1}) == {"search": {"steps": 5}, "other": 1}
    with pytest.raises(InputError, match="unknown config field"):
        from_dict(Outer, {"sought": {}})


def test_former_names_of_flags():
    @settings("inner")
    class Inner:
        steps: int = field(default=1, doc="of it.", formerly="rounds")
        size: int = field(default=1, doc="of it.")

    @settings("")
    class Outer:
        search: Inner = field(default=Inner(), doc="how.", formerly=("seek", "look"))
        look: Inner = field(default=Inner(), doc="another group, which has the name now.")

    assert former_names(describe_all(Outer)) == {
        "search.rounds": "search.steps",
        "seek.steps": "search.steps",
        "seek.rounds": "search.steps",
        "seek.size": "search.size",
        "look.rounds": "look.steps",
    }
