"""Which part of a configuration decides results: what tells two jobs apart, whoever runs them, wherever they write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RUNTIME_KEYS = ("paths", "tracking", "progress", "dry_run", "rerun", "capture", "trusted_packages")
"""Top-level keys that may change without making it another job: where results go, who is told, what is shown."""
EXECUTION = (
    "solver.memory_limit_gib",
    "model.max_memory",
    "judging.api_key_variable",
    "judging.concurrency",
    "judging.retries",
    "judging.timeout_s",
    "judging.max_failures",
    "judging.price_input",
    "judging.price_output",
    "judging.max_cost",
)
"""Dotted keys that decide whether and how fast a job gets through, never what it finds. What can move a number, if only
in its last bits (device, batch sizes, the solver's time limit), stays in."""
LOCATIONS = ("sae.root", "model.path", "dataset.path", "judging.neuronpedia")
"""Dotted keys that say where inputs lie. A job's key holds the inputs' content in their place."""


def science_of(config: Any, without: tuple[str, ...] = ()) -> Any:
    """The scientific part of a resolved configuration (nested mappings), with string keys throughout.

    Args:
        config: as read from config.yaml; what is no mapping is returned as it is.
        without: further dotted keys to leave out.
    """
    if not isinstance(config, Mapping):
        return config
    kept = {name: value for name, value in config.items() if name not in RUNTIME_KEYS}
    return _without(kept, (*EXECUTION, *without))


def science_hash(config: Any) -> str:
    """Hash of `science_of` a configuration, 64 hexadecimal digits; any content has one, also one that cannot work."""
    text = json.dumps(science_of(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without(config: Mapping[Any, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {
        str(name): _without(value, names, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in config.items()
        if f"{prefix}{name}" not in names
    }
