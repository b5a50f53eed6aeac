"""The files of a record, plain values in them, and files of others in a directory that a job would take for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from ..errors import UserError
from ..files import read_json_object
from .documents import DOCUMENTS
from .labels import LABELS
from .state import STATUS

CONFIG, TEXT = "config.yaml", "text.json"
# Rows of the tables: features, matched features of every pair; paths, layers of each feature's path; top_tokens,
# tokens of each layer's features, the strongest first; stability, features and other seeds; functional, tested features
# by pair and matcher; children, features of the wider SAE that have a parent; steering, flows by scale and layer.
METRICS, PAIRS = "metrics.json", "pairs.csv"
FEATURES, PATHS, JUDGEMENTS = "features.parquet", "paths.parquet", "judgements.jsonl"
TOP_TOKENS, EXAMPLES, STABILITY = "top_tokens.parquet", "example_pairs.csv", "stability.parquet"
FUNCTIONAL, MATCHERS, CHILDREN = "functional.parquet", "matchers.json", "children.parquet"
STEERING, STEERING_EXAMPLES = "steering.parquet", "steering_examples.json"
FLOW, FLOW_EVENTS = "flow", "flow/events.csv"
TRACEBACK = "error.log"
PERMUTATIONS, FIGURES = "permutations", "figures"
RESULTS = (
    TEXT, METRICS, PAIRS, LABELS, FEATURES, DOCUMENTS, PATHS, TOP_TOKENS, EXAMPLES, STABILITY, FUNCTIONAL, MATCHERS,
    CHILDREN, STEERING, STEERING_EXAMPLES, JUDGEMENTS, TRACEBACK,
    "flow/nodes.parquet", "flow/edges.parquet", FLOW_EVENTS, "flow/flow.json", "flow/contexts.safetensors",
)  # fmt: skip
"""Files that a new attempt removes."""
_WRITTEN = {CONFIG, STATUS, TEXT, PERMUTATIONS, FIGURES, FLOW, *RESULTS}
_CONFIG_KEYS = {"matching", "folding", "solver", "sae", "layers", "paths"}


def holds_record(directory: Path) -> bool:
    """Whether a readable status.json or config.yaml in the directory is one that a job wrote."""
    if {"state", "process"} <= (read_json_object(directory / STATUS) or {}).keys():
        return True
    try:
        config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and config.keys() >= _CONFIG_KEYS


def refuse_foreign_files(directory: Path) -> None:
    """Refuse a directory with files that a job would replace and no record vouches for.

    Anything else may lie there: Hydra's and W&B's folders, logs, a lock, what the user's own callbacks write.

    Raises:
        UserError: naming the files.
    """
    if not directory.is_dir() or holds_record(directory):
        return
    foreign = sorted(path.name for path in directory.iterdir() if path.name in _WRITTEN)
    if foreign:
        raise UserError(
            f"{directory} holds files but no record of a job ({', '.join(foreign)}). A job replaces files such as "
            "figures/*.png and metrics.json, so its directory must be new, or without such files, or an earlier "
            "record. Choose another paths.output_dir (or hydra.run.dir)."
        )


Scalar = float | int | str | bool | None


def plain_scalar(name: str, value: object) -> Scalar:
    """A JSON scalar for a Python or NumPy one.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"metric {name}: expected a number, text, bool or None, got {type(value).__name__}")


def plain_metrics(metrics: Mapping[str, object]) -> dict[str, Scalar]:
    """The metrics as JSON scalars, sorted by name.

    Raises:
        TypeError: a name is no string, or a value is no scalar.
    """
    for name in metrics:
        if not isinstance(name, str) or not name:
            raise TypeError(f"metric names are non-empty strings, not {name!r}")
    return {name: plain_scalar(name, metrics[name]) for name in sorted(metrics)}


def undefined(metrics: Mapping[str, object]) -> list[str]:
    """Names of the values that are NaN or infinite."""
    return sorted(
        name for name, value in metrics.items() if isinstance(value, (float, np.floating)) and not math.isfinite(value)
    )
