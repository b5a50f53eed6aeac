"""Tab completion in a real bash: the line that installs it, then what it proposes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROPOSALS = """
eval "$(sae-match --shell-completion install=bash)"
complete -p sae-match
for COMP_LINE in "$@"; do
    COMP_WORDS=($COMP_LINE) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_POINT=${#COMP_LINE} COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def proposals(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Output of one bash that was asked for completions of four lines, by the installed command's own script."""
    command = tmp_path / "sae-match"
    command.write_text(f"#!{sys.executable}\nfrom sae_match.app import main\nmain()\n")
    command.chmod(0o755)
    lines = ["matching=", "folding=none launcher=sub", "layers.", "paths.output_dir="]
    return subprocess.run(
        ["bash", "--norc", "-c", PROPOSALS, "bash", *(f"sae-match {line}" for line in lines)],
        cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_groups_options_and_keys_are_proposed(proposals: subprocess.CompletedProcess[str]) -> None:
    assert proposals.returncode == 0, proposals.stderr
    rule, matching, launcher, layers, output = proposals.stdout.splitlines()
    assert rule.endswith("hydra_bash_completion sae-match")
    assert {"matching=both", "matching=correlation", "matching=decoder", "matching=encoder"} <= set(matching.split())
    assert all(one.startswith("matching=") for one in matching.split())
    assert launcher.split() == ["launcher=submitit", "launcher=submitit_local"]
    assert layers.split() == ["layers.first=", "layers.last=", "layers.list.", "layers.pair="]
    # Known only once a job runs; the error that this is must not land in the user's line.
    assert output == "" and proposals.stderr == ""
