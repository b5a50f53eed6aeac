"""A few hundred hostile inputs per kind; `python -m tests.faults.fuzz` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import fuzz
from tests.faults.fuzz_targets import targets

EXAMPLES = {
    "npz": 300,
    "safetensors": 300,
    "cfg.json": 300,
    "explanations": 300,
    "gguf": 300,
}
LIMIT_SECONDS = 60.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_hostile_input_is_refused_or_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes, _ = fuzz(targets()[name], EXAMPLES[name], seed=0, limit=LIMIT_SECONDS, root=tmp_path)
    assert outcomes["refused"] > 0 and outcomes.total() >= EXAMPLES[name] // 2
