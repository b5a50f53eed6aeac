"""The long run of the fuzz targets: `python -m tests.faults.fuzz --examples 2000` from the checkout's root.

Prints one line per target: inputs, accepted, refused, slowest input, largest memory. An input that takes longer than
`--limit` seconds ends the process with the stacks of all threads (a hang), any unexpected error fails the run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import hypothesis

from tests.faults.fuzz_targets import CANARY, Target, targets


def fuzz(target: Target, examples: int, seed: int, limit: float, root: Path) -> tuple[Counter[str], float]:
    """Outcomes and the slowest input, in seconds.

    Raises:
        AssertionError: a payload ran.
    """
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )  # fmt: skip
    @hypothesis.given(target.inputs)
    def one(drawn: object) -> None:
        nonlocal slowest
        faulthandler.dump_traceback_later(limit, exit=True)
        began = time.perf_counter()
        try:
            outcomes[target.check(drawn, root)] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            slowest = max(slowest, time.perf_counter() - began)
        if (root / CANARY).exists():
            raise AssertionError("a payload ran")

    one()
    return outcomes, slowest


def main() -> None:
    """Fuzz every target, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that one input may take")
    parser.add_argument("names", nargs="*", help="targets; default: all")
    options = parser.parse_args()
    found = targets()
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where payloads would leave their canary
        for name in options.names or found:
            outcomes, slowest = fuzz(found[name], options.examples, options.seed, options.limit, Path(folder))
            total += outcomes.total()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{name}: {outcomes.total()} inputs, {outcomes['accepted']} accepted, {outcomes['refused']} refused, "
                f"slowest {slowest:.2f} s, peak memory so far {peak:.2f} GiB",
                flush=True,
            )
    print(f"{total} inputs, no crash, no hang, nothing executed")


if __name__ == "__main__":
    main()
