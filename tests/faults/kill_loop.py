"""SIGKILL at random moments of a job, then the same command again: nothing that was committed is computed again, and
the results are those of an undisturbed job.

    python -m tests.faults.kill_loop --runs 20 --directory DIR

prints one line per run and exits with 1 if a run broke its promise. Each run has a cache and a record of its own. Not
collected by pytest; `tests/cli/test_killed_jobs.py` uses the same functions for a few moments.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from sae_match.record.state import read_status
from sae_match.saes import save_native
from sae_match.store import Store
from tests.builders import random_sae
from tests.command import run_command
from tests.tiny_setting import D_MODEL, LAYERS, build_model, build_text

RESULTS = ("pairs.csv", "metrics.json", "features.parquet")
COMMITTED = ("matchings", "token_losses", "tokens", "residual_streams")
MEASURED = ("solver_seconds", "solver/seconds", "solver/peak_memory_gib")
"""Numbers that two separate computations never share."""

PASSES = "activations"
"""Part of the cache that is committed pair by pair, and removed when the job is done."""

Snapshot = dict[str, tuple[int, int]]
Moment = Callable[[Path, Path], Callable[[], bool]]
"""From a record and a cache to the test for a moment."""


@dataclass(frozen=True)
class Setting:
    """Inputs that all runs share: a tiny model, text, and one random SAE per block."""

    root: Path

    @classmethod
    def build(cls, root: Path, width: int = 48) -> Setting:
        """Write them below `root`."""
        for folder in ("model", "text"):
            (root / folder).mkdir(parents=True)
        build_model(root / "model")
        build_text(root / "text")
        for layer in range(LAYERS):
            sae = random_sae(width=width, d=D_MODEL, seed=layer)
            save_native(sae, root / "saes" / f"layer_{layer:02d}.safetensors")
        return cls(root)

    def arguments(self, output: Path, cache: Path) -> list[str]:
        """The job's command line."""
        return [
            "sae=native", f"sae.root={self.root / 'saes'}", "model=local", f"model.path={self.root / 'model'}",
            "dataset=local", f"dataset.path={self.root / 'text'}", "dataset.documents=10", "dataset.window_tokens=12",
            "dataset.windows_per_document=2", "layers.first=0", f"layers.last={LAYERS - 1}", "tracking=none",
            "evaluation.bootstrap_samples=50", "device=cpu", f"paths.output_dir={output}", f"hydra.run.dir={output}",
            f"paths.cache_dir={cache}", "progress=false",
        ]  # fmt: skip

    def start(self, output: Path, cache: Path) -> subprocess.Popen[str]:
        """Start the command in a process of its own."""
        # A shell that runs this in the background has made it, and so its children, deaf to Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "sae_match", *self.arguments(output, cache)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, output: Path, cache: Path) -> str:
        """Run the command to its end in this process; what it logged.

        Raises:
            RuntimeError: it failed.
        """
        done = run_command(*self.arguments(output, cache))
        if done.code != 0:
            raise RuntimeError(done.err)
        return done.err


def kill_when(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """SIGKILL as soon as `moment` is true; False where the process ended before."""
    while process.poll() is None:
        if moment():
            process.kill()
            process.communicate()
            return True
        time.sleep(0.002)
    process.communicate()
    return False


def after(seconds: float) -> Moment:
    """The moment so many seconds after the job's status first says running."""

    def make(output: Path, _: Path) -> Callable[[], bool]:
        began: list[float] = []

        def moment() -> bool:
            if not began and (output / "status.json").exists():
                began.append(time.monotonic())
            return bool(began) and time.monotonic() - began[0] >= seconds

        return moment

    return make


def committed(cache: Path) -> Snapshot:
    """Finished files of the cache: size and inode, which a file that is written again changes."""
    found: Snapshot = {}
    for folder in COMMITTED:
        for path in (Store(cache).root / folder).rglob("*"):
            if path.is_file() and not path.name.startswith(".") and path.suffix in (".safetensors", ".json"):
                if path.name in ("entry.json", "progress.json"):
                    continue  # bookkeeping of an unfinished entry
                stat = path.stat()
                found[str(path.relative_to(cache))] = (stat.st_size, stat.st_ino)
    return found


def passes_in(cache: Path) -> list[Path]:
    """Committed passes over the tokens of a pair."""
    return sorted((Store(cache).root / PASSES).glob("[0-9a-f]*.safetensors"))


def results(output: Path) -> dict[str, bytes]:
    """Every byte that must not depend on an interruption."""
    files = [output / name for name in RESULTS] + sorted((output / "permutations").glob("*.safetensors"))
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def scientific_results(output: Path) -> dict[str, Any]:
    """The results without the solver's times and memory, to compare separate computations."""
    pairs = pd.read_csv(output / "pairs.csv", dtype=str, keep_default_na=False)
    pairs = pairs[~pairs["metric"].str.startswith(MEASURED)]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "pairs": pairs.to_csv(index=False),
        "metrics": {name: value for name, value in metrics.items() if not name.startswith(MEASURED)},
        "features": (output / "features.parquet").read_bytes(),
    }
    for path in sorted((output / "permutations").glob("*.safetensors")):
        with safe_open(path, framework="numpy") as stored:
            provenance = json.loads(stored.metadata()["provenance"])
            found[path.name] = stored.get_tensor("permutation").tolist(), {**provenance, "seconds": None}
    return found


@dataclass(frozen=True)
class Outcome:
    """One kill and what came of it.

    Attributes:
        kept: committed files when the job died.
        rewritten: those of them that the second attempt wrote again.
        passes: passes over a pair's tokens that were committed when the job died.
        repeated: those of them that the second attempt made again.
        left: those that are still there after it.
        state: what the record of the dead job says.
        identical: the second attempt's bytes equal those of a third one from the same cache.
        equal: its results equal those of an undisturbed job with a cache of its own, times aside.
    """

    killed: bool
    kept: int
    rewritten: list[str]
    passes: int
    repeated: list[str]
    left: int
    state: str | None
    identical: bool
    equal: bool

    @property
    def good(self) -> bool:
        """All promises kept."""
        again = self.rewritten or self.repeated or self.left
        return not again and self.identical and self.equal and (not self.killed or self.state == "killed")


def kill_and_rerun(setting: Setting, where: Path, moment: Moment, reference: dict[str, Any]) -> Outcome:
    """Kill a job at a moment, run it again to its end, and look.

    Args:
        where: a new directory for its cache and records.
        reference: `scientific_results` of an undisturbed job.
    """
    output, cache = where / "out", where / "cache"
    killed = kill_when(setting.start(output, cache), moment(output, cache))
    status = read_status(output)
    before, passes = committed(cache), [path.stem for path in passes_in(cache)]
    log = setting.run(output, cache)
    later = committed(cache)
    setting.run(where / "again", cache)
    return Outcome(
        killed,
        len(before),
        sorted(name for name, stamp in before.items() if later.get(name) != stamp),
        len(passes),
        [key for key in passes if f"activations found in the store ({key[:12]})" not in log],
        len(passes_in(cache)),
        None if status is None else status.state,
        results(output) == results(where / "again"),
        scientific_results(output) == reference,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop; 1 if a run broke its promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True, help="an empty or new directory")
    options = parser.parse_args(arguments)
    setting = Setting.build(options.directory / "setting")
    setting.run(options.directory / "warm", options.directory / "reference_cache")
    setting.run(options.directory / "reference", options.directory / "reference_cache_2")
    reference = scientific_results(options.directory / "reference")
    status = read_status(options.directory / "reference")
    seconds = 1.0 if status is None or status.seconds is None else status.seconds
    print(f"an undisturbed job takes {seconds:.1f} s after its start", flush=True)
    draw, good = random.Random(options.seed), 0
    for run in range(options.runs):
        at = draw.uniform(0, seconds)
        outcome = kill_and_rerun(setting, options.directory / f"run_{run:02d}", after(at), reference)
        good += outcome.good
        print(f"run {run:2d}: SIGKILL after {at:.2f} s; {outcome}", flush=True)
    print(f"{good} of {options.runs} runs: nothing committed was computed again, results identical")
    return 0 if good == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
