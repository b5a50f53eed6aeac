"""Signs of life of a job, and what another host makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.record import JobRecord
from sae_match.record.heartbeat import SIGN, SILENT_S, beating, claim, silence
from sae_match.record.process import this_process
from sae_match.record.state import Status, interpret, read_status
from sae_match.report.records import read_record

ELSEWHERE = {**this_process(), "host": "elsewhere", "pid": 4711}


STARTED = """
import sys, time
from pathlib import Path
from sae_match.record.heartbeat import claim
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
print("mine" if claim(Path(sys.argv[1])) is None else "taken", flush=True)
sys.stdin.read()
"""


def aged(directory: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(directory / SIGN, (then, then))


def test_the_sign_is_renewed_while_the_job_runs_and_gone_afterwards(tmp_path: Path) -> None:
    assert claim(tmp_path) is None
    with beating(tmp_path, every=0.01):
        aged(tmp_path, 5000)
        deadline = time.monotonic() + 60
        while (silence(tmp_path) or 0) > 4000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (silence(tmp_path) or 0) < 4000
    assert silence(tmp_path) is None and list(tmp_path.iterdir()) == []


def test_a_sign_that_cannot_be_renewed_does_not_end_the_job(tmp_path: Path) -> None:
    directory = tmp_path / "record"
    directory.mkdir()
    claim(directory)
    with beating(directory, every=0.001):
        (directory / SIGN).unlink()
        directory.rmdir()
        time.sleep(0.05)
    assert not directory.exists()


def running(directory: Path, process: dict[str, Any] = ELSEWHERE) -> Path:
    directory.mkdir(exist_ok=True)
    content = {"state": "running", "process": process, "science": "s"}
    (directory / "status.json").write_text(json.dumps(content))
    (directory / SIGN).write_text(json.dumps(process))
    return directory


def status(directory: Path) -> Status:
    found = read_status(directory)
    assert found is not None
    return found


def test_a_job_of_another_host_lives_as_long_as_it_gives_signs(tmp_path: Path) -> None:
    running(tmp_path)
    assert (status(tmp_path).state, status(tmp_path).alive, status(tmp_path).own) == ("running", True, False)
    aged(tmp_path, SILENT_S - 60)
    assert status(tmp_path).alive
    aged(tmp_path, -3600)  # the other host's clock is ahead
    assert status(tmp_path).alive
    aged(tmp_path, SILENT_S + 60)
    assert (status(tmp_path).state, status(tmp_path).alive) == ("killed", False)
    record = read_record(tmp_path)
    assert record.state == "killed" and "process 4711 on elsewhere" in (record.error or "")
    assert "4 minutes" in (record.error or "")
    (tmp_path / SIGN).unlink()  # a record from before there were signs: nothing can be told
    assert (status(tmp_path).state, status(tmp_path).alive) == ("running", False)


def test_signs_do_not_overrule_what_this_host_knows(tmp_path: Path) -> None:
    running(tmp_path, {**this_process(), "born": "1"})
    assert status(tmp_path).state == "killed"
    assert interpret({"state": "done", "process": ELSEWHERE}, lambda: 1e6).state == "done"


def test_a_record_that_another_host_writes_is_refused(tmp_path: Path) -> None:
    running(tmp_path)
    with pytest.raises(UserError, match="process 4711 on elsewhere is running a job there"):
        JobRecord(tmp_path).write_config("seed: 0")
    aged(tmp_path, SILENT_S + 60)
    record = JobRecord(tmp_path)
    record.write_config("seed: 0")
    with record.guard():
        assert status(tmp_path).own and (silence(tmp_path) or 0) < 60
    assert status(tmp_path).state == "done" and silence(tmp_path) is None


def test_of_processes_that_begin_at_once_one_gets_the_record(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    command = [sys.executable, "-c", STARTED, str(tmp_path / "record"), str(tmp_path / "go")]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    (tmp_path / "go").touch()
    said = [process.stdout.readline().strip() for process in started if process.stdout is not None]
    assert sorted(said) == ["mine", "taken", "taken", "taken"]
    for process in started:
        process.kill()
        process.communicate()
    assert claim(tmp_path / "record") is None  # the sign of a dead process is taken over


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_refused_directory_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = JobRecord(tmp_path)
    first.write_config("seed: 0")
    with first.guard():
        first.write_metrics({})
    with pytest.raises(UserError, match="another configuration"):
        JobRecord(tmp_path).write_config("seed: 1")
    assert silence(tmp_path) is None
    with monkeypatch.context() as full:
        full.setattr("sae_match.record.job.write_text", no_room)
        with pytest.raises(OSError, match="No space"):
            JobRecord(tmp_path / "other").write_config("seed: 1")
    assert silence(tmp_path / "other") is None
    with first.guard():
        assert (silence(tmp_path) or 0) < 60
    assert silence(tmp_path) is None


def test_the_clock_is_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert status(tmp_path).alive
    assert read_record(tmp_path).state == "killed"  # a report writes nothing into records, and has this clock only


def test_a_job_that_slurm_has_started_again_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"JOB_ID": "77", "PROCID": "0", "RESTART_COUNT": None}
    running(tmp_path, {**ELSEWHERE, "slurm": before})
    assert status(tmp_path).alive
    for name, value in {"JOB_ID": "77", "PROCID": "0", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert status(tmp_path).state == "killed"
    JobRecord(tmp_path).write_config("seed: 0")
    running(tmp_path, {**ELSEWHERE, "slurm": {**before, "JOB_ID": "78"}})
    assert status(tmp_path).alive


def test_a_process_of_another_container_is_judged_by_its_signs(tmp_path: Path) -> None:
    running(tmp_path, {**this_process(), "space": "pid:[1]", "born": "1"})
    assert status(tmp_path).alive
    aged(tmp_path, SILENT_S + 60)
    assert status(tmp_path).state == "killed"
