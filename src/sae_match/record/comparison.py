"""A job's headline numbers beside its settings: one row per number, so that tables of many jobs can be stacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .metrics import Scalar

NUMBER_COLUMNS = ("number", "value", "low", "high")


def comparison_table(settings: Mapping[str, Any], numbers: Mapping[str, Scalar]) -> pd.DataFrame:
    """One row per headline number: the settings, then `number` (its name), `value`, and `low` and `high` where it has
    an interval. The bounds have no rows of their own.

    Raises:
        ValueError: a setting has the name of one of those columns.
    """
    if clash := settings.keys() & set(NUMBER_COLUMNS):
        raise ValueError(f"settings named like columns of the comparison: {sorted(clash)}")
    bounds = {f"{name}_{end}" for name in numbers for end in ("low", "high")}
    rows = [
        {
            **settings,
            "number": name,
            "value": value,
            "low": numbers.get(f"{name}_low"),
            "high": numbers.get(f"{name}_high"),
        }
        for name, value in sorted(numbers.items())
        if name not in bounds
    ]
    return pd.DataFrame(rows, columns=[*settings, *NUMBER_COLUMNS])
