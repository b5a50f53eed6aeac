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
    "regularisation": "solver.regularisation",
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
