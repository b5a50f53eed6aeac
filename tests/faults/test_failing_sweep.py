"""Ten jobs of which one fails, again, and after the mend; `python -m tests.faults.failing_sweep` takes 200."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.failing_sweep import problems

pytestmark = pytest.mark.slow


def test_one_bad_job_in_ten(tmp_path: Path) -> None:
    assert problems(tmp_path, jobs=10) == []
