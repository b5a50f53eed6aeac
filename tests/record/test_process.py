"""Whether the process that writes a record is still there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_match.record.process import is_alive, this_process
from sae_match.record.state import interpret, read_status, records_in


def test_this_process_is_alive_under_its_own_identity_only() -> None:
    me = this_process()
    assert me["pid"] == os.getpid() and is_alive(me) is True
    assert is_alive({**me, "born": "1"}) is False  # the number was given to another process since
    assert is_alive({**me, "boot": "another"}) is False
    assert is_alive({**me, "host": "elsewhere"}) is None
    assert is_alive({**me, "space": "pid:[1]"}) is None  # a container with process numbers of its own
    assert is_alive({name: me[name] for name in ("pid", "host", "boot", "born")}) is True  # as records had it before
    for nothing in (None, {}, "text", {**me, "pid": None}, {**me, "pid": "1"}):
        assert is_alive(nothing) is not True


def test_a_process_that_was_shot_is_dead_also_before_its_parent_looks() -> None:
    code = "import json, time; from sae_match.record.process import this_process; print(json.dumps(this_process()), "
    child = subprocess.Popen(
        [sys.executable, "-c", code + "flush=True); time.sleep(100)"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    described = json.loads(child.stdout.readline())
    assert is_alive(described) is True
    child.kill()
    child.stdout.read()  # its end of the pipe closes when it dies; it is a zombie now
    for _ in range(1000):
        if is_alive(described) is False:
            break
    assert is_alive(described) is False
    child.wait()
    assert is_alive(described) is False


def test_states() -> None:
    me = this_process()
    assert interpret({"state": "running", "process": me}).state == "running"
    gone = interpret({"state": "running", "process": {**me, "boot": "another"}})
    assert gone.state == "killed" and gone.error is not None and "SIGKILL" in gone.error["message"]
    assert interpret({"state": "running"}).state == "running"  # written before processes were recorded
    assert interpret({"state": "running", "process": {**me, "host": "elsewhere"}}).state == "running"
    assert interpret({"state": "running", "process": {**me, "host": "elsewhere"}}).alive is False
    assert interpret({"state": "done", "process": {**me, "boot": "another"}}).state == "done"
    with pytest.raises(KeyError):
        interpret({})


def test_records_of_a_sweep(tmp_path: Path) -> None:
    for name, text in (("0", '{"state": "done", "key": "k"}'), ("1", "{"), ("2", "[]"), ("3", '{"state": "failed"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    assert [(path.name, status.state, status.key) for path, status in records_in(tmp_path)] == [
        ("0", "done", "k"), ("3", "failed", None)
    ]  # fmt: skip
    assert read_status(tmp_path / "absent") is None
