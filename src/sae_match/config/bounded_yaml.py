"""YAML read within bounds: an alias bomb (nested anchors that name one another) is refused before it is expanded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import omegaconf._utils
import omegaconf.basecontainer
import yaml

from sae_match.errors import UserError

MAX_CHARACTERS = 1_000_000
MAX_ENTRIES = 10_000
"""Keys and values of one file, each alias counted as what it stands for. OmegaConf copies what an alias names: 0.1 ms
and 2 kB an entry, so nine lines of ten aliases each would take days and terabytes."""
MAX_DEPTH = 40
MAX_NUMBER = 400
"""Characters of a number: YAML 1.1 reads 1:59:59... as a number in base 60, in quadratic time."""


@contextmanager
def bounded_yaml() -> Iterator[None]:
    """Inside the block OmegaConf, and so Hydra, reads YAML within the bounds above, and raises UserError beyond."""
    original = omegaconf._utils.get_yaml_loader
    modules: tuple[Any, ...] = (omegaconf._utils, omegaconf.basecontainer)

    def get_yaml_loader() -> Any:
        return _bounded(original())

    for module in modules:
        module.get_yaml_loader = get_yaml_loader
    try:
        yield
    finally:
        for module in modules:
            module.get_yaml_loader = original


def _bounded(base: Any) -> Any:
    class BoundedLoader(base):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self.nodes = self.depth = 0
            text = stream.read(MAX_CHARACTERS + 1) if hasattr(stream, "read") else stream
            self.source = getattr(stream, "name", "a YAML text")
            if len(text) > MAX_CHARACTERS:
                raise UserError(f"{self.source}: more than {MAX_CHARACTERS} characters are no configuration")
            named: Any = io.StringIO(text) if isinstance(text, str) else io.BytesIO(text)
            named.name = self.source  # for the parser's own messages
            super().__init__(named)

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            self.depth += 1
            if self.nodes > MAX_ENTRIES or self.depth > MAX_DEPTH:
                raise _too_much(self.source)
            try:
                node = super().compose_node(parent, index)
            finally:
                self.depth -= 1
            numeric = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if numeric and isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_NUMBER:
                raise UserError(f"{self.source}: a number of {len(node.value)} characters")
            return node

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None:
                _expanded(node, self.source, 1, {})
            return node

    return BoundedLoader


def _expanded(node: yaml.Node, source: str, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Entries and depth of a node with its aliases written out, from a graph that shares what they name."""
    if id(node) not in known:
        if depth > MAX_DEPTH:  # also an alias within what it names
            raise _too_much(source)
        size, height = 1, 1
        for child in _children(node):
            entries, levels = _expanded(child, source, depth + 1, known)
            size, height = size + entries, max(height, 1 + levels)
            if size > MAX_ENTRIES:
                raise _too_much(source)
        known[id(node)] = size, height
    if depth + known[id(node)][1] > MAX_DEPTH + 1:
        raise _too_much(source)
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _too_much(source: str) -> UserError:
    return UserError(
        f"{source}: more than {MAX_ENTRIES} entries, or nested deeper than {MAX_DEPTH}, each alias (*name) counted as "
        "what it stands for. Write out what is needed, without anchors and aliases"
    )
