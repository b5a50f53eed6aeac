"""Which headline numbers are compared between jobs, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence

from .records import Record

COMPARED = (
    "matching_score",
    "matching_iou",
    "explained_variance/encode_permute_decode",
    "delta_loss/encode_permute_decode",
    "weight_mse/W_dec",
    "weight_mse/W_enc",
    "weight_mse/b_enc",
    "judge/same",
)
"""Headline numbers that the matching decides, as far as any record has them; controls have no rank."""

LOWER_IS_BETTER = ("delta_loss", "delta_loss_difference", "weight_mse", "fvu", "gap", "objective", "solver_seconds")


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of this headline number (or metric) is the better one."""
    return name.split("/", maxsplit=1)[0] in LOWER_IS_BETTER


def titled(name: str) -> str:
    """The name as a column's heading: marked where the lower value is the better one."""
    return f"{name} ↓" if lower_is_better(name) else name


def compared_metrics(records: Sequence[Record], asked: Sequence[str] | None = None) -> list[str]:
    """The names asked for, or those of `COMPARED`, that at least two finished jobs have."""
    return [name for name in asked or COMPARED if sum(number(record, name) is not None for record in records) > 1]


def number(record: Record, name: str) -> float | None:
    """A headline number of a finished job."""
    value = record.metrics.get(name) if record.state == "done" else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
