"""The three levels of verbosity, where the output is no terminal."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from sae_match.experiment import job
from sae_match.plan.plan import Plan
from sae_match.saes import save_native
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import random_sae
from tests.cli.test_command_line import run_in, weights_only

LEVELS = {
    "quiet": (["a warning"], ["objective", "record:", "a detail", "a library's news"], "error"),
    "normal": (["a warning", "objective", "record:", "a library's news"], ["a detail", "INFO"], "None"),
    "debug": (["WARNING sae_match.probe: a warning", "objective", "DEBUG sae_match.probe: a detail"], [], "info"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_what_each_level_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    for layer in range(3):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    make_plan = job.make_plan

    def speak(cfg: Study, store: Store) -> Plan:
        """Log and print what libraries of a job's own would."""
        logging.getLogger("sae_match.probe").debug("a detail")
        logging.getLogger("somelibrary").info("a library's news")
        logging.getLogger("sae_match.probe").warning("a warning")
        print("TRANSFORMERS", os.environ.get("TRANSFORMERS_VERBOSITY"), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))
        return make_plan(cfg, store)

    monkeypatch.setattr(job, "make_plan", speak)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    arguments = weights_only(tmp_path / "saes", "tracking=none", f"verbosity={level}", "hydra.run.dir=run")
    done = run_in(tmp_path, *arguments)
    assert done.code == 0, done.err
    shown, hidden, libraries = LEVELS[level]
    for text in shown:
        assert text in done.err, text
    for text in hidden:
        assert text not in done.err, text
    assert f"TRANSFORMERS {libraries} 1" in done.out  # no bars of theirs, as this is no terminal
    assert "%|" not in done.err
    log = (tmp_path / "run" / "sae_match.log").read_text()
    assert re.search(r"INFO .*objective", log) and "WARNING sae_match.probe: a warning" in log
    assert ("a detail" in log) == (level == "debug")
