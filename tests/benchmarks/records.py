"""The results file: one JSON object a line, appended as measurements finish; the latest line of a key counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_match.errors import UserError

Record = dict[str, Any]
Key = tuple[str, str, int, str]
"""Problem, method, threads, device."""

FINAL = ("ok", "no answer", "missing")
"""Outcomes that another attempt under the same circumstances would only repeat."""


def key(record: Record) -> Key:
    """What a record measures."""
    return record["name"], record["method"], record["threads"], record["device"]


def append(path: Path, record: Record) -> None:
    """Add a record to the file; what a killed run left of a line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:
            path.write_bytes(whole[0] + whole[1])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")
        file.flush()


def read(paths: Iterable[Path]) -> dict[Key, Record]:
    """All records, the latest of each key.

    Raises:
        UserError: no such file, or a broken line that is not the last one (that one is dropped: a run was killed).
    """
    found: dict[Key, Record] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such results file; run python -m tests.benchmarks.run first")
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    continue
                raise UserError(f"{path}, line {number}: not JSON ({error})") from error
            found[key(record)] = record
    return found


def settled(record: Record | None, time_limit_s: float, memory_limit_gib: float) -> bool:
    """Whether measuring again under these limits could only give the same."""
    if record is None:
        return False
    if record["status"] == "time":
        return bool(record["time_limit_s"] >= time_limit_s)
    if record["status"] == "memory":
        return bool(record["memory_limit_gib"] >= memory_limit_gib)
    return record["status"] in FINAL


def too_big(record: Record, others: Iterable[Record]) -> Record | None:
    """A smaller problem of the same family at which the method already ran out of time under this limit, if any."""
    for other in others:
        same = all(other[field] == record[field] for field in ("method", "threads", "device"))
        family = all(other["problem"][field] == record["problem"][field] for field in ("kind", "d"))
        smaller = other["problem"]["width"] < record["problem"]["width"]
        slow = other["status"] == "time" and "inferred_from" not in other
        if same and family and smaller and slow and other["time_limit_s"] >= record["time_limit_s"]:
            return other
    return None
