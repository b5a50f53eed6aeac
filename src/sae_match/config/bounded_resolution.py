"""Interpolations resolved within bounds: `${a}${a}`, where a is `${b}${b}`, and so on, would double without end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sae_match.errors import UserError

MAX_COST = 100_000
"""What one composition may resolve: characters read and yielded, with `EVALUATION` for every value beside them. An
ordinary composition costs 7,000; this many take seconds, since OmegaConf parses a value whenever it is named."""
EVALUATION = 50
MAX_DEPTH = 60
"""Levels of one value. OmegaConf, Hydra and YAML's writer all recurse."""
AT_LAUNCH = {"runtime.output_dir": "out", "job.num": 0, "job.id": "0"}
"""What Hydra fills in after composing, and what stands for it while a configuration is checked."""


class _TooMuch(BaseException):
    """Not an Exception: OmegaConf turns those into its own, which callers may take for a value that is missing."""


@contextmanager
def bounded_resolution() -> Iterator[None]:
    """Inside the block interpolations cost at most `MAX_COST` together; beyond, UserError."""
    original: Any = Container._resolve_interpolation_from_parse_tree
    spent = 0

    def resolve(self: Container, *args: Any, value: Node, **kwargs: Any) -> Any:
        nonlocal spent
        spent += EVALUATION + len(str(value._value()))
        if spent > MAX_COST:
            raise _TooMuch
        found = original(self, *args, value=value, **kwargs)
        content = None if found is None else found._value()
        spent += len(content) if isinstance(content, str) else 0
        return found

    Container._resolve_interpolation_from_parse_tree = resolve  # type: ignore[assignment, method-assign]
    try:
        yield
    except _TooMuch as error:
        raise UserError(
            "the configuration's interpolations (${...}) name one another so often that resolving them would take "
            "too long. Write out the values"
        ) from error
    finally:
        Container._resolve_interpolation_from_parse_tree = original  # type: ignore[method-assign]


def resolved_where_possible(cfg: DictConfig) -> Any:
    """Nested dicts and lists with every interpolation resolved, as far as that can be done before a job starts.

    What cannot be resolved yet stays as it is written.
    """
    there = copy.deepcopy(cfg)
    with read_write(there), open_dict(there):
        for key, value in AT_LAUNCH.items():
            if "hydra" in there and OmegaConf.select(there.hydra, key) is None:
                OmegaConf.update(there.hydra, key, value)
    before = HydraConfig.instance().cfg
    try:
        if "hydra" in there:
            HydraConfig.instance().set_config(there)
        return _plain(there)
    finally:
        HydraConfig.instance().cfg = before


def _plain(node: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise UserError(f"the configuration is nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, DictConfig):
        return {key: _entry(node, key, depth) for key in node} if _has_content(node) else None
    if isinstance(node, ListConfig):
        return [_entry(node, number, depth) for number in range(len(node))] if _has_content(node) else None
    return node


def _has_content(node: Container) -> bool:
    return not (node._is_none() or node._is_missing())


def _entry(parent: Any, key: Any, depth: int) -> Any:
    try:
        return _plain(parent[key], depth + 1)
    except OmegaConfBaseException:
        node = parent._get_node(key)
        return None if node is None else node._value()
