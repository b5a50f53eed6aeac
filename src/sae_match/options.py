"""`@option`: a configurable class. Its fields are the keys of its configuration file, its constructor their check."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sae_match.errors import UserError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def option(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose constructor takes keyword arguments, converts and checks them.

    Unknown arguments, wrong types and values out of range raise `pydantic.ValidationError`, which names the field.
    A number where text is wanted (a revision or a column called 2024) becomes text, as YAML users expect.
    A field's docstring is its description in the generated reference of the configuration.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    return cast("type[T]", dataclass(cls, frozen=True, kw_only=True, config=config))


def arguments(value: object) -> dict[str, Any]:
    """An option as plain values: its class and every argument, defaults included. For keys of what depends on it."""
    kind = type(value)
    plain: dict[str, Any] = TypeAdapter(kind).dump_python(value, mode="json")
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **plain}


def what_is_wrong(error: ValidationError) -> str:
    """The arguments that an option refused, and why, on one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


def parse(kind: type[E], value: E | str, name: str) -> E:
    """A value of an enumeration.

    Raises:
        UserError: it is none; the message lists them.
    """
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{name}={value}: must be one of {', '.join(kind)}") from None
