"""What tells jobs apart: the factors that vary, labels, and the numbers that do not depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..record.configuration import FACTOR_PATHS, RUNTIME_KEYS
from .records import Record


def comparison_keys(records: Sequence[Record]) -> list[str]:
    """Names of the settings that vary between the records: the factors, and, where these leave two jobs looking alike,
    the other configuration keys that vary outside the groups whose name is a factor already listed."""
    configured = [record for record in records if record.config]
    keys = [name for name in FACTOR_PATHS if _varies(name, configured)]
    if len({_values(record, keys) for record in configured}) == len(configured):
        return keys
    covered = {FACTOR_PATHS[name].split(".")[0] for name in keys if FACTOR_PATHS[name].endswith(".name")}
    skipped = covered.union(RUNTIME_KEYS, ("device", "experiment"))
    flat = sorted({key for record in configured for key in record.flat} - set(FACTOR_PATHS.values()))
    return keys + [key for key in flat if key.split(".")[0] not in skipped and _varies(key, configured)]


def setting(record: Record, key: str) -> Any:
    """A factor's or a dotted configuration key's value, or None."""
    return record.factors[key] if key in record.factors else record.flat.get(key)


def job_labels(records: Sequence[Record]) -> list[str]:
    """A short, distinct label per record: its varying settings, with the job's name where these do not suffice."""
    keys = comparison_keys(records)
    plain = [", ".join(f"{key}={setting(record, key)}" for key in keys if record.config) for record in records]
    return [
        text if text and plain.count(text) == 1 else f"{text} ({record.name})".strip()
        for text, record in zip(plain, records, strict=True)
    ]


def shared(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The items that every mapping holds with the same value, in the first one's order."""
    if not mappings:
        return {}
    return {
        key: value
        for key, value in mappings[0].items()
        if all(key in other and other[key] == value for other in mappings[1:])
    }


def _varies(key: str, records: Sequence[Record]) -> bool:
    return len({repr(setting(record, key)) for record in records}) > 1


def _values(record: Record, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(setting(record, key)) for key in keys)
