"""The check that every call of the package goes through under test: are arrays of the annotated shape and kind?

`conftest.py` hands it to jaxtyping's import hook. Other annotations are mypy's; checked again at every call they would
cost more time than the tests have.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

T = TypeVar("T", bound=Callable[..., Any])
PACKAGES = ("saes", "matching", "metrics", "evaluation", "language_model", "text")
RESULT = "ret0"
"""What jaxtyping calls the parameter that a result is checked as."""
UNCHECKED = ("ActivationRequest.__init__", "FeaturePair.__init__")
"""What it holds is refused by the function that it is made for, in words for the user."""


def modules(sources: Path) -> list[str]:
    """The modules that have shapes, but for the kernels, which Numba compiles as they are."""
    paths = sorted(path for package in PACKAGES for path in (sources / "sae_match" / package).rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.name != "__init__.py"}
    shaped = [path for path, text in texts.items() if "from jaxtyping" in text and "@njit" not in text]
    return [".".join(path.relative_to(sources).with_suffix("").parts) for path in shaped]


def install(sources: Path) -> None:
    """Check the modules that are imported from here on.

    The import hook would decorate every function of theirs, and each call of one binds its arguments to its signature:
    a fifth of a small job's time. Only those whose annotations have shapes are decorated.
    """
    decorate = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[T], T]:
        return lambda one: decorate(one, typechecker=typechecker) if is_shaped(one) else one

    jaxtyping.jaxtyped = jaxtyped  # the hook's decorator is this attribute
    jaxtyping.install_import_hook(modules(sources), f"{__name__}.check")


def is_shaped(one: Callable[..., Any]) -> bool:
    """Whether a function, or the constructor of a dataclass, has an array's shape among its annotations."""
    if inspect.isclass(one):
        return dataclasses.is_dataclass(one) and is_shaped(one.__init__)
    return any(has_shape(evaluated(hint, one.__globals__)) for hint in one.__annotations__.values())


def evaluated(hint: object, names: dict[str, Any]) -> object:
    """An annotation's value; of one that names what is there for type checkers only, its text."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except (NameError, AttributeError, TypeError):
        return hint


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker for jaxtyping: the shapes among a function's annotations, and nothing else.

    jaxtyping asks twice, for the parameters before a call, and for all of it with the result, which is one more
    parameter, after the call. Only the second is checked: a function may refuse a wrong shape in words of its own.
    """
    kept = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not kept or RESULT not in function.__annotations__ or function.__qualname__ in UNCHECKED:
        return function
    function.__annotations__ = kept
    # The numeric tower: an int is a float.
    checked: Callable[..., Any] = beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    return checked


def has_shape(hint: object) -> bool:
    """Whether an annotation is an array's, or contains one."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(has_shape(inner) for inner in get_args(hint))
