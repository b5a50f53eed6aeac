"""The few configuration values that tell the jobs of a sweep apart, and the flat form of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FACTOR_PATHS: dict[str, str] = {
    "metric": "matching.metric",
    "folding": "folding.name",
    "folding_scale": "folding.scale",
    "include_bias": "matching.include_bias",
    "splice_units": "evaluation.splice_units",
    "solver": "solver.name",
    "sae": "sae.name",
    "model": "model.name",
    "dataset": "dataset.name",
    "layers_first": "layers.first",
    "layers_last": "layers.last",
    "evaluation": "evaluation.level",
    "judge": "judging.name",
    "seed": "seed",
}
"""Factor name -> its place in the resolved configuration. W&B cannot group by nested keys or tags, so
the factors stand at the top of a run's config; reports use the same names."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one level, keys joined with '.'; lists and empty mappings stay as values.

    Raises:
        ValueError: two keys flatten to the same name.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        items = flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        if clash := flat.keys() & items.keys():
            raise ValueError(f"configuration keys collide when flattened: {sorted(clash)}")
        flat.update(items)
    return flat


def factors_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The factors present in a resolved configuration, in the order of `FACTOR_PATHS`."""
    flat = flatten(config)
    return {name: flat[path] for name, path in FACTOR_PATHS.items() if path in flat}


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Factors at the top, then the whole configuration flattened: what W&B is given.

    Raises:
        ValueError: a factor's name is also a plain key with another value.
    """
    factors, flat = factors_of(config), flatten(config)
    for name, value in factors.items():
        if name in flat and flat[name] != value:
            raise ValueError(f"factor {name}={value!r} hides the configuration key {name}={flat[name]!r}")
    return {**flat, **factors}
