"""Which interpolations a configuration may hold: those that look a value up, none that make structure out of text.

`${oc.create:...}` reads YAML and `${oc.decode:...}` values from a string, at a time when nobody checks any more
whether a `_target_` comes out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

RESOLVERS = ("oc.env", "oc.select", "hydra", "now", "python_version")
MAX_TEXT = 20_000
"""Characters of one value. The help text is the longest of ours, with some 2,000."""
COMMAND_LINE = "hydra.job.override_dirname"
"""All overrides in one text, which nobody wrote."""
MAX_NESTED = 20_000
"""Characters of all values together that need OmegaConf's parser, which reads some 50,000 in a second."""

_NAMES = "|".join(re.escape(name) for name in RESOLVERS)
_SIMPLE = re.compile(rf"(?:[^$]|\$\{{[\w.]+\}}|\$\{{(?:{_NAMES}):[^${{}}\[\]'\"\\]*\}})*")
"""Texts in which nothing nests, which need no parser (1 ms each)."""


def interpolation_problems(plain: Any) -> Iterator[str]:
    """A line for every value that is no allowed interpolation, or too long.

    Args:
        plain: nested dicts and lists, interpolations not resolved.
    """
    nested = 0
    for key, text in strings(plain):
        if len(text) > MAX_TEXT and key != COMMAND_LINE:
            yield f"{key}: {len(text)} characters; a value has at most {MAX_TEXT}"
            continue
        if "$" not in text or _SIMPLE.fullmatch(text):
            continue
        nested += len(text)
        problem = _problem(text) if nested <= MAX_NESTED else f"more than {MAX_NESTED} characters of interpolations"
        if problem is not None:
            yield f"{key}: {problem}"


def strings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every string."""
    if isinstance(value, str):
        yield prefix, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from strings(entry, f"{prefix}.{key}" if prefix else str(key))


@lru_cache(maxsize=1000)
def _problem(text: str) -> str | None:
    try:
        found = list(_walk(parse(text)))
    except RecursionError:
        return "its interpolations nest too deeply"
    except OmegaConfBaseException as error:
        return f"is no valid interpolation: {error}"
    return found[0] if found else None


def _walk(node: Any) -> Iterator[str]:
    if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
        name = node.getChild(1).getText()
        if name not in RESOLVERS:
            yield f"${{{name}:...}} is refused: a value may be looked up with {', '.join(RESOLVERS)} only"
    if isinstance(node, OmegaConfGrammarParser.DictContainerContext):
        yield "an interpolation with a {mapping} in it is refused"
    for number in range(node.getChildCount()):
        yield from _walk(node.getChild(number))
