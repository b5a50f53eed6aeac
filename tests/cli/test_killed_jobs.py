"""Jobs that are killed: the record says so, and the next attempt goes on from what was committed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sae_match.report.records import read_record
from sae_match.store import Store
from tests.faults.kill_loop import Moment, Setting, kill_and_rerun, kill_when, results, scientific_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting.build(tmp_path_factory.mktemp("setting") / "inputs")


@pytest.fixture(scope="module")
def reference(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An undisturbed job with a cache of its own."""
    place = tmp_path_factory.mktemp("reference")
    setting.run(place / "out", place / "cache")
    return scientific_results(place / "out")


def files(folder: str, count: int) -> Moment:
    """The moment at which so many entries of a part of the cache are committed."""
    return lambda output, cache: lambda: len(list((Store(cache).root / folder).glob("[0-9a-f]*.safetensors"))) >= count


@pytest.mark.parametrize(
    ("moment", "passes"),
    [
        (files("matchings", 1), 0),
        (files("activations", 2), 2),
        (files("token_losses", 3), 3),
    ],
    ids=["one pair matched", "two pairs counted", "splicing"],
)
def test_after_sigkill_nothing_committed_is_computed_again_and_results_are_identical(
    setting: Setting, reference: dict[str, Any], tmp_path: Path, moment: Moment, passes: int
) -> None:
    outcome = kill_and_rerun(setting, tmp_path, moment, reference)
    assert outcome.killed and outcome.state == "killed"
    assert outcome.kept >= 1 and outcome.rewritten == []
    assert outcome.repeated == [] and outcome.left == 0
    assert outcome.passes >= passes
    assert outcome.identical
    assert outcome.equal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_asked_to_end_says_so(
    setting: Setting, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out"
    process = setting.start(output, tmp_path / "cache")
    while not (output / "status.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=120)
    # Where Ctrl-C met code compiled from a string, Python ends by the signal itself: the same 130 to a shell.
    assert process.returncode == code or (number == signal.SIGINT and process.returncode == -number)
    status = json.loads((output / "status.json").read_text())
    assert status["state"] == "killed"
    assert status["error"]["type"] in ("Terminated", "KeyboardInterrupt")
    assert "Traceback" in (output / "error.log").read_text()
    assert "Traceback" in (output / "sae_match.log").read_text()


def test_a_job_that_was_shot_is_not_taken_for_running(setting: Setting, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert kill_when(setting.start(output, tmp_path / "cache"), (output / "status.json").exists)
    assert json.loads((output / "status.json").read_text())["state"] == "running"
    record = read_record(output)
    assert record.state == "killed"
    assert record.error is not None and "SIGKILL" in record.error


def test_two_processes_on_one_cache_agree_to_the_byte(setting: Setting, tmp_path: Path) -> None:
    processes = [setting.start(tmp_path / name, tmp_path / "cache") for name in ("a", "b")]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert results(tmp_path / "a") == results(tmp_path / "b")
