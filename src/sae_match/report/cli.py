"""`sae-match-report`: one table and the per-layer figures of every job under some directories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import DamagedFileError, UserError
from ..terminal import quiet_when_unread
from .canvas import VECTOR_FORMATS
from .figures import MAX_CURVES
from .records import BAD_STATES, comparison_keys, find_records, set_aside
from .report import Options, make_report, report_text, write_report


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; write report.md, report.html, tables and figures to the output directory.

    Returns:
        0; 1 if a job failed, was killed or cannot be read; 2 if the arguments are wrong.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    paths, output, view = given.pop("paths"), given.pop("output"), given.pop("wandb_workspace")
    graph, publication = given.pop("graph"), given.pop("publish")
    if not paths and view is None:
        parser.error("give the directory of a job or of a sweep")
    output = output or (paths[0] / "report" if len(paths) == 1 else None)
    options = Options(**given | {"formats": given["formats"] or ("svg",)})
    try:
        records = find_records(paths) if paths else []
        if view is not None:
            # Here, because W&B takes seconds to import.
            from ..tracking.workspace import save_view

            save_view(view, comparison_keys(records))
        if graph is not None or publication is not None:
            from .publish import publish, write_flow_graph  # they need torch

            for target, write in ((graph, write_flow_graph), (publication, publish)):
                if target is not None:
                    write(records, target)
                    print(f"written to {target}", file=sys.stderr)
            return 0
        if not paths:
            return 0
        text = None
        while text is None:
            try:
                text = write_report(records, output, options) if output else report_text(make_report(records, options))
            except DamagedFileError as damaged:  # the others are reported
                records = set_aside(records, damaged)
        print(text, end="")
        if output is None:
            print("several paths and no --output: nothing was written", file=sys.stderr)
        else:
            print(f"written to {output}; to look at it, open {output / 'report.html'}", file=sys.stderr)
    except UserError as error:
        print(f"sae-match-report: {error}", file=sys.stderr)
        return 2
    return 1 if any(record.state in BAD_STATES for record in records) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-match-report",
        description="Compare the jobs recorded under one or more directories: a Markdown table on standard output; "
        "report.md, report.html (one file, opens offline), the tables as CSV, per-layer figures with their data and "
        "pages of feature paths in the output directory.",
        epilog="Exit code: 0; 1 if a job failed, was killed or cannot be read; 2 for wrong arguments.",
    )
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="directory of a job or of a sweep")
    add("--output", type=Path, metavar="DIR", help="where to write (default: PATH/report when there is one path)")
    # The destinations are the fields of Options.
    column = "column of the table, a name in metrics.json; repeatable"
    add("--metric", action="append", dest="metrics", metavar="NAME", help=column)
    add("--no-figures", action="store_false", dest="figures", help="write the tables only")
    named = "draw only this figure, by its file name without suffix or number; repeatable (default: all)"
    add("--figure", action="append", dest="only", default=[], metavar="NAME", help=named)
    beside = "vector format beside each PNG; repeatable (default: svg)"
    add("--format", action="append", dest="formats", choices=VECTOR_FORMATS, help=beside)
    best = "jobs in one figure, the best by their mean, and figures or pages of which every job has one"
    add("--most", type=_positive, default=MAX_CURVES, metavar="N", help=f"{best} (default: %(default)s)")
    apart = "keep jobs that split one span of layers as rows of their own"
    add("--no-merge", action="store_false", dest="merge", help=apart)
    path = "path to show on the page of feature paths, by its feature in the first layer; repeatable"
    path += " (default: as many as fit)"
    add("--feature", action="append", type=int, dest="features", default=[], metavar="N", help=path)
    nodes = "write the flow graph of the one job that has one as .graphml or .json, and nothing else"
    add("--graph", type=Path, metavar="FILE", help=nodes)
    upload = "write a folder to upload to the hub, and nothing else: the permutations of the one job with a model card"
    add("--publish", type=Path, metavar="DIR", help=upload)
    saved = (
        "save a view of this W&B project, with the panels of WANDB.md and the settings that vary between the jobs of "
    )
    saved += "PATH, if given; needs sae-match[workspace]"
    add("--wandb-workspace", metavar="ENTITY/PROJECT", help=saved)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 up")
    return number


if __name__ == "__main__":
    sys.exit(main())
