"""Whether the process that writes a record is still there: its lock on this host, its heartbeat on another."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.record import JobRecord
from sae_match.record.state import (
    HEARTBEAT,
    STALE_S,
    Status,
    claim,
    heartbeat,
    heartbeat_age,
    interpret,
    is_alive,
    read_status,
    records_in,
    release,
    this_process,
)
from sae_match.report.records import read_record

ELSEWHERE = {**this_process(), "host": "elsewhere", "pid": 4711}
CLAIMS = """
import json, sys, time
from pathlib import Path
from sae_match.record.state import claim, this_process
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
print(json.dumps([claim(Path(sys.argv[1])), this_process()]), flush=True)
sys.stdin.read()
"""


def aged(directory: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(directory / HEARTBEAT, (then, then))


def running(directory: Path, process: dict[str, Any] = ELSEWHERE, beats: bool = True) -> Path:
    directory.mkdir(exist_ok=True)
    content = {"state": "running", "process": process, "science": "s"}
    (directory / "status.json").write_text(json.dumps(content))
    if beats:
        (directory / HEARTBEAT).write_text(json.dumps(process))
    return directory


def status(directory: Path) -> Status:
    found = read_status(directory)
    assert found is not None
    return found


def claiming(directory: Path, go: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLAIMS, str(directory), str(go)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    assert process.stdout is not None
    held, described = json.loads(process.stdout.readline())
    return held, described


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of this host that has claimed tmp_path / record."""
    (tmp_path / "record").mkdir()
    process = claiming(tmp_path / "record", tmp_path)
    held, described = answer(process)
    assert held is None
    running(tmp_path / "record", described, beats=False)
    yield process
    process.kill()
    process.communicate()


# -- this host -------------------------------------------------------------------------------------------


def test_the_record_of_another_process_is_its_own_until_it_dies(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "record"
    aged(directory, STALE_S + 60)  # stopped, or its disk fails: on this host the lock counts
    assert (status(directory).state, status(directory).alive, status(directory).own) == ("running", True, False)
    held = claim(directory)
    assert held is not None and held["pid"] == other.pid
    assert status(directory).pid == other.pid
    other.kill()
    assert other.stdout is not None
    other.stdout.read()  # its end of the pipe closes when it dies; nobody has collected it yet
    deadline = time.monotonic() + 60
    while status(directory).alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status(directory).state == "killed"
    assert claim(directory) is None and status(directory).own
    release(directory)
    assert heartbeat_age(directory) is None and not status(directory).own


def test_of_processes_that_begin_at_once_one_gets_the_record(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    started = [claiming(tmp_path / "record", tmp_path / "go") for _ in range(4)]
    (tmp_path / "go").touch()
    found = [answer(process) for process in started]
    (winner,) = [described for held, described in found if held is None]
    assert [held for held, _ in found if held is not None] == [winner] * 3
    for process in started:
        process.kill()
        process.communicate()
    assert claim(tmp_path / "record") is None  # the record of a dead process is taken over
    assert claim(tmp_path / "record") is None
    release(tmp_path / "record")
    assert list((tmp_path / "record").iterdir()) == []


def test_states(tmp_path: Path) -> None:
    me = this_process()
    gone = interpret({"state": "running", "process": me}, tmp_path)
    assert gone.state == "killed" and gone.error is not None and "SIGKILL" in gone.error["message"]
    assert claim(tmp_path) is None
    now = interpret({"state": "running", "process": me}, tmp_path)
    assert (now.state, now.alive, now.own, now.pid) == ("running", True, True, os.getpid())
    assert not interpret({"state": "done", "process": me}, tmp_path).own
    release(tmp_path)
    assert interpret({"state": "running"}, tmp_path).state == "running"  # written before processes were recorded
    elsewhere = interpret({"state": "running", "process": ELSEWHERE}, tmp_path)
    assert (elsewhere.state, elsewhere.alive) == ("running", False)  # without a heartbeat nothing can be said
    assert interpret({"state": "done", "process": ELSEWHERE}, tmp_path).state == "done"
    with pytest.raises(KeyError):
        interpret({}, tmp_path)
    for nothing in ({}, {"pid": None}, {"host": 1, "slurm": "x"}):
        assert is_alive(nothing, tmp_path) is None


def test_records_of_a_sweep(tmp_path: Path) -> None:
    for name, text in (("0", '{"state": "done", "key": "k"}'), ("1", "{"), ("2", "[]"), ("3", '{"state": "failed"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    assert [(path.name, status.state, status.key) for path, status in records_in(tmp_path)] == [
        ("0", "done", "k"), ("3", "failed", None)
    ]  # fmt: skip
    assert read_status(tmp_path / "absent") is None


# -- heartbeats ------------------------------------------------------------------------------------------


def test_the_heartbeat_is_renewed_while_the_job_runs_and_gone_afterwards(tmp_path: Path) -> None:
    assert claim(tmp_path) is None
    with heartbeat(tmp_path, every=0.01):
        aged(tmp_path, 5000)
        deadline = time.monotonic() + 60
        while (heartbeat_age(tmp_path) or 0) > 4000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (heartbeat_age(tmp_path) or 0) < 4000
    assert heartbeat_age(tmp_path) is None and list(tmp_path.iterdir()) == []


def test_a_heartbeat_that_cannot_be_renewed_does_not_end_the_job(tmp_path: Path) -> None:
    directory = tmp_path / "record"
    directory.mkdir()
    claim(directory)
    with heartbeat(directory, every=0.001):
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        time.sleep(0.05)
    assert not directory.exists()


def test_a_job_of_another_host_is_alive_as_long_as_its_heartbeat_is_recent(tmp_path: Path) -> None:
    running(tmp_path)
    assert (status(tmp_path).state, status(tmp_path).alive, status(tmp_path).own) == ("running", True, False)
    aged(tmp_path, STALE_S - 60)
    assert status(tmp_path).alive
    aged(tmp_path, -3600)  # the other host's clock is ahead
    assert status(tmp_path).alive
    aged(tmp_path, STALE_S + 60)
    assert (status(tmp_path).state, status(tmp_path).alive) == ("killed", False)
    record = read_record(tmp_path)
    assert record.state == "killed" and "process 4711 on elsewhere" in (record.error or "")
    assert "4 minutes" in (record.error or "")


def test_a_record_that_another_host_writes_is_refused(tmp_path: Path) -> None:
    running(tmp_path)
    with pytest.raises(UserError, match="process 4711 on elsewhere is running a job there"):
        JobRecord(tmp_path).write_config("seed: 0")
    aged(tmp_path, STALE_S + 60)
    record = JobRecord(tmp_path)
    record.write_config("seed: 0")
    with record.guard():
        assert status(tmp_path).own and (heartbeat_age(tmp_path) or 0) < 60
    assert status(tmp_path).state == "done" and heartbeat_age(tmp_path) is None


def test_a_lock_that_a_dead_host_left_on_a_network_file_system_is_removed(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    """This process stands for the file server, which still holds the lock."""
    running(tmp_path / "record")
    assert claim(tmp_path / "record") == ELSEWHERE
    aged(tmp_path / "record", STALE_S + 60)
    assert claim(tmp_path / "record") is None
    release(tmp_path / "record")


def test_without_locks_heartbeats_decide_on_this_host_too(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    directory = tmp_path / "record"
    held = claim(directory)
    assert held is not None and held["pid"] == other.pid and status(directory).alive
    aged(directory, STALE_S + 60)
    assert status(directory).state == "killed"
    assert claim(directory) is None and status(directory).own
    release(directory)
    assert [path.name for path in directory.iterdir()] == ["status.json"]


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_refused_directory_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = JobRecord(tmp_path)
    first.write_config("seed: 0")
    with first.guard():
        first.write_metrics({})
    with pytest.raises(UserError, match="another configuration"):
        JobRecord(tmp_path).write_config("seed: 1")
    assert heartbeat_age(tmp_path) is None
    for full in ("sae_match.record.job.write_text", "sae_match.record.state.json.dump"):
        with monkeypatch.context() as patch:
            patch.setattr(full, no_room)
            with pytest.raises((OSError, UserError), match="No space"):
                JobRecord(tmp_path / "other").write_config("seed: 1")
        assert list((tmp_path / "other").iterdir()) == []
    with first.guard():
        assert (heartbeat_age(tmp_path) or 0) < 60
    assert heartbeat_age(tmp_path) is None


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
    release(tmp_path)
    running(tmp_path, {**ELSEWHERE, "slurm": {**before, "JOB_ID": "78"}})
    assert status(tmp_path).alive
