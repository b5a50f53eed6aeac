"""Records read back, one per directory with a status.json, and what tells them apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import DamagedFileError, UserError
from ..record.configuration import FACTOR_PATHS, RUNTIME_KEYS, factors_of, flatten
from ..record.contents import CONFIG, METRICS, PAIRS
from ..record.labels import BUILT_IN_LABELS, LABELS, Labels, read_labels
from ..record.pairs import read_pairs
from ..record.state import STATUS, interpret

LOOKS = ("label", "style")
"""Last parts of keys that say how something is drawn."""
BAD_STATES = ("failed", "killed", "unreadable")
"""States that make a report end with a non-zero exit code."""
REFUSALS = ("UserError", "HubRefusalError")
"""Errors of configurations and inputs that cannot work."""


@dataclass(frozen=True)
class Record:
    """One job as its directory holds it.

    Attributes:
        state: running, done, failed, killed (also where its process is gone), or "unreadable" where a file of the
            record is damaged (`error` names it).
        warnings: what a reader of the results must know, from the job's status.
        pairs: the table of pairs.csv; None where the job has none.
        labels: the package's own and those of the record.
        parts: the jobs that a record was merged from (`merge_spans`), if it was.
    """

    name: str
    path: Path
    state: str
    error: str | None = None
    seconds: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    pairs: pd.DataFrame | None = None
    labels: Labels = BUILT_IN_LABELS
    parts: tuple[Record, ...] = ()

    @cached_property
    def factors(self) -> dict[str, Any]:
        """The factors of the job's configuration (`record.configuration.FACTOR_PATHS`)."""
        return factors_of(self.config)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The job's configuration on one level, keys joined with '.'."""
        return flatten(self.config)

    @property
    def sources(self) -> tuple[Record, ...]:
        """The jobs on disk behind this record: its parts, or itself."""
        return self.parts or (self,)

    @property
    def refused(self) -> bool:
        """Whether the job ended before its work began, since its configuration or an input cannot work."""
        kind = (self.error or "").partition(":")[0]
        return self.state == "failed" and kind in REFUSALS and self.pairs is None

    @property
    def outcome(self) -> str:
        """The state, as tables show it: a job that was refused did not fail at its work."""
        return "refused" if self.refused else self.state

    @property
    def reason(self) -> str:
        """The first line of the error; empty where there is none."""
        return " ".join((self.error or "").strip().partition("\n")[0].split())

    def number(self, name: str) -> float | None:
        """A headline number of a finished job."""
        value = self.metrics.get(name) if self.state == "done" else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_record(path: Path, name: str | None = None) -> Record:
    """Read one job's directory. Damage gives a record of the state "unreadable", not an error, so that one broken job
    does not hide the others of a sweep."""
    name = path.name if name is None else name
    try:
        status = _read(path / STATUS, _mapping)
        now = interpret(status, path, probe=False)
        labels = read_labels(path / LABELS)
        for file in (CONFIG, METRICS, PAIRS) if now.state == "done" else ():
            if not (path / file).is_file():
                raise ValueError(f"{file} is missing: run the job again, with rerun=all")
        return Record(
            name=name,
            path=path,
            state=now.state,
            error=None if now.error is None else f"{now.error['type']}: {now.error['message']}",
            seconds=now.seconds,
            config=_read(path / CONFIG, _mapping, {}),
            metrics=_read(path / METRICS, _mapping, {}),
            warnings=tuple(str(warning) for warning in status.get("warnings") or ()),
            pairs=_read(path / PAIRS, read_pairs),
            labels=labels,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Record(name=name, path=path, state="unreadable", error=f"{type(error).__name__}: {error}")


def set_aside(records: Sequence[Record], damaged: DamagedFileError) -> list[Record]:
    """The records, that to which a damaged file belongs as unreadable.

    Raises:
        DamagedFileError: it belongs to none of them.
    """
    theirs = [damaged.path.is_relative_to(record.path) and record.state != "unreadable" for record in records]
    if not any(theirs):
        raise damaged
    return [
        replace(record, state="unreadable", error=str(damaged)) if its else record
        for record, its in zip(records, theirs, strict=True)
    ]


def _read(path: Path, read: Callable[[Path], Any], absent: Any = None) -> Any:
    """What `read` makes of a file, `absent` where there is none; an error names the file."""
    if not path.exists():
        return absent
    try:
        return read(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    # libyaml is ten times faster than safe_load, which counts for hundreds of jobs.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    value = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=loader)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    return value


def find_records(paths: Sequence[Path]) -> list[Record]:
    """Every record at or below the paths, in natural order (job 10 after job 9), each once.

    A job is named by its place below the one path given, or below what several paths have in common.

    Raises:
        UserError: a path does not exist, or nothing at or below the paths is a record.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a directory. Give the directory of a job or of a sweep.")
    folders = {status.parent.resolve() for path in paths for status in path.rglob(STATUS)}
    if not folders:
        listed = ", ".join(str(path) for path in paths)
        raise UserError(f"no job found under {listed}: a job's directory holds a {STATUS}.")
    root = Path(os.path.commonpath([path.resolve() for path in paths]))
    return [
        read_record(folder, folder.name if folder == root else folder.relative_to(root).as_posix())
        for folder in sorted(folders, key=_natural)
    ]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]


def setting(record: Record, key: str) -> Any:
    """A factor's or a dotted configuration key's value, or None."""
    return record.factors[key] if key in record.factors else record.flat.get(key)


def comparison_keys(records: Sequence[Record]) -> list[str]:
    """Names of the settings that vary between the records: the factors, and, where these leave two jobs looking alike,
    the other configuration keys that vary outside the groups whose name is a factor already listed."""
    configured = [record for record in records if record.config]

    def varies(key: str) -> bool:
        return len({repr(setting(record, key)) for record in configured}) > 1

    keys = [name for name in FACTOR_PATHS if varies(name)]
    if len({repr([setting(record, key) for key in keys]) for record in configured}) == len(configured):
        return keys
    covered = {FACTOR_PATHS[name].split(".")[0] for name in keys if FACTOR_PATHS[name].endswith(".name")}
    skipped = covered.union(RUNTIME_KEYS, ("device", "experiment"))
    flat = sorted({key for record in configured for key in record.flat} - set(FACTOR_PATHS.values()))
    meant = [key for key in flat if key.split(".")[0] not in skipped and key.rpartition(".")[2] not in LOOKS]
    return keys + [key for key in meant if varies(key)]


def job_labels(records: Sequence[Record]) -> list[str]:
    """A short, distinct label per record: its varying settings, by the last parts of their keys where these tell them
    apart, with the job's name where the settings do not suffice."""
    keys = comparison_keys(records)
    last = [key.rpartition(".")[2] for key in keys]
    names = {key: part if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)}
    plain = [", ".join(f"{names[key]}={setting(record, key)}" for key in keys if record.config) for record in records]
    return [
        text if text and plain.count(text) == 1 else f"{text} ({record.name})".strip()
        for text, record in zip(plain, records, strict=True)
    ]


def shared(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The items that every mapping holds with the same value, in the first one's order."""
    first = mappings[0] if mappings else {}
    return {
        key: value for key, value in first.items() if all(key in other and other[key] == value for other in mappings)
    }
