"""A sweep of small jobs of which one in ten fails, then the same sweep after the mend.

    python -m tests.faults.failing_sweep --jobs 200 --directory DIR

The jobs of every tenth directory of SAEs meet a truncated file. Checked: the others are done, the bad ones have failed
with a traceback in their own error.log, the table says so, the exit code is not zero; the same command again runs the
failed jobs and no others; after the mend it runs them to their end. Prints counts and seconds; exits with 1 where
something differs. Not collected by pytest, which runs ten jobs (`test_failing_sweep.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.command import run_command

FOLDERS = 10


def build(directory: Path) -> Path:
    """Ten folders with the SAEs of two layers; in the last one a file is cut off. Returns that file."""
    for folder in range(FOLDERS):
        for layer in range(2):
            path = directory / f"saes_{folder}" / f"layer_{layer:02d}.safetensors"
            save_native(random_sae(width=6, d=4, seed=10 * folder + layer), path)
    path.write_bytes(path.read_bytes()[:-9])
    return path


def launch(directory: Path, jobs: int) -> tuple[int, list[dict[str, Any]], float, str]:
    """Exit code, the sweep's table, seconds, and what was printed."""
    folders = ",".join(f"saes_{folder}" for folder in range(FOLDERS))
    arguments = [
        "-m", "sae=native", f"sae.root={folders}", f"seed=range({jobs // FOLDERS})", "layers.first=0", "layers.last=1",
        "evaluation=weights_only", "evaluation.bootstrap_samples=10", "tracking=none", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    began = time.monotonic()
    done = run_command(*arguments, cwd=directory, env={"SAE_MATCH_CACHE": str(directory / "cache")})
    seconds = time.monotonic() - began
    rows = json.loads((directory / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    return done.code, rows, seconds, done.out + done.err


def problems(directory: Path, jobs: int) -> list[str]:
    """Run all of it; what differs from what it should be."""
    bad = build(directory)
    wrong: list[str] = []

    def expect(what: str, found: object, expected: object) -> None:
        print(f"{what}: {found}", flush=True)
        if found != expected:
            wrong.append(f"{what}: {found}, expected {expected}")

    few = jobs // FOLDERS
    code, rows, seconds, text = launch(directory, jobs)
    print(f"first launch: {jobs} jobs in {seconds:.1f} s, {seconds / jobs:.2f} s per job, exit code {code}")
    states = [row["state"] for row in rows]
    expect("done", states.count("done"), jobs - few)
    expect("failed", states.count("failed"), few)
    expect("non-zero exit", code != 0, True)
    expect("count in the summary", f"{jobs} jobs: {jobs - few} done, {few} failed" in text, True)
    expect("failed jobs that name the file", sum(bad.parent.name in (row["error"] or "") for row in rows), few)
    logs = [Path(row["record"]) / "error.log" for row in rows if row["state"] == "failed"]
    expect("error.log with traceback", sum("Traceback" in log.read_text() for log in logs if log.is_file()), few)
    expect("error.log of done jobs", len(list((directory / "sweep").glob("*/error.log"))) - few, 0)
    before = _stamps(rows)

    code, rows, seconds, _ = launch(directory, jobs)
    print(f"second launch: {seconds:.1f} s, exit code {code}")
    expect("jobs run again", sum(row["action"] == "run" for row in rows), few)
    expect("records of done jobs touched", len(_changed(before, rows) & _done(rows)), 0)

    shutil.copy(bad.with_name("layer_00.safetensors"), bad)
    code, rows, seconds, _ = launch(directory, jobs)
    print(f"third launch, mended: {seconds:.1f} s")
    expect("jobs run after the mend", sum(row["action"] == "run" for row in rows), few)
    expect("done in the end", sum(row["state"] == "done" for row in rows), jobs)
    expect("exit code", code, 0)
    expect("records touched", len(_changed(before, rows)), few)
    expect("temporary files", len([*directory.rglob("*.tmp*"), *directory.rglob(".writable*")]), 0)
    return wrong


def _stamps(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {row["record"]: (Path(row["record"]) / "status.json").stat().st_mtime_ns for row in rows}


def _changed(before: dict[str, int], rows: Sequence[dict[str, Any]]) -> set[str]:
    return {record for record, stamp in _stamps(rows).items() if before.get(record) != stamp}


def _done(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {row["record"] for row in rows if row["state"] == "done"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="a multiple of ten")
    parser.add_argument("--directory", type=Path, required=True, help="an empty or new directory")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    wrong = problems(options.directory.absolute(), options.jobs)
    print("\n".join(wrong) or "all as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
