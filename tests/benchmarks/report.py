"""Tables and figures: `python -m tests.benchmarks.report RESULTS.jsonl --out DIR`.

The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_match.errors import UserError
from sae_match.files import write_text
from tests.benchmarks import plot, records, tables
from tests.benchmarks.derive import Family, Row, rows
from tests.benchmarks.problems import Kind

FIT_FROM = 2048
NOTES = {
    Kind.persist: "All features persist, with a small drift, at shuffled positions.",
    Kind.mix: "Heavy-tailed drift, clusters, varied norms and hubs; 30 % of the features have no counterpart.",
    Kind.noise: "Two unrelated SAEs.",
    Kind.points: "Two sets of points, uniform in a cube.",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m tests.benchmarks.report", description=__doc__)
    parse.add_argument("results", type=Path, nargs="+", help="files written by the runner")
    parse.add_argument("--out", type=Path, help="default: the folder of the first results file")
    parse.add_argument("--threads", type=int, help="only measurements with that many threads")
    parse.add_argument("--device", help="only measurements with products on that device")
    parse.add_argument("--fit-from", type=int, default=FIT_FROM, help="least width that enters the exponents")
    parse.add_argument("--curves", nargs="+", choices=list(plot.STYLES), default=list(plot.DRAWN))
    return parse


def title(family: Family) -> str:
    """Heading of a family of problems."""
    seed = f", seed {family.seed}" if family.seed else ""
    return f"Planted: {family.kind}, d = {family.d:,}{seed}"


def stem(family: Family) -> str:
    """Part of a file name."""
    return f"{family.kind}_d{family.d}" + (f"_s{family.seed}" if family.seed else "")


def page(found: list[Row], families: dict[Family, list[Row]], fit_from: int) -> str:
    """The whole report in markdown."""
    demo = [row for row in found if row.spec.kind is Kind.demo]
    parts = ["# Benchmark", tables.circumstances(found)]
    for family, members in families.items():
        parts += [f"## {title(family)}", NOTES[family.kind], tables.full_table(members)]
    if families:
        parts += [f"## Growth: exponent of F, for F >= {fit_from:,}", tables.growth_table(families, fit_from)]
    if demo:
        parts += ["## Demo SAEs, F = 1,152, d = 576", tables.demo_tables(demo)]
    return "\n\n".join(parts)


def select(found: list[Row], threads: int | None, device: str | None) -> list[Row]:
    """The rows of one thread count and one device.

    Raises:
        UserError: more than one is there and none was chosen, or none is left.
    """
    for name, chosen in (("threads", threads), ("device", device)):
        there = sorted({row.record[name] for row in found}, key=str)
        if chosen is None and len(there) > 1:
            raise UserError(f"the results mix several values of {name}: {there}; choose one with --{name}")
        found = [row for row in found if chosen is None or row.record[name] == chosen]
    if not found:
        raise UserError("no measurement fits --threads and --device")
    return found


def write(args: argparse.Namespace) -> list[Path]:
    """All files of the report."""
    out: Path = args.out or args.results[0].parent
    found = select(rows(records.read(args.results).values()), args.threads, args.device)
    families = tables.planted_families(found)
    written = [out / "benchmark.md"]
    write_text(written[0], page(found, families, args.fit_from))
    for family, members in families.items():
        compact = out / f"compact_{stem(family)}.md"
        write_text(compact, tables.compact_table(members))
        figure = plot.draw(members, args.curves, title(family))
        written += [compact, *plot.write(figure, out / f"scaling_{stem(family)}")]
    return written


def main() -> int:
    """Write the report; 0 = written."""
    try:
        for path in write(parser().parse_args()):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
