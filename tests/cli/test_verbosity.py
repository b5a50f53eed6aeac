"""The three levels of verbosity, in a subprocess whose output is no terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli.test_command_line import run_cli, weights_only

# What a job prints through libraries of its own is checked with messages of these two.
SITE = """
import logging, os, threading
def speak():
    from sae_match.experiment import job
    inner = job.make_plan
    def make_plan(cfg):
        logging.getLogger("sae_match.probe").debug("a detail")
        logging.getLogger("somelibrary").info("a library's news")
        logging.getLogger("sae_match.probe").warning("a warning")
        print("TRANSFORMERS", os.environ.get("TRANSFORMERS_VERBOSITY"), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))
        return inner(cfg)
    job.make_plan = make_plan
import sae_match.config.compose as compose
original = compose.to_dataclass
def to_dataclass(cfg, kind):
    speak()
    return original(cfg, kind)
compose.to_dataclass = to_dataclass
"""
LEVELS = {
    "quiet": (["a warning"], ["objective", "record:", "a detail", "a library's news"], "error"),
    "normal": (["a warning", "objective", "record:", "a library's news"], ["a detail", "INFO"], "None"),
    "debug": (["WARNING sae_match.probe: a warning", "objective", "DEBUG sae_match.probe: a detail"], [], "info"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_what_each_level_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    for layer in range(3):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    arguments = weights_only(tmp_path / "saes", "tracking=none", f"verbosity={level}", "hydra.run.dir=run")
    done = run_cli(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    shown, hidden, libraries = LEVELS[level]
    for text in shown:
        assert text in done.stderr, text
    for text in hidden:
        assert text not in done.stderr, text
    assert f"TRANSFORMERS {libraries} 1" in done.stdout  # no bars of theirs, as this is no terminal
    assert "%|" not in done.stderr
    log = (tmp_path / "run" / "sae_match.log").read_text()
    assert re.search(r"INFO .*objective", log) and "WARNING sae_match.probe: a warning" in log
    assert ("a detail" in log) == (level == "debug")
