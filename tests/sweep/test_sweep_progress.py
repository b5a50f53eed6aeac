"""Where a sweep stands: counted from notes on disk."""

from __future__ import annotations

import json
from pathlib import Path

from sae_match.sweep.notes import progress_line


def test_a_job_knows_its_place(tmp_path: Path) -> None:
    (tmp_path / ".jobs").mkdir()
    (tmp_path / ".jobs" / "sweep.json").write_text(json.dumps([[f"seed={i}"] for i in range(12)]))
    assert progress_line(tmp_path, 2) == "job 3 of 12"
    assert progress_line(tmp_path / "elsewhere", 4) == "job 5"
