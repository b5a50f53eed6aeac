"""A command whose output nobody reads any more, as in `COMMAND | head`, ends without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sae_match.terminal import EXIT_UNREAD, quiet_when_unread

COMMANDS = [
    ("sae_match", ["dry_run=true", "sae.root=absent"]),
    ("sae_match.cache_cli", ["list"]),
]


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_output_that_nobody_reads(tmp_path: Path, module: str, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    (tmp_path / "cache").mkdir()
    # Output is buffered, as it is when it goes into a pipe.
    environment = {**os.environ, "SAE_MATCH_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_UNREAD, "")


@pytest.mark.parametrize("module", ["app.main", "train_app", "report.cli", "cache_cli", "gate"])
def test_every_command_ends_so(module: str) -> None:
    main = import_module(f"sae_match.{module}").main
    assert main.__code__ is quiet_when_unread(main).__code__  # wrapped by the same function


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @quiet_when_unread
    def command() -> None:
        raise BrokenPipeError

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        with pytest.raises(BrokenPipeError):
            command()
