"""Settings and facts as dataclasses: a field's type says which values it may have, and `build` checks them.

    threshold: Annotated[float, Range(1)]
    fit: Literal["nearest", "pad"]
    backbone: Annotated[str, Pattern(r"[A-Za-z0-9_.]+", "a name of a timm model")]

The settings of a run, a model's config.json and the arguments of CharmTokenizer are checked by the same fields.
"""

import dataclasses
import math
import numbers
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from charm.runtime.errors import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Least and greatest value that a number may have, both included."""

    least: float
    most: float = math.inf

    def problem(self, value: Any) -> str:
        if self.least <= value <= self.most:
            return ""
        limits = f"from {self.least} to {self.most}" if self.most < math.inf else f"of at least {self.least}"
        return f"expected a number {limits}, got {value}"


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a text has to match as a whole, and its name for messages."""

    pattern: str
    name: str

    def problem(self, value: Any) -> str:
        return "" if re.fullmatch(self.pattern, value) else f"expected {self.name}, got {value!r}"


@dataclass(frozen=True)
class OneOf:
    """The words that a text may be, where they are only known when the program runs."""

    words: tuple[str, ...]

    def problem(self, value: Any) -> str:
        return "" if value in self.words else f"{value!r} is not known{did_you_mean(value, list(self.words))}"


class SettingError(ValueError):
    """Raised for a value that a field may not have.

    Attributes:
        keys: path to the value, outermost first.
        message: the problem, with these keys.
    """

    def __init__(self, keys: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.keys, self.message = keys, message


def build(kind: type[T], values: Mapping[str, Any], keys: tuple[str, ...] = ()) -> T:
    """Builds a dataclass from a mapping that has exactly its fields.

    Args:
        kind: a dataclass; its fields may be dataclasses, which are sections.
        values: as read from JSON or YAML.
        keys: path to `values`, for messages.

    Raises:
        SettingError: a key is unknown or missing, or a value is not one that its field may have.
    """
    hints = field_hints(kind)
    for key in values:
        if key not in hints:
            name = ".".join((*keys, str(key)))
            raise SettingError((*keys, key), f"unknown key {name}{did_you_mean(str(key), list(hints))}")
    found = {}
    for key, hint in hints.items():
        path = (*keys, key)
        if key not in values:
            raise SettingError(keys, f"missing key {'.'.join(path)}")
        value = values[key]
        section = _section_of(hint)
        if section is not None and not (value is None and _is_optional(hint)):
            if not isinstance(value, Mapping):
                problem = f"expected a section with keys of its own, got {value!r}"
                raise SettingError(path, f"{'.'.join(path)}: {problem}")
            found[key] = build(section, value, path)
        else:
            problem, found[key] = check(hint, value)
            if problem:
                raise SettingError(path, f"{'.'.join(path)}: {problem}")
    try:
        return kind(**found)
    except ValueError as error:  # settings that do not go together
        raise SettingError(keys, f"{'.'.join(keys)}: {error}" if keys else str(error)) from error


def field_hints(kind: Any) -> dict[str, Any]:
    """Returns the type of each field that is an argument of a dataclass, by its name."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind) if one.init}


def check_fields(instance: Any) -> None:
    """Raises ValueError unless each argument of a dataclass has a value that its field may have.

    Numbers of numpy are accepted, and an integer where a float is expected.
    """
    for name, hint in field_hints(type(instance)).items():
        value = getattr(instance, name)
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = float(value)
        problem, _ = check(hint, value)
        if problem:
            raise ValueError(f"{name}={getattr(instance, name)!r}: {problem}")


def choices(kind: Any, name: str) -> tuple[str, ...]:
    """Returns the values of a field that is one of several words."""
    return get_args(field_hints(kind)[name])


def check(hint: Any, value: Any) -> tuple[str, Any]:
    """Checks a value against a type; returns the problem or "", and the value as plain Python type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return "", None
        return check(next(arg for arg in get_args(hint) if arg is not types.NoneType), value)
    if origin is Annotated:
        inner, *rules = get_args(hint)
        problem, value = check(inner, value)
        return problem or next(filter(None, (rule.problem(value) for rule in rules)), ""), value
    if origin is Literal:
        known = [str(choice) for choice in get_args(hint)]
        is_known = isinstance(value, str) and value in known  # a list is never one of the words
        return ("" if is_known else f"{value!r} is not known{did_you_mean(str(value), known)}"), value
    if origin in (list, tuple):
        return _check_sequence(hint, value)
    if origin is dict:
        if not isinstance(value, Mapping):
            return f"expected keys and values, got {value!r}", value
        checked = {str(key): check(get_args(hint)[1], item) for key, item in value.items()}
        problem = next((f"{key}: {found}" for key, (found, _) in checked.items() if found), "")
        return problem, {key: item for key, (_, item) in checked.items()}
    if hint is Any:
        return "", value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) <= sys.float_info.max:  # not infinite, not nan, no integer beyond
        return "", float(value)
    if hint is float and is_number:
        return f"expected a finite number, got {value!r}", value
    if hint in (int, bool, str) and isinstance(value, hint) and not (hint is int and not is_number):
        return "", hint(value)
    # The built-in type is named: float, and not ruamel.yaml's ScalarFloat.
    came = next(base.__name__ for base in type(value).__mro__ if base.__module__ == "builtins")
    return f"expected {hint.__name__}, got {value!r} ({came})", value


def _check_sequence(hint: Any, value: Any) -> tuple[str, Any]:
    """Does `check` for a list, which needs at least one entry, or a tuple of a given length."""
    kinds = get_args(hint)
    if get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            return f"expected a list of at least one entry, got {value!r}", value
        kinds = kinds * len(value)
    elif not isinstance(value, list | tuple) or len(value) != len(kinds):
        return f"expected a list of {len(kinds)} entries, got {value!r}", value
    checked = [check(kind, item) for kind, item in zip(kinds, value, strict=True)]
    return next((problem for problem, _ in checked if problem), ""), get_origin(hint)(item for _, item in checked)


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and types.NoneType in get_args(hint)


def _section_of(hint: Any) -> Any:
    """Returns the dataclass that a field holds, or may hold besides None; None for other fields."""
    for kind in get_args(hint) if _is_optional(hint) else (hint,):
        if dataclasses.is_dataclass(kind):
            return kind
    return None
