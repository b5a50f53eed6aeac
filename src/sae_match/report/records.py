"""Reading records back: one directory with a status.json is one job."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import UserError
from ..record.configuration import factors_of, flatten
from ..record.contents import CONFIG, METRICS, PAIRS
from ..record.labels import BUILT_IN_LABELS, LABELS, Labels, read_labels
from ..record.pairs import read_pairs
from ..record.state import STATUS, interpret

BAD_STATES = ("failed", "killed", "unreadable")
"""States that make a report end with a non-zero exit code."""


@dataclass(frozen=True)
class Record:
    """One job as its directory tells it.

    `state` is running, done, failed or killed (also where its process is gone without saying so), or "unreadable" where
    a file of the record is damaged (`error` then says which). `pairs` is None where the job has no pairs.csv. `labels`
    are the package's own and what the record says beside them. `parts` are the jobs that a record was merged from
    (`merge.merge_spans`), if it was.
    """

    name: str
    path: Path
    state: str
    error: str | None = None
    seconds: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    pairs: pd.DataFrame | None = None
    labels: Labels = BUILT_IN_LABELS
    parts: tuple[Record, ...] = ()

    @cached_property
    def factors(self) -> dict[str, Any]:
        """The factors of the job's configuration (`record.FACTOR_PATHS`)."""
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
    def reason(self) -> str:
        """The first line of the error, without surrounding space; empty where there is none."""
        lines = (self.error or "").strip().splitlines()
        return " ".join(lines[0].split()) if lines else ""


def read_record(path: Path, name: str | None = None) -> Record:
    """Read one job's directory; damage is reported in the result, not raised, so that one broken job
    does not hide the others of a sweep."""
    name = path.name if name is None else name
    try:
        status = _mapping(path / STATUS, json.loads)
        now = interpret(status, path, probe=False)
        error = now.error
        return Record(
            name=name,
            path=path,
            state=now.state,
            error=None if error is None else f"{error['type']}: {error['message']}",
            seconds=now.seconds,
            config=_mapping(path / CONFIG, _yaml) if (path / CONFIG).exists() else {},
            metrics=_mapping(path / METRICS, json.loads) if (path / METRICS).exists() else {},
            pairs=_pairs(path / PAIRS) if (path / PAIRS).exists() else None,
            labels=read_labels(path / LABELS),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Record(name=name, path=path, state="unreadable", error=f"{type(error).__name__}: {error}")


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
    ordered = sorted(folders, key=_natural)
    return [read_record(folder, _name(folder, root)) for folder in ordered]


def _name(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return folder.name if relative == "." else relative


def _natural(path: Path) -> list[tuple[int, int, str]]:
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]


def _yaml(text: str) -> Any:
    """Like `yaml.safe_load`, with libyaml where it is there: ten times faster, which hundreds of jobs notice."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: expected a mapping, got {type(value).__name__}")
    return value


def _pairs(path: Path) -> pd.DataFrame:
    try:
        return read_pairs(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
