"""A configuration as records see it: its flat form, its factors, the part that decides results, and ids from that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_ID_DIGITS = 16
"""Hexadecimal digits of an id: 64 bits, which a project of a million runs does not exhaust."""

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

COLUMN_PATHS: dict[str, str] = FACTOR_PATHS | {
    "weight_W_enc": "matching.weights.W_enc",
    "weight_b_enc": "matching.weights.b_enc",
    "weight_W_dec": "matching.weights.W_dec",
    "rejection_cost": "matching.rejection_cost",
    "n_pairs": "matching.n_pairs",
    "unmatched_dead": "matching.dead_features",
    "folding_k": "folding.k",
    "sae_l0": "sae.l0",
    "sae_l0_near": "sae.l0_near",
    "sae_width": "sae.width",
    "sae_root": "sae.root",
    "sae_filename": "sae.filename",
    "model_dtype": "model.dtype",
    "bos": "model.bos",
    "documents": "dataset.documents",
    "window_tokens": "dataset.window_tokens",
    "dataset_seed": "dataset.seed",
    "quantiles": "evaluation.quantiles",
    "max_distance": "composition.max_distance",
    "starts": "composition.starts",
    "regularization": "solver.regularization",
    "rounding": "solver.rounding",
    "time_limit_s": "solver.time_limit_s",
    "judge_model": "judging.model",
    "judge_overlap": "judging.overlap",
}
"""Columns of a W&B run: the factors, and what else an experiment may vary. Reports find those by themselves."""


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


def columns_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The columns present in a resolved configuration, in the order of `COLUMN_PATHS`.

    Lists become text such as `0.1, 0.5`, because W&B groups by scalars only.
    """
    flat = flatten(config)
    present = {name: flat[path] for name, path in COLUMN_PATHS.items() if path in flat}
    return {
        name: ", ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else value
        for name, value in present.items()
    }


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Columns at the top, then the whole configuration flattened, without the classes that options are built from:
    what W&B is given.

    Raises:
        ValueError: a factor's name is also a plain key with another value.
    """
    columns, flat = columns_of(config), flatten(config)
    flat = {name: value for name, value in flat.items() if name.rpartition(".")[2] != "_target_"}
    for name, value in columns.items():
        if name in flat and flat[name] != value:
            raise ValueError(f"factor {name}={value!r} hides the configuration key {name}={flat[name]!r}")
    return {**flat, **columns}


RUNTIME_KEYS = ("paths", "tracking", "progress", "dry_run", "rerun", "objective", "capture", "trusted_packages")
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
LOCATIONS = ("sae.root", "model.path", "dataset.path", "judging.neuronpedia", "matching.folder")
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


def run_id(config: Mapping[str, Any], place: Path) -> str:
    """An id that depends on the job's scientific configuration and on the sweep, or the single job, it belongs to.

    A second attempt in the same place so continues the W&B run of the first one, also where the jobs of a sweep have
    been numbered anew; the same configuration elsewhere is a run of its own.

    Args:
        config: the resolved configuration as nested plain dicts.
        place: the sweep's directory, or the job's where there is no sweep.
    """
    text = json.dumps([science_of(config), str(place.resolve())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_DIGITS]
