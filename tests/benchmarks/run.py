"""The benchmark: `python -m tests.benchmarks.run [--quick] [...]`, one process per problem and method.

Results are appended to OUT/results.jsonl as they finish. An interrupted run resumes where it was, and a run with other
sizes or methods adds to the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_match.errors import UserError
from tests.benchmarks import machine, records
from tests.benchmarks.methods import Method, Options, methods
from tests.benchmarks.problems import DEMO_WIDTH, POINT_D, SCHEMES, Kind, Spec, demo_specs
from tests.benchmarks.supervise import run_worker

WIDTHS, D = (1024, 2048, 4096, 8192, 16384), 2304
QUICK_WIDTHS, QUICK_D, QUICK_LIMIT_S = (512, 1024), 32, 60.0
DEMO_PAIRS, QUICK_DEMO_PAIRS = ("11-12", "14-15", "17-18"), ("14-15",)
QUICK_SCHEMES = ("both/theta", "encoder/none")
GRACE_S = 5.0
"""What a method has beyond its time limit for what is not its own: judging its answer."""
FINISH_S = 60.0
"""A method that stops itself has this much longer, and a fifth of the limit, to finish what it returns."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    add = parse.add_argument
    add("--quick", action="store_true", help="small problems and one demo pair: about ten minutes")
    add("--widths", type=int, nargs="+", help=f"features of the planted SAEs (default {WIDTHS})")
    add("--d", type=int, nargs="+", help=f"dimensions of the residual stream of the planted SAEs (default {D})")
    add("--difficulties", nargs="+", choices=[kind.value for kind in Kind], default=[kind.value for kind in Kind])
    add("--demo-pairs", nargs="+", help="layers of the demo SAEs, as 11-12 or 14-14_seed_1")
    add("--methods", nargs="+", choices=list(methods()), default=list(methods()))
    add("--seed", type=int, default=0, help="of the planted problems and of random matchings")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--device", default="cpu", help="where the methods that can choose compute products: cpu or cuda")
    add("--repeats", type=int, default=5, help="at most; fewer where one takes long")
    add("--time-limit", type=float, help="seconds per method, beside the products (default 600)")
    add("--minutes", type=float, default=float("inf"), help="begin no measurement after so many")
    add("--memory-limit", type=float, default=20.0, help="GiB of resident memory per process")
    add("--out", type=Path, default=Path("multirun/benchmark"))
    add("--scratch", type=Path, help="where the problem at hand is kept (2.4 GB at F = 65,536, d = 2,304)")
    add("--again", action="store_true", help="measure also what is in the results already")
    add("--no-inference", action="store_true", help="try also what took too long at a smaller width")
    return parse


def specs(args: argparse.Namespace) -> Iterator[Spec]:
    """The problems that were asked for, small ones first."""
    widths = args.widths or (QUICK_WIDTHS if args.quick else WIDTHS)
    dims = args.d or [QUICK_D if args.quick else D]
    kinds = [Kind(name) for name in args.difficulties]
    planted = [kind for kind in kinds if kind is not Kind.demo]
    pairs = args.demo_pairs or list(QUICK_DEMO_PAIRS if args.quick else DEMO_PAIRS)
    demo = demo_specs(pairs, QUICK_SCHEMES if args.quick else SCHEMES) if Kind.demo in kinds else []
    for width in sorted({*widths, DEMO_WIDTH} if demo else set(widths)):
        for kind in planted if width in widths else ():
            yield from (Spec(kind, width, d, args.seed) for d in ([POINT_D] if kind is Kind.points else dims))
        yield from demo if width == DEMO_WIDTH else []


class Run:
    """One invocation of the runner."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.file: Path = args.out / "results.jsonl"
        self.known = records.read([self.file]) if self.file.is_file() else {}
        self.machine = machine.describe(args.device)
        self.end = time.monotonic() + 60 * args.minutes
        self.time_limit_s = args.time_limit or (QUICK_LIMIT_S if args.quick else 600.0)

    def problem(self, spec: Spec) -> None:
        """Measure every method on a problem; nothing is made where everything is known."""
        chosen = dict.fromkeys(["product", *self.args.methods])
        due = [name for name in chosen if self.args.again or not self.settled(spec, name)]
        if not due:
            print(f"{spec.name}: nothing to do", flush=True)
            return
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=self.args.scratch) as scratch:
            folder, made = Path(scratch).resolve(), False
            for name in due:
                if time.monotonic() > self.end:
                    return
                record = self.blank(spec, name)
                refused = self.refusal(record, methods()[name])
                if refused is None and not made:
                    made = self.prepare(spec, folder)
                record |= refused or self.measured(spec, name, folder)
                records.append(self.file, record)
                self.known[records.key(record)] = record
                print(f"{spec.name}  {name:18s} {summary(record)}", flush=True)

    def settled(self, spec: Spec, name: str) -> bool:
        """Whether the results already say what this run could say."""
        record = self.known.get(records.key(self.blank(spec, name)))
        return records.settled(record, self.time_limit_s, self.args.memory_limit)

    def blank(self, spec: Spec, name: str) -> records.Record:
        """The part of a record that is known before the measurement."""
        return {
            "name": spec.name,
            "problem": spec.to_json(),
            "method": name,
            "threads": self.args.threads,
            "device": self.args.device,
            "time_limit_s": self.time_limit_s,
            "memory_limit_gib": self.args.memory_limit,
            "machine": self.machine,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_before": machine.load_average(),
        }

    def refusal(self, record: records.Record, method: Method) -> dict[str, Any] | None:
        """What is known without trying: too big for memory by its matrix alone, or too slow at a smaller width."""
        least = method.least_bytes(record["problem"]["width"]) / 2**30
        if least > self.args.memory_limit:
            return {"status": "memory", "message": f"needs more than {least:.1f} GiB", "least_gib": round(least, 1)}
        slower = None if self.args.no_inference else records.too_big(record, self.known.values())
        if slower is not None:
            width = slower["problem"]["width"]
            return {"status": "time", "message": f"not tried: too slow at F = {width}", "inferred_from": width}
        return None

    def prepare(self, spec: Spec, folder: Path) -> bool:
        """Write the problem to the scratch folder.

        Raises:
            UserError: it could not be made.
        """
        task = {"action": "prepare", "problem": spec.to_json()}
        result = run_worker(task, folder, self.args.threads, float("inf"), float("inf"))
        if "status" in result:
            raise UserError(f"{spec.name} could not be made: {result['message']}")
        return True

    def measured(self, spec: Spec, name: str, folder: Path) -> dict[str, Any]:
        """The result of one method in a process of its own."""
        method = methods()[name]
        product = self.known.get(records.key(self.blank(spec, "product")), {})
        allowance = method.products * min(product.get("seconds", [0.0]))
        limit = self.time_limit_s + allowance
        options = Options(self.args.threads, self.args.device, limit, self.args.memory_limit, self.args.seed)
        task = {"action": "measure", "method": name, "options": asdict(options), "repeats": self.args.repeats}
        grace = GRACE_S + (FINISH_S + limit / 5 if method.stops_itself else 0.0)
        # Without the product the rest means nothing, so it may take as long as it likes.
        killed = float("inf") if name == "product" else limit + grace
        result = run_worker(task, folder, self.args.threads, killed, self.args.memory_limit)
        if result["status"] == "time":
            result["message"] = f"> {self.time_limit_s:g} s"
        return result


def summary(record: records.Record) -> str:
    """One line about a measurement."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['message'].splitlines()[-1][:120]}"
    seconds = sorted(record["seconds"])
    peak = record["peak_bytes"] / 2**20
    return (
        f"{seconds[len(seconds) // 2]:9.3f} s   {peak:9.1f} MiB   objective {record.get('objective', float('nan')):.6g}"
    )


def main() -> int:
    """Run; 0 = everything was measured, 1 = a method failed in a way that is no result."""
    args = parser().parse_args()
    run = Run(args)
    try:
        for spec in specs(args):
            run.problem(spec)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [record for record in run.known.values() if record["status"] == "failed"]
    for record in failed:
        print(f"FAILED {record['name']} {record['method']}: {record['message']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
