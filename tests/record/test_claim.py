"""Which process writes a record: never two, and of several takers of a dead one's place exactly one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.record import JobRecord
from sae_match.record.claim import (
    CLAIM,
    STALE_S,
    RecordTakenError,
    claim,
    heartbeat,
    newest_claim,
    owns,
    release,
    this_process,
)
from sae_match.record.state import Status, interpret, read_status, records_in
from sae_match.report.records import read_record

ELSEWHERE = {**this_process(), "host": "elsewhere", "pid": 4711}
CLAIMS = """
import sys
from pathlib import Path
from sae_match.record.claim import claim
print(claim(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def running(directory: Path, process: dict[str, Any] = ELSEWHERE, number: int | None = 1) -> Path:
    """A record that a process is writing, with its claim."""
    directory.mkdir(exist_ok=True)
    content = {"state": "running", "process": process, "science": "s"}
    (directory / "status.json").write_text(json.dumps(content))
    if number is not None:
        (directory / f"{CLAIM}.{number}").write_text(json.dumps(process))
    return directory


def aged(directory: Path, seconds: float) -> None:
    then, held = time.time() - seconds, newest_claim(directory)
    assert held is not None
    os.utime(held.path, (then, then))


def status(directory: Path) -> Status:
    found = read_status(directory)
    assert found is not None
    return found


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of this host that has claimed tmp_path / record."""
    (tmp_path / "record").mkdir()
    command = [sys.executable, "-c", CLAIMS, str(tmp_path / "record")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "None\n"
    running(tmp_path / "record", this_process() | {"pid": process.pid}, number=None)
    yield process
    process.kill()
    process.communicate()


# -- one winner ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [None, 1, 7])
def test_of_processes_that_begin_at_once_one_gets_the_record(tmp_path: Path, dead: int | None) -> None:
    """Also where they find the claim of a process that is dead."""
    fork, takers = multiprocessing.get_context("fork"), 4

    def take(record: Path, begin: Any, end: Any, answers: Any) -> None:
        begin.wait()
        held = claim(record)
        answers.put((os.getpid(), held is None, held and held.holder.get("pid")))
        end.wait()  # a claim ends with its process

    for trial in range(10):
        record = tmp_path / str(trial)
        record.mkdir()
        if dead is not None:
            running(record, number=dead)
            aged(record, STALE_S + 60)
        begin, end, answers = fork.Barrier(takers), fork.Barrier(takers), fork.SimpleQueue()
        started = [fork.Process(target=take, args=(record, begin, end, answers)) for _ in range(takers)]
        for process in started:
            process.start()
        found = [answers.get() for _ in started]
        for process in started:
            process.join()
        (winner,) = [pid for pid, won, _ in found if won]
        assert all(holder in (None, winner) for _, _, holder in found), found
        assert [name for name in files(record) if name.startswith(CLAIM)] == [f"{CLAIM}.{(dead or 0) + 1}"]
        assert claim(record) is None and claim(record) is None  # the winner is dead now
        release(record)
        assert files(record) == ([] if dead is None else ["status.json"])


def test_whoever_looked_too_early_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process finds claim 1 dead and stands still; another takes over, ends, and a third begins anew with claim 1."""
    running(tmp_path)
    aged(tmp_path, STALE_S + 60)
    opened = Path.open

    def meanwhile(path: Path, mode: str = "r", **options: Any) -> Any:
        if path.name == f"{CLAIM}.2" and mode == "x":
            (tmp_path / f"{CLAIM}.1").unlink()
            (tmp_path / f"{CLAIM}.1").write_text(json.dumps({**ELSEWHERE, "pid": 4712}))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", meanwhile)
    held = claim(tmp_path)
    assert held is not None and held.holder["pid"] == 4712
    assert not owns(tmp_path) and files(tmp_path) == [f"{CLAIM}.1", "status.json"]


# -- who is alive ----------------------------------------------------------------------------------------


def test_the_record_of_another_process_is_its_own_until_it_dies(other: subprocess.Popen[str], tmp_path: Path) -> None:
    directory = tmp_path / "record"
    aged(directory, STALE_S + 60)  # stopped, or its disk fails: on this host the lock counts
    assert (status(directory).state, status(directory).alive, status(directory).own) == ("running", True, False)
    held = claim(directory)
    assert held is not None and held.holder["pid"] == other.pid == status(directory).pid
    other.kill()
    assert other.stdout is not None
    other.stdout.read()  # its end of the pipe closes when it dies; nobody has collected it yet
    deadline = time.monotonic() + 60
    while status(directory).alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status(directory).state == "killed"
    assert claim(directory) is None and status(directory).own
    release(directory)
    assert newest_claim(directory) is None and not status(directory).own


def test_without_locks_heartbeats_decide_on_this_host_too(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    directory = tmp_path / "record"
    held = claim(directory)
    assert held is not None and held.holder["pid"] == other.pid and status(directory).alive
    aged(directory, STALE_S + 60)
    assert status(directory).state == "killed"
    assert claim(directory) is None and status(directory).own
    release(directory)
    assert files(directory) == ["status.json"]


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


def test_the_clock_is_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert status(tmp_path).alive
    assert read_record(tmp_path).state == "killed"  # a report writes nothing into records, and has this clock only


def test_states(tmp_path: Path) -> None:
    me = this_process()
    gone = interpret({"state": "running", "process": me}, tmp_path)
    assert gone.state == "killed" and gone.error is not None and "SIGKILL" in gone.error["message"]
    assert claim(tmp_path) is None
    now = interpret({"state": "running", "process": me}, tmp_path)
    assert (now.state, now.alive, now.own, now.pid) == ("running", True, True, os.getpid())
    assert not interpret({"state": "done", "process": me}, tmp_path).own
    release(tmp_path)
    for process in (None, {}, {"host": 1, "slurm": "x"}, ELSEWHERE):  # without a claim nothing can be said
        elsewhere = interpret({"state": "running", "process": process}, tmp_path)
        assert (elsewhere.state, elsewhere.alive) == ("running", False)
    with pytest.raises(KeyError):
        interpret({}, tmp_path)
    (tmp_path / f"{CLAIM}.1").write_text("")  # its process is about to describe itself
    assert interpret({"state": "running"}, tmp_path).alive and claim(tmp_path) is not None


def test_records_of_a_sweep(tmp_path: Path) -> None:
    for name, text in (("0", '{"state": "done", "key": "k"}'), ("1", "{"), ("2", "[]"), ("3", '{"state": "failed"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    assert [(path.name, status.state, status.key) for path, status in records_in(tmp_path)] == [
        ("0", "done", "k"), ("3", "failed", None)
    ]  # fmt: skip
    assert read_status(tmp_path / "absent") is None


# -- the holder ------------------------------------------------------------------------------------------


def test_the_heartbeat_is_renewed_while_the_job_runs_and_gone_afterwards(tmp_path: Path) -> None:
    assert claim(tmp_path) is None
    with heartbeat(tmp_path, every=0.01):
        held = newest_claim(tmp_path)
        assert held is not None
        aged(tmp_path, 5000)
        deadline = time.monotonic() + 60
        while (held.age() or 0) > 4000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (held.age() or 0) < 4000
    assert held.age() is None and files(tmp_path) == []


def test_a_heartbeat_that_cannot_be_renewed_does_not_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    def failing(path: Path, *_: Any, **__: Any) -> Any:
        failed.append(path)
        raise OSError(errno.EIO, "Input/output error")

    claim(tmp_path)
    with monkeypatch.context() as patch, heartbeat(tmp_path, every=0.001):
        patch.setattr(Path, "read_text", failing)
        patch.setattr(os, "utime", failing)
        deadline = time.monotonic() + 60
        while len(failed) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(failed) >= 4 and files(tmp_path) == []


def taken(directory: Path) -> None:
    """Another process takes a record over, as after this one stood still for minutes."""
    held = newest_claim(directory)
    assert held is not None
    (directory / f"{CLAIM}.{held.number + 1}").write_text(json.dumps(ELSEWHERE))
    held.path.unlink()


def test_a_process_whose_record_was_taken_over_ends_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_match.record.job.heartbeat", lambda place: heartbeat(place, every=0.01))
    record = JobRecord(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RecordTakenError, match="process 4711 on elsewhere is running a job there"), record.guard():
        (tmp_path / "status.json").write_text("the other's")
        taken(tmp_path)
        for _ in range(6000):  # in one call the signal's handler would not run
            time.sleep(0.01)
    assert (tmp_path / "status.json").read_text() == "the other's"
    assert files(tmp_path) == [f"{CLAIM}.2", "status.json"]
    assert signal.getsignal(signal.SIGTERM) is before


def writers() -> list[Callable[[JobRecord], object]]:
    return [
        lambda record: record.write_metrics({"a": 1.0}),
        lambda record: record.figure_path("curve"),
        lambda record: record.permutation_path(0, 1),
        lambda record: record.add_judgements([{}]),
        lambda record: record.clear_results(),
        lambda record: record.finish("done"),
    ]


@pytest.mark.parametrize("write", writers())
def test_between_two_heartbeats_nothing_is_written_either(tmp_path: Path, write: Callable[[JobRecord], object]) -> None:
    with pytest.raises(RecordTakenError), JobRecord(tmp_path).guard() as record:
        (tmp_path / "metrics.json").write_text("the other's")
        taken(tmp_path)
        write(record)
    assert files(tmp_path) == [f"{CLAIM}.2", "metrics.json", "status.json"]
    assert (tmp_path / "metrics.json").read_text() == "the other's"


def test_a_signal_after_the_end_leaves_the_job_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), JobRecord(tmp_path).guard() as record:
        record.finish("done")
        raise KeyboardInterrupt
    assert status(tmp_path).state == "done"


def test_a_record_that_another_host_writes_is_refused(tmp_path: Path) -> None:
    running(tmp_path)
    with pytest.raises(RecordTakenError, match="process 4711 on elsewhere is running a job there"):
        JobRecord(tmp_path).write_config("seed: 0")
    aged(tmp_path, STALE_S + 60)
    record = JobRecord(tmp_path)
    record.write_config("seed: 0")
    with record.guard():
        assert status(tmp_path).own
    assert status(tmp_path).state == "done" and newest_claim(tmp_path) is None


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_refused_directory_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = JobRecord(tmp_path)
    first.write_config("seed: 0")
    with first.guard():
        first.write_metrics({})
    with pytest.raises(UserError, match="another configuration"):
        JobRecord(tmp_path).write_config("seed: 1")
    assert newest_claim(tmp_path) is None
    for full in ("sae_match.record.job.write_text", "sae_match.record.claim.json.dump"):
        with monkeypatch.context() as patch:
            patch.setattr(full, no_room)
            with pytest.raises((OSError, UserError), match="No space"):
                JobRecord(tmp_path / "other").write_config("seed: 1")
        assert files(tmp_path / "other") == []
    with first.guard():
        assert newest_claim(tmp_path) is not None
    assert newest_claim(tmp_path) is None
