"""`sae-match-report`: one table and the per-layer figures of every job under some directories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_match.atomic import atomic_path, write_text

from ..errors import UserError
from .overlay import write_overlays
from .record_paths import write_path_pages
from .records import BAD_STATES, Record, find_records
from .tables import comparison_frame, summary_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; write report.md, report.csv and figures to the output directory.

    Returns:
        0; 1 if a job failed, was killed or cannot be read; 2 if the arguments are wrong.
    """
    options = _parser().parse_args(arguments)
    output = options.output or (options.paths[0] / "report" if len(options.paths) == 1 else None)
    try:
        records = find_records(options.paths)
        if output is None:
            print(report(records, metrics=options.metric), end="")
            print("several paths and no --output: nothing was written", file=sys.stderr)
        else:
            print(_write(records, output, options.metric, not options.no_figures, options.feature), end="")
            print(f"written to {output}", file=sys.stderr)
    except UserError as error:
        print(f"sae-match-report: {error}", file=sys.stderr)
        return 2
    return 1 if any(record.state in BAD_STATES for record in records) else 0


def report(
    records: Sequence[Record],
    figures: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    pages: Sequence[str] = (),
) -> str:
    """The whole report as Markdown: a pure function of the records (and the figures' file names)."""
    done = sum(record.state == "done" for record in records)
    parts = [f"# SAE Match: {done} of {len(records)} jobs done\n", summary_table(records, metrics)]
    troubled = [record for record in records if record.state in BAD_STATES]
    if troubled:
        lines = [f"- **{r.name}** {r.state}: {' '.join((r.error or 'no reason recorded').split())}" for r in troubled]
        parts.append("## Jobs that did not finish\n\n" + "\n".join(lines) + "\n")
    if figures:
        parts.append("## Per layer\n\n" + "\n".join(f"![{Path(name).stem}]({name})" for name in figures) + "\n")
    if pages:
        parts.append("## Feature paths\n\n" + "\n".join(f"- [{name}]({name})" for name in pages) + "\n")
    return "\n".join(parts)


def _write(
    records: Sequence[Record], output: Path, metrics: Sequence[str] | None, figures: bool, features: Sequence[int]
) -> str:
    try:
        drawn = [path.name for path in write_overlays(records, output)] if figures else []
        pages = [path.name for path in write_path_pages(records, output, features)] if figures else []
        text = report(records, drawn, metrics, pages)
        write_text(output / "report.md", text)
        with atomic_path(output / "report.csv") as temporary:
            comparison_frame(records).to_csv(temporary, index=False, lineterminator="\n")
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}. Give another --output.") from error
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-match-report",
        description="Compare the jobs recorded under one or more directories: a Markdown table on standard output; "
        "report.md, report.csv, per-layer figures and pages of feature paths in the output directory.",
        epilog="Exit code: 0; 1 if a job failed, was killed or cannot be read; 2 for wrong arguments.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="directory of a job or of a sweep")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: PATH/report when there is one path)"
    )
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help="column of the table, a name in metrics.json; repeatable"
    )
    parser.add_argument("--no-figures", action="store_true", help="write the tables only")
    parser.add_argument(
        "--feature",
        action="append",
        type=int,
        default=[],
        metavar="N",
        help="path to show on the page of feature paths, by its feature in the first layer; repeatable "
        "(default: as many as fit)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
