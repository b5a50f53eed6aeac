"""Where a sweep stands: counted from notes on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sae_match.sweep.notes import progress_line

START = 1_700_000_000


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of twelve jobs that began at START."""
    (tmp_path / ".jobs").mkdir()
    planned = tmp_path / ".jobs" / "sweep.json"
    planned.write_text(json.dumps([[f"seed={i}"] for i in range(12)]))
    os.utime(planned, (START, START))
    return tmp_path


def note(sweep: Path, number: int, action: str = "run", seconds: float | None = 60.0, error: str | None = None) -> None:
    content = {"job": number, "overrides": [], "action": action, "error": error, "record": str(number)}
    (sweep / ".jobs" / f"{number}.json").write_text(json.dumps(content))
    (sweep / str(number)).mkdir(exist_ok=True)
    (sweep / str(number) / "status.json").write_text(json.dumps({"state": "done", "seconds": seconds}))


def test_the_first_job_has_nothing_to_go_by(sweep: Path) -> None:
    note(sweep, 0, seconds=None)
    assert progress_line(sweep, 0, now=START + 5) == "job 1 of 12"


def test_time_left_is_that_of_the_jobs_so_far(sweep: Path) -> None:
    for number in range(2):
        note(sweep, number)
    note(sweep, 2, seconds=None)
    # Two jobs in 168 s: 84 s each, and ten are left.
    assert progress_line(sweep, 2, now=START + 168) == "job 3 of 12, about 14 min left"


def test_jobs_that_were_finished_before_do_not_count_as_fast_ones(sweep: Path) -> None:
    for number in range(8):
        note(sweep, number, action="skip")
    note(sweep, 8)
    note(sweep, 9, seconds=None)
    assert progress_line(sweep, 9, now=START + 600) == "job 10 of 12, about 30 min left"


def test_failed_jobs_are_over_and_running_ones_are_not(sweep: Path) -> None:
    note(sweep, 0, seconds=None, error="UserError: no SAE")
    note(sweep, 1)
    note(sweep, 2, seconds=None)
    note(sweep, 3, seconds=None)
    assert progress_line(sweep, 3, now=START + 120) == "job 4 of 12, about 10 min left"


def test_a_clock_that_went_back_and_missing_notes(sweep: Path, tmp_path: Path) -> None:
    note(sweep, 0)
    assert progress_line(sweep, 1, now=START - 10) == "job 2 of 12"
    assert progress_line(tmp_path / "elsewhere", 4) == "job 5"
