"""The W&B id of a job: the same for every attempt at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .science import science_of

_DIGITS = 16
"""Hexadecimal digits of an id: 64 bits, which a project of a million runs does not exhaust."""


def run_id(config: Mapping[str, Any], place: Path) -> str:
    """An id that depends on the job's scientific configuration and on the sweep, or the single job, it belongs to.

    A second attempt in the same place so continues the W&B run of the first one, also where the jobs of a sweep have
    been numbered anew; the same configuration elsewhere is a run of its own.

    Args:
        config: the resolved configuration as nested plain dicts.
        place: the sweep's directory, or the job's where there is no sweep.
    """
    text = json.dumps([science_of(config), str(place.resolve())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
