"""Console command `sae-match-gate`: is what came after as good as what was before? For CI of those who train SAEs."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae_match.errors import UserError
from sae_match.metrics.description import MATCHED, Better
from sae_match.metrics.metric import MetricRow
from sae_match.record.labels import BUILT_IN_LABELS, joined
from sae_match.record.state import STATUS
from sae_match.report.records import Record, read_record
from sae_match.report.resampling import means
from sae_match.terminal import EXIT_USER_ERROR, quiet_when_unread

if TYPE_CHECKING:
    from sae_match.evaluation import PairEvaluation

SCALE = "decoder_norm"
"""What features without thresholds are folded by."""


@dataclass(frozen=True)
class Number:
    """A number of what was before and of what came after, or (`before` None) of the two together.

    Attributes:
        low, high: 95 % interval of the difference on shared documents, where there is one.
    """

    name: str
    before: float | None
    after: float
    better: Better | None = None
    low: float | None = None
    high: float | None = None

    @property
    def fell(self) -> bool:
        """Whether it became worse; where documents are shared, beyond what they leave open."""
        if self.before is None or self.better is None:
            return False
        sign = 1 if self.better == "higher" else -1
        worse = sign * (self.after - self.before) < 0
        return worse and (self.low is None or self.high is None or self.low > 0 or self.high < 0)

    def problem(self, least: float | None, most: float | None) -> str:
        """What is wrong with it; empty where nothing is."""
        if least is not None and not self.after >= least:
            return f"below {least:g}"
        if most is not None and not self.after <= most:
            return f"above {most:g}"
        return "worse" if self.fell else ""


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print a table.

    Returns:
        0; 1 if a number is out of bounds or, of two records, worse than before; 2 for wrong arguments or input.
    """
    options = _parser().parse_args(arguments)
    least, most = dict(options.min), dict(options.max)
    wanted = list(dict.fromkeys([*least, *most]))
    try:
        records = [(path / STATUS).is_file() for path in map(Path, (options.before, options.after))]
        if all(records):
            numbers = record_numbers(read_record(Path(options.before)), read_record(Path(options.after)), wanted)
        elif any(records):
            raise UserError(f"{options.before}, {options.after}: one is the record of a job; give two records or SAEs")
        else:
            numbers = sae_numbers(options)
        known = {number.name for number in numbers}
        if missing := [name for name in wanted if name not in known]:
            raise UserError(f"no number {', '.join(missing)}; there are {', '.join(sorted(known))}")
    except UserError as error:
        print(f"sae-match-gate: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    problems = {number.name: number.problem(least.get(number.name), most.get(number.name)) for number in numbers}
    table = [("", "before", "after", "change", "")]
    table += [(n.name, _text(n.before), _text(n.after), _change(n), problems[n.name] or "ok") for n in numbers]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    for name, *cells, verdict in table:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *right, verdict]).rstrip())
    return 1 if any(problems.values()) else 0


def record_numbers(before: Record, after: Record, wanted: Sequence[str] = ()) -> list[Number]:
    """The headline numbers and the `wanted` ones of two finished jobs, compared on the documents that they share.

    Raises:
        UserError: a job that is not done, or the later one lacks a headline number of the earlier one.
    """
    for record in (before, after):
        if record.state != "done":
            raise UserError(f"{record.path}: the job is {record.outcome} {record.reason}".rstrip())
    labels = joined((before.labels, after.labels))
    names = list(dict.fromkeys([*labels.headlines, *wanted]))
    first, second = (means([record], names, labels) for record in (before, after))
    found: list[Number] = []
    for name in names:
        a, b = before.number(name), after.number(name)
        if b is None and a is not None:
            raise UserError(f"{after.path} has no {name}, which {before.path} has: give two jobs that measure the same")
        if b is None or (a is None and name not in wanted):
            continue
        paired = second[name].less(first.get(name)) if name in second else None
        low, high = (None, None) if paired is None or math.isnan(paired.interval[0]) else paired.interval
        found.append(Number(name, a, b, labels.of_number(name).better, low, high))
    return found


def sae_numbers(options: argparse.Namespace) -> list[Number]:
    """Numbers of two SAEs of one layer: of their matching and, on activations, of what either does.

    Raises:
        UserError: SAEs or activations that cannot be read or do not fit together.
    """
    from sae_match import PairSettings, evaluate_on_text, evaluate_pair, load_language_model, load_sae, load_text, match
    from sae_match.evaluation.pair import weight_rows
    from sae_match.metrics.registry import BUILT_IN
    from sae_match.metrics.weight_distance import weight_distances_of
    from sae_match.saes import Site, with_scale

    a, b = (load_sae(path) for path in (options.before, options.after))
    if not (a.foldable and b.foldable):
        print(f"features without thresholds: both SAEs are folded by {SCALE}", file=sys.stderr)
        a, b = with_scale(a, SCALE), with_scale(b, SCALE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two checkpoints of one training share an initialization
        permutation = match(a, b).permutation
    if options.activations is not None:
        x, whole = _read_activations(options.activations), Site.resid_post  # the file is what they read
        settings = PairSettings(sink_positions=0)
        found = evaluate_pair(a.replace(site=whole), b.replace(site=whole), permutation, x, x, settings=settings)
    elif options.model is not None:
        model = load_language_model(options.model, "cpu", options.cache_dir)
        text = load_text(options.text, model, options.cache_dir)
        layers = options.layer, options.layer
        found = evaluate_on_text(a, b, permutation, model, text, layers, options.cache_dir)
    else:
        return _of_pair(weight_rows(BUILT_IN, weight_distances_of(a, b, {MATCHED: permutation}), (0, 0)))
    return [*_of_pair(found.rows), *_of_each(found)]


def _of_pair(rows: Sequence[MetricRow]) -> list[Number]:
    """What the matching says of both."""
    return [
        Number(row.metric, None, row.value, BUILT_IN_LABELS.of_number(row.metric).better)
        for row in rows
        if row.variant == MATCHED and math.isfinite(row.value)
    ]


def _of_each(found: PairEvaluation) -> list[Number]:
    """How well either SAE reconstructs, its L0, and how many of its features never fire."""
    value = {(row.variant, row.metric): row.value for row in found.rows}
    numbers = [
        Number(name, value["encode_decode_previous", name], value["encode_decode_current", name])
        for name in ("explained_variance", "r2", "fvu")
    ]
    counts = found.statistics.a, found.statistics.b
    l0 = [float(side.active.sum() / side.tokens.sum()) for side in counts]
    dead = [float((side.active.sum(dim=0) == 0).sum()) for side in counts]
    return [*numbers, Number("l0", l0[0], l0[1]), Number("dead_features", dead[0], dead[1])]


def _read_activations(path: Path) -> np.ndarray:
    """[tokens, d] or [windows, tokens, d] of a .npy file, memory-mapped."""
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--activations {path}: no .npy file of numbers ({error})") from error
    if x.ndim not in (2, 3) or x.dtype.kind != "f":
        raise UserError(f"--activations {path}: expected floats [tokens, d] or [windows, tokens, d], got {x.shape}")
    return x


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(number: Number) -> str:
    if number.before is None:
        return ""
    interval = "" if number.low is None else f" [{number.low:+.2g}, {number.high:+.2g}]"
    return f"{number.after - number.before:+.4g}{interval}"


def _bound(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=NUMBER, such as matching_score=0.6")
    return name, float(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-match-gate",
        description="Compare two SAEs of one layer (files, folders, embedded/NAME) or the records of two jobs, and "
        "print a small table. Two SAEs are matched; activations or a model add matching_score, explained_variance, l0.",
        epilog="Exit code: 0; 1 if a number is out of its bounds or, of two records, worse than before (on shared "
        "documents: the 95 % interval of the difference excludes 0); 2 for wrong arguments or input.",
    )
    add = parser.add_argument
    add("before", help="an SAE, or the directory of a job")
    add("after", help="the SAE or job that is to be as good")
    for name, what in (("--min", "least"), ("--max", "most")):
        help_text = f"the {what} that a number may be; repeatable"
        add(name, action="append", type=_bound, default=[], metavar="NAME=NUMBER", help=help_text)
    source = parser.add_mutually_exclusive_group()
    shapes = ".npy of what both SAEs read: [tokens, d] or [windows, tokens, d]"
    source.add_argument("--activations", type=Path, metavar="FILE", help=shapes)
    source.add_argument("--model", metavar="NAME", help="a model of conf/model that runs without further keys")
    add("--text", default="wiki", metavar="NAME", help="with --model: a text of conf/dataset (default: wiki)")
    add("--layer", type=int, default=0, metavar="N", help="with --model: the block whose output both SAEs read")
    add("--cache-dir", default="", metavar="DIR", help="with --model (default: SAE_MATCH_CACHE or ~/.cache/sae_match)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
