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
    """Raised for a value that a field may not have; `keys` is the path to it, outermost first."""

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
    if missing := [key for key in hints if key not in values]:
        raise SettingError(keys, f"missing key {'.'.join((*keys, missing[0]))}")
    found = {key: _read(hint, values[key], (*keys, key)) for key, hint in hints.items()}
    try:
        return kind(**found)
    except ValueError as error:  # settings that do not go together
        raise SettingError(keys, f"{'.'.join(keys)}: {error}" if keys else str(error)) from error


def _read(hint: Any, value: Any, keys: tuple[str, ...]) -> Any:
    """Returns the value of a field, which may be a section; the keys are its path."""
    is_optional = types.NoneType in get_args(hint)
    section: Any = next(one for one in get_args(hint) if one is not types.NoneType) if is_optional else hint
    is_section = dataclasses.is_dataclass(section) and not (value is None and is_optional)
    try:
        if not is_section:
            return check(hint, value)
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a section with keys of its own, got {value!r}")
    except ValueError as error:
        raise SettingError(keys, f"{'.'.join(keys)}: {error}") from None
    return build(section, value, keys)


def field_hints(kind: Any) -> dict[str, Any]:
    """Returns the type of each field that is an argument of a dataclass, by its name."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind) if one.init}


def check_fields(instance: Any) -> None:
    """Raises ValueError unless each argument of a dataclass has a value that its field may have.

    Numbers of numpy are accepted, and an integer where a float is expected.
    """
    for name, hint in field_hints(type(instance)).items():
        value = given = getattr(instance, name)
        if isinstance(given, numbers.Real) and not isinstance(given, bool):
            value = int(given) if isinstance(given, numbers.Integral) else float(given)
        try:
            check(hint, value)
        except ValueError as error:
            raise ValueError(f"{name}={given!r}: {error}") from None


def check(hint: Any, value: Any) -> Any:
    """Checks a value against a type; returns it as plain Python type, or raises ValueError that says what is wrong."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else check(next(one for one in kinds if one is not types.NoneType), value)
    if origin is Annotated:
        value = check(kinds[0], value)
        for problem in filter(None, (rule.problem(value) for rule in kinds[1:])):
            raise ValueError(problem)
        return value
    if origin is Literal:
        known = [str(choice) for choice in kinds]
        if not isinstance(value, str) or value not in known:  # a list is never one of the words
            raise ValueError(f"{value!r} is not known{did_you_mean(str(value), known)}")
        return value
    if origin in (list, tuple):
        return _check_sequence(origin, kinds, value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected keys and values, got {value!r}")
        return {str(key): _check_item(kinds[1], item, str(key)) for key, item in value.items()}
    return value if hint is Any else _check_plain(hint, value)


def _check_sequence(kind: Any, kinds: tuple[Any, ...], value: Any) -> Any:
    """Does `check` for a list, which needs at least one entry, or a tuple of a given length."""
    if kind is list:
        if not isinstance(value, list) or not value:
            raise ValueError(f"expected a list of at least one entry, got {value!r}")
        kinds = kinds * len(value)
    elif not isinstance(value, list | tuple) or len(value) != len(kinds):
        raise ValueError(f"expected a list of {len(kinds)} entries, got {value!r}")
    return kind(check(one, item) for one, item in zip(kinds, value, strict=True))


def _check_item(hint: Any, value: Any, key: str) -> Any:
    try:
        return check(hint, value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _check_plain(hint: Any, value: Any) -> Any:
    """Does `check` for a number, a bool or a text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        if not abs(value) <= sys.float_info.max:  # infinite, nan, or an integer beyond
            raise ValueError(f"expected a finite number, got {value!r}")
        return float(value)
    if hint in (int, bool, str) and isinstance(value, hint) and not (hint is int and not is_number):
        return hint(value)
    # The built-in type is named: float, and not ruamel.yaml's ScalarFloat.
    came = next(base.__name__ for base in type(value).__mro__ if base.__module__ == "builtins")
    raise ValueError(f"expected {hint.__name__}, got {value!r} ({came})")
