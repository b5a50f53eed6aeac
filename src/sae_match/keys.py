"""What the value of an object depends on, as plain JSON-able data: the material of content keys."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from sae_match.errors import UserError
from sae_match.files import file_sha256


def tensor_digest(values: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values."""
    array = values.detach().cpu().contiguous().numpy()
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def source_digest(cls: type | Callable[..., object]) -> str | None:
    """SHA-256 of the module that defines a class or function, so that helpers beside it count; None where no source is
    found."""
    for defined in (sys.modules.get(cls.__module__), cls):
        try:
            return hashlib.sha256(inspect.getsource(defined).encode()).hexdigest()  # type: ignore[arg-type]
        except (OSError, TypeError):  # typed into an interpreter, or compiled
            continue
    return None


def arguments(instance: object, leave_out: tuple[str, ...] = ()) -> dict[str, object]:
    """An object's fields (its attributes, if it is no dataclass) as plain data.

    Args:
        leave_out: fields on which the value does not depend.

    Raises:
        UserError: a field has no plain form.
    """
    names = [field.name for field in fields(instance)] if is_dataclass(instance) else sorted(vars(instance))
    return {
        name: plain(getattr(instance, name), f"{type(instance).__name__}.{name}")
        for name in names
        if name not in leave_out
    }


def plain(value: object, name: str) -> object:
    """JSON-able data that is equal where the content is: an object by its own `key()`, a tensor or a file by its hash.

    Args:
        name: what the value is called, for the error.

    Raises:
        UserError: the value has no plain form.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    return _object_facts(value, name)


def _object_facts(value: object, name: str) -> object:
    if callable(key := getattr(value, "key", None)):
        return key()
    if isinstance(value, Path):
        return file_sha256(value)
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        return {"class": class_name(cls), "code": source_digest(cls), "arguments": arguments(value)}
    raise UserError(
        f"{name}: a {type(value).__name__} has no content key, so results could not be kept apart; give its class a "
        "method key() that returns plain data, or pass numbers, text, tensors or paths of files"
    )


def class_name(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


class Keyed:
    """A base of classes whose instances have a content key: class, version, code and arguments.

    The code is that of the module in which the class, or one of its bases, is defined. It is read when the class is
    made, so that a file that is edited later does not pass for what runs.
    """

    version: ClassVar[int] = 1
    """To be raised when results change for a reason outside the module that defines the class."""
    _code: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._code = source_digest(cls)

    def facts(self, leave_out: tuple[str, ...] = ()) -> dict[str, object]:
        """What an instance is, as plain data.

        Args:
            leave_out: arguments on which its value does not depend.

        Raises:
            UserError: an argument has no plain form.
        """
        cls = type(self)
        return {
            "class": class_name(cls),
            "version": cls.version,
            "code": [base._code for base in cls.__mro__ if issubclass(base, Keyed) and base is not Keyed],
            "arguments": arguments(self, leave_out),
        }
