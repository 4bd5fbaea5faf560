"""Settings: the default, bounds, choices, unit and documentation of each field, declared once::

    @settings("training")
    class TrainingConfig:
        \"\"\"How a network is trained.\"\"\"

        epochs: int = field(default=30, at_least=1, doc="passes over the training set.")

Such a class is a frozen dataclass that checks every field when it is made: `TrainingConfig(epochs=0)` raises
`InputError("training.epochs: expected a whole number of at least 1, found 0")`. `help()` and `describe` read the same
declaration. Fields are whole numbers, numbers, texts, switches, tuples of one of these, or groups: other such classes.

Classes compose. A group that is declared with `beside=True` has no name of its own in dictionaries and flags: its
fields stand beside those of the class. `as_dict`, `from_dict`, `describe` and `change` know them by these flat names.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import numbers
import operator
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from otbr_jax.errors import InputError

T = TypeVar("T")


class Rule(NamedTuple):
    """The rule for a field, or for each item of a tuple; see `field`."""

    doc: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    beside: bool = False
    kinds: Mapping[str, type] = {}
    by: str = ""
    formerly: tuple[str, ...] = ()


class Declared(NamedTuple):
    """A field as it was declared.

    Attributes:
      kind: its type, such as `int`, `tuple[float, ...]` or another class of settings.
      default: its default.
      rule: its bounds, choices, unit and documentation.
    """

    kind: Any
    default: Any
    rule: Rule


class Setting(NamedTuple):
    """A field in words, as `describe` gives it.

    Attributes:
      name: with dots for fields of groups, such as `otbr.gamma`.
      words: its possible values, such as `a number in [0, 1]`; empty for a group, whose fields follow.
      default: its default; None for a group.
      doc: what it is.
      kind: its type; None for a group.
      rule: its bounds and choices; None for a group.
      formerly: earlier names of the field, without those of the groups above it.
    """

    name: str
    words: str
    default: Any
    doc: str
    kind: Any = None
    rule: Rule | None = None
    formerly: tuple[str, ...] = ()


def field(
    *,
    default: T,
    doc: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    unit: str = "",
    beside: bool = False,
    kinds: Mapping[str, type] | None = None,
    by: str = "",
    formerly: str | tuple[str, ...] = (),
) -> T:
    """Declares a field of a class of settings. Bounds and choices are those of each item, if it is a tuple.

    Args:
      default: its value where none is given.
      doc: what it is, one sentence that goes on after the field's name.
      at_least: lower bound, which it may reach.
      above: lower bound, which it may not reach.
      at_most: upper bound, which it may reach.
      below: upper bound, which it may not reach.
      choices: the values it may have; empty for no such list.
      unit: of a number, such as `pixels`.
      beside: of a group, whether its fields stand beside those of the class in dictionaries and flags. Its class then
        has no name of its own, `settings("")`.
      kinds: the classes that a group may be of, where there are several.
      by: the field whose value says which of `kinds` a group is of.
      formerly: earlier names of the field, which dictionaries and rows of results may still use.
    """
    former = (formerly,) if isinstance(formerly, str) else formerly
    rule = Rule(doc, at_least, above, at_most, below, tuple(choices), unit, beside, kinds or {}, by, former)
    return dataclasses.field(default=default, metadata={"rule": rule})


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(group: str) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass that checks its fields, with a list of them in its docstring.

    Ints become floats, and lists tuples, where the field says so. A method `check` of the class, if there is one, is
    called after the fields are checked, and says by `raise wrong(...)` what single fields cannot: how they must fit
    together.

    Args:
      group: the name that errors call the class by, such as `training` or `attack.wanet`; empty for a whole config.

    Raises:
      TypeError: if a field is not declared by `field`.
    """

    def decorate(cls: Any) -> Any:
        cls.__post_init__ = _check
        cls = dataclasses.dataclass(frozen=True)(cls)
        hints, declared = typing.get_type_hints(cls), {}
        for each in dataclasses.fields(cls):
            if "rule" not in each.metadata:
                raise TypeError(f"{cls.__qualname__}.{each.name}: expected a declaration by field(...), found none")
            declared[each.name] = Declared(hints[each.name], each.default, each.metadata["rule"])
        cls.__group__, cls.__settings__ = group, declared
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nAttributes:\n{_attributes(declared)}"
        return cls

    return decorate


def _check(config: Any) -> None:
    """Checks every field, and then how they fit together; it is every class's `__post_init__`."""
    group = f"{config.__group__}." if config.__group__ else ""
    for name, (kind, _, rule) in config.__settings__.items():
        object.__setattr__(config, name, fitted(f"{group}{name}", kind, rule, getattr(config, name)))
    if hasattr(config, "check"):
        config.check()


def fitted(name: str, kind: Any, rule: Rule, value: Any) -> Any:
    """The value in the type of a field of that name; raises InputError if the field may not have it."""
    try:
        return _fit(kind, rule, value)
    except _UnfitError as error:
        raise InputError(f"{name}: expected {in_words(kind, rule)}, found {error}") from None


class _UnfitError(Exception):
    """A value that a field may not have, as text."""


def _fit(kind: Any, rule: Rule, value: Any) -> Any:
    """The value in the type of a field; raises `_UnfitError` if the field may not have it."""
    if typing.get_origin(kind) is tuple:
        item, *more = typing.get_args(kind)
        if not isinstance(value, (tuple, list)) or (more != [...] and len(value) != 1 + len(more)):
            raise _UnfitError(repr(value))
        try:
            return tuple(_fit(item, rule, one) for one in value)
        except _UnfitError as error:
            raise _UnfitError(f"{error} among them") from None
    allowed = tuple(rule.kinds.values()) or _ABSTRACT.get(kind, kind)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _UnfitError(repr(value))
    if kind in (int, float):
        value = kind(value)
        lower = (rule.at_least is None or value >= rule.at_least) and (rule.above is None or value > rule.above)
        upper = (rule.at_most is None or value <= rule.at_most) and (rule.below is None or value < rule.below)
        if not (lower and upper and math.isfinite(value)):
            raise _UnfitError(repr(value))
    if rule.choices and value not in rule.choices:
        raise _UnfitError(repr(value))
    return value


_ABSTRACT = {int: numbers.Integral, float: numbers.Real}
"""The types whose values count as such a number: NumPy's too."""


def declarations(config_type: type) -> Mapping[str, Declared]:
    """The fields of a class of settings, by name; empty for any other class."""
    fields: Mapping[str, Declared] = getattr(config_type, "__settings__", {})
    return fields


def wrong(config: Any, name: str, expected: str, *, found: str = "") -> InputError:
    """The error about a field, for a class's `check` to raise.

    Args:
      config: the settings.
      name: of the field, with dots for fields of its groups.
      expected: the text after "expected".
      found: the text after "found"; by default the field's value.
    """
    group = f"{config.__group__}." if config.__group__ else ""
    found = found or repr(operator.attrgetter(name)(config))
    return InputError(f"{group}{name}: expected {expected}, found {found}")


def from_dict(config_type: type[T], values: Mapping[str, Any], *, name: str = "config") -> T:
    """Builds settings from a nested mapping; fields that are left out keep their defaults.

    Args:
      config_type: their class.
      values: a mapping, in which groups are mappings too.
      name: what the mapping is called where a field is unknown.

    Raises:
      InputError: names an unknown field (and the nearest known one), or says with its dotted name what is wrong with
        a value.
    """
    return _build(config_type, values, name, "")


def with_current_names(config_type: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping of settings with current names in place of earlier ones; see `formerly` of `field`."""
    beside = _beside(config_type, values)
    known = {key: each for key, each in declarations(config_type).items() if key not in beside}
    for inner in beside.values():
        known |= declarations(inner)
    names = {former: key for key, each in known.items() for former in each.rule.formerly if former not in known}
    result: dict[str, Any] = {}
    for old, value in values.items():
        key = names.get(old, old)
        kind: Any = known[key].kind if key in known else None
        result[key] = with_current_names(kind, value) if isinstance(value, Mapping) and declarations(kind) else value
    return result


def _build(config_type: type[T], values: Mapping[str, Any], name: str, path: str) -> T:
    values = with_current_names(config_type, values)
    beside = _beside(config_type, values)
    places = {key: outer for outer, kind in beside.items() for key in declarations(kind)}
    known = {key: each for key, each in declarations(config_type).items() if key not in beside}
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known and key not in places:
            near = difflib.get_close_matches(key, [*known, *places], n=1)
            hint = f"; did you mean {name}.{near[0]}?" if near else f"; expected one of {sorted({*known, *places})}"
            raise InputError(f"{name}.{key}: unknown config field{hint}")
        if key in known:
            kind, inner = known[key].kind, f"{path}.{key}" if path else key
            if declarations(kind):
                if not isinstance(value, Mapping):
                    raise InputError(f"{inner}: expected a group of settings, found {value!r}")
                value = _build(kind, value, f"{name}.{key}", inner)
            fields[key] = value
    for outer, kind in beside.items():
        own = {key: value for key, value in values.items() if places.get(key) == outer}
        fields[outer] = _build(kind, own, name, path)
    try:
        return config_type(**fields)
    except InputError as error:
        # A class has one name, but may be several groups, such as suspicion.patch and trigger_finetuning.patch.
        own_name = f"{getattr(config_type, '__group__')}."  # noqa: B009
        if not path or not str(error).startswith(own_name):
            raise
        raise InputError(f"{path}.{str(error).removeprefix(own_name)}") from None


def _beside(config_type: type, values: Mapping[str, Any]) -> dict[str, type]:
    """The classes of the groups whose fields stand beside the class's own, as `values` choose them."""
    return {
        name: _chosen(config_type, each.rule, values) if each.rule.kinds else each.kind
        for name, each in declarations(config_type).items()
        if each.rule.beside
    }


def _chosen(config_type: type, rule: Rule, values: Mapping[str, Any]) -> type:
    kind, default, by = declarations(config_type)[rule.by]
    chosen = values.get(rule.by, default)
    if not isinstance(chosen, str) or chosen not in rule.kinds:
        raise InputError(f"{rule.by}: expected {in_words(kind, by)}, found {chosen!r}")
    return rule.kinds[chosen]


def as_dict(config: Any) -> dict[str, Any]:
    """Settings as the nested dictionary that `from_dict` reads, groups and all."""
    result: dict[str, Any] = {}
    for name, each in declarations(type(config)).items():
        value = getattr(config, name)
        plain = as_dict(value) if declarations(type(value)) else value
        result |= plain if each.rule.beside else {name: plain}
    return result


def change(config: T, **fields: Any) -> T:
    """The same settings with these fields changed, by their flat names in dictionaries.

    Raises:
      InputError: if there is no such field, or the settings do not fit together.
    """
    known, own = declarations(type(config)), {}
    for outer, each in known.items():
        group = getattr(config, outer)
        inner = {key: fields[key] for key in declarations(type(group)) if key in fields} if each.rule.beside else {}
        if inner:
            own[outer] = dataclasses.replace(group, **inner)
            fields = {key: value for key, value in fields.items() if key not in inner}
    for key in fields:
        if key not in known:
            raise InputError(f"config.{key}: unknown config field; expected one of {sorted(as_dict(config))}")
    return dataclasses.replace(config, **fields, **own)  # type: ignore[type-var]


def describe(config_type: type, values: Any = None) -> list[Setting]:
    """All settings of a class: its own fields first, then each of its groups, followed by that group's.

    Args:
      config_type: the class.
      values: settings, or a nested mapping of some, in place of the defaults.
    """
    return _describe(config_type, values, "")


def _describe(config_type: type, values: Any, prefix: str) -> list[Setting]:
    own: list[Setting] = []
    groups: list[Setting] = []
    beside = _beside(config_type, values if isinstance(values, Mapping) else {})
    for name, (kind, default, rule) in declarations(config_type).items():
        if isinstance(values, Mapping):
            default = values if name in beside else values.get(name, default)
        elif values is not None:
            default = getattr(values, name)
        if name in beside:
            inner = _describe(type(default) if declarations(type(default)) else beside[name], default, prefix)
            count = next((place for place, each in enumerate(inner) if not each.words), len(inner))
            own, groups = own + inner[:count], groups + inner[count:]
        elif declarations(kind):
            groups.append(Setting(f"{prefix}{name}", "", None, rule.doc, formerly=rule.formerly))
            groups += _describe(kind, default, f"{prefix}{name}.")
        else:
            own.append(Setting(f"{prefix}{name}", in_words(kind, rule), default, rule.doc, kind, rule, rule.formerly))
    return own + groups


def describe_all(config_type: type) -> list[Setting]:
    """All settings that a class may have, with every kind of its groups; some may appear several times."""
    choices = [{rule.by: name} for _, _, rule in declarations(config_type).values() for name in rule.kinds]
    return [setting for values in choices or [{}] for setting in describe(config_type, values)]


def all_names(settings: Iterable[Setting]) -> list[str]:
    """The dotted names of settings, each once; without groups."""
    return [*dict.fromkeys(setting.name for setting in settings if setting.words)]


def former_names(settings: Iterable[Setting]) -> dict[str, str]:
    """`{old dotted name: current one}` of settings that were renamed, or are in a group that was."""
    settings = [*settings]
    formerly = {(setting.name, name) for setting in settings for name in setting.formerly}
    names: dict[str, str] = {}
    for current in all_names(settings):
        spellings = [""]
        for place, part in enumerate(parts := current.split(".")):
            whole = ".".join(parts[: place + 1])
            ways = [part, *sorted(old for name, old in formerly if name == whole)]
            spellings = [f"{before}.{way}".lstrip(".") for before in spellings for way in ways]
        names |= dict.fromkeys(spellings[1:], current)
    return {old: current for old, current in names.items() if old not in {*names.values(), *all_names(settings)}}


def in_words(kind: Any, rule: Rule) -> str:
    """The values that a field may have, such as `a list of numbers in [0, 1]`."""
    if declarations(kind) or rule.kinds:
        return "a group of settings"
    if typing.get_origin(kind) is tuple:
        item, *more = typing.get_args(kind)
        count = "" if more == [...] else f"{1 + len(more)} "
        each = f"any of {[*rule.choices]}" if rule.choices else f"{_NOUNS[item][1]}{_bounds(item, rule)}"
        return f"a list of {count}{each}"
    return f"one of {[*rule.choices]}" if rule.choices else f"{_NOUNS[kind][0]}{_bounds(kind, rule)}"


_NOUNS = {
    bool: ("True or False", "of True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}


def _bounds(kind: Any, rule: Rule) -> str:
    opening, low = ("(", rule.above) if rule.at_least is None else ("[", rule.at_least)
    closing, high = (")", rule.below) if rule.at_most is None else ("]", rule.at_most)
    unit = f", in {rule.unit}" if rule.unit else ""
    if low is not None and high is not None:
        return f" in {opening}{_number(low)}, {_number(high)}{closing}{unit}"
    words = {"of at least": rule.at_least, "above": rule.above, "of at most": rule.at_most, "below": rule.below}
    return "".join(f" {word} {_number(bound)}" for word, bound in words.items() if bound is not None) + unit


def _number(bound: float) -> str:
    return f"{bound:g}" if bound < 2**20 else f"2**{math.log2(bound):g}"


def _attributes(declared: Mapping[str, Declared]) -> str:
    """The fields in the form of a docstring."""
    lines = []
    for name, (kind, default, rule) in declared.items():
        words = in_words(kind, rule)
        what = "" if declarations(kind) or rule.kinds else f" {words[0].upper()}{words[1:]}."
        lines.append(f"{name}: {rule.doc}{what} Default: {_default_text(default)}.")
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        for line in lines
    )


def _default_text(default: Any) -> str:
    """A default as code: for a group, the fields that differ from its class's own defaults."""
    known = declarations(type(default))
    if not known:
        return repr(default)
    values = {name: getattr(default, name) for name in known}
    changed = [f"{name}={_default_text(value)}" for name, value in values.items() if value != known[name].default]
    return f"{type(default).__name__}({', '.join(changed)})"
