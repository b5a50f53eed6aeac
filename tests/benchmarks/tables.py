"""Markdown tables of the benchmark's results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from tests.benchmarks.derive import Family, Fit, Row, growth, memory_if_finished, seconds_if_finished
from tests.benchmarks.methods import Promise, methods
from tests.benchmarks.problems import Kind

NOTHING = "-"
SETTLED = 1e-9
"""A relative excess below this is the rounding of the objective's own sum."""


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose columns but the first are aligned to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent where that is readable."""
    if value is None:
        return NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        places = max(0, digits - 1 - _magnitude(value))
        return f"{value:,.{places}f}"
    return f"{value:.1e}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1]) if value else 0


def outcome(row: Row) -> str:
    """Seconds with their range, or why there are none."""
    if row.seconds is None:
        return missing(row)
    early = ", stopped early" if row.stopped_early else ""
    seconds = row.seconds
    if seconds.repeats == 1:
        return number(seconds.median) + early
    return f"{number(seconds.median)} [{number(seconds.least)}, {number(seconds.most)}]{early}"


def missing(row: Row) -> str:
    """Why a method has no time."""
    record = row.record
    if record["status"] == "time":
        limit = f"> {record['time_limit_s']:g} s"
        return f"{limit} (at F = {record['inferred_from']:,} already)" if "inferred_from" in record else limit
    if record["status"] == "memory":
        least = record.get("least_gib", 0.0)
        return f"> {max(least, record['memory_limit_gib']):g} GiB"
    if record["status"] == "no answer":
        full = "no full matching" in record["message"]
        return "no perfect matching in the graph" if full else "none: " + record["message"].splitlines()[-1][:80]
    return {"missing": "not installed", "failed": "FAILED"}[record["status"]]


def excess(row: Row) -> str:
    """How far above the optimum the objective lies, or why that cannot be said."""
    record = row.record
    if record.get("objective") is None:
        return NOTHING
    if record["pairs"] < row.spec.width:
        return f"{record['pairs']:,} pairs only"
    if record["distinct"] < record["pairs"]:
        return f"{record['distinct']:,} of B used"
    return NOTHING if row.excess is None else relative(row.excess)


def relative(value: float) -> str:
    """A relative difference: in percent unless it is tiny, 0 where it is rounding."""
    if abs(value) < SETTLED:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-5 else f"{number(100 * value)} %"


def memory(gib: float | None) -> str:
    """Memory in MiB or GiB."""
    if gib is None:
        return NOTHING
    return f"{gib:.2f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"


def gap(row: Row) -> str:
    """The gap that the method proved."""
    if row.gap is None:
        return NOTHING
    return f"{row.gap:.0e}" if row.gap else "0"


def recovered(row: Row) -> str:
    """Share of the persisting features whose counterpart was found."""
    share = row.record.get("recovered")
    return NOTHING if share is None else f"{100 * share:.1f} %"


def full_table(family: list[Row]) -> str:
    """One row per width and method of a family, with everything that was measured."""
    header = ["F", "method", "assignment [s]", "/ product", "with its product / product", "peak memory",
              "over the optimum", "gap proved",
              "planted pairs found", "load before", "cores used by others"]  # fmt: skip
    lines = []
    for row in family:
        record = row.record
        ratio = row.seconds.median / row.product if row.seconds and row.product else None
        whole = median(record["seconds"]) / row.product if ratio is not None and row.product else None
        lines.append([
            f"{row.spec.width:,}", row.method.label, outcome(row), number(ratio), number(whole),
            memory(row.peak_gib), excess(row), gap(row), recovered(row), number(record["load_before"]),
            number(record.get("cores_used_by_others"), 2),
        ])  # fmt: skip
    return markdown(header, lines)


def compact_table(family: list[Row]) -> str:
    """One row per method: seconds at every width; the rest at the widest that most methods managed."""
    widths = sorted({row.spec.width for row in family})
    at = _telling_width(family, widths)
    header = [
        "method",
        *(f"F = {width:,}" for width in widths),
        f"peak memory, F = {at:,}",
        "over the optimum",
        "found",
    ]
    lines = []
    for name in dict.fromkeys(methods()):
        mine = {row.spec.width: row for row in family if row.name == name}
        if not mine:
            continue
        cells = [_short(mine[width]) if width in mine else "not run" for width in widths]
        there = mine.get(at)
        last = [NOTHING] * 3 if there is None else [memory(there.peak_gib), excess(there), recovered(there)]
        lines.append([methods()[name].label, *cells, *last])
    return markdown(header, lines)


def _short(row: Row) -> str:
    if row.seconds is not None:
        return number(row.seconds.median) + ("*" if row.stopped_early else "")
    return missing(row).replace("no perfect matching in the graph", "none").split(" (")[0]


def _telling_width(family: list[Row], widths: list[int]) -> int:
    """The largest width at which a dense exact solver and the certified one both finished; else the smallest."""
    for width in reversed(widths):
        done = [row for row in family if row.spec.width == width and row.seconds is not None]
        exact = [row.name for row in done if row.method.promise is Promise.exact]
        if any(not name.startswith("certified") for name in exact) and len(exact) > 1:
            return width
    return widths[0]


def growth_table(families: dict[Family, list[Row]], first: int) -> str:
    """Exponents of time and memory with F, per method and family."""
    columns = []
    for family, members in families.items():
        label = f"{family.kind}, d = {family.d:,}"
        columns.append((f"{label}: time", growth(members, seconds_if_finished, first)))
        columns.append((f"{label}: memory", growth(members, memory_if_finished, first)))
    lines = []
    for name, method in methods().items():
        cells = [_exponent(fits.get(name)) if "memory" not in title or name != "product" else NOTHING
                 for title, fits in columns]  # fmt: skip
        if any(cell != NOTHING for cell in cells):
            lines.append([method.label, *cells])
    return markdown(["method", *(title for title, _ in columns)], lines)


def _exponent(fitted: Fit | None) -> str:
    if fitted is None:
        return NOTHING
    error = "" if fitted.error is None else f" ± {fitted.error:.2f}"
    return f"{fitted.exponent:.2f}{error} ({len(fitted.widths)} sizes)"


def demo_tables(found: list[Row]) -> str:
    """Demo SAEs: median seconds and greatest excess over the layer pairs, per metric and folding."""
    schemes = list(dict.fromkeys(row.spec.detail.split("/", 1)[1] for row in found))
    seconds, losses = [], []
    for name, method in methods().items():
        mine = {scheme: [r for r in found if r.name == name and r.spec.detail.endswith(scheme)] for scheme in schemes}
        if not any(mine.values()):
            continue
        seconds.append([method.label, *(_pooled_seconds(rows) for rows in mine.values())])
        if name != "product":
            losses.append([method.label, *(_worst_excess(rows) for rows in mine.values())])
    pairs = sorted({row.spec.detail.split("/")[0] for row in found})
    return (
        f"Layer pairs {', '.join(pairs)}.\n\nSeconds of the assignment, median over the pairs:\n\n"
        + markdown(["method", *schemes], seconds)
        + "\n\nObjective over the optimum, the worst pair:\n\n"
        + markdown(["method", *schemes], losses)
    )


def _pooled_seconds(found: list[Row]) -> str:
    done = [row.seconds.median for row in found if row.seconds is not None]
    if len(done) < len(found):
        failed = next(row for row in found if row.seconds is None)
        return f"{missing(failed)} ({len(found) - len(done)} of {len(found)})"
    return number(median(done)) if done else "not run"


def _worst_excess(found: list[Row]) -> str:
    known = [row for row in found if row.excess is not None]
    if len(known) == len(found) and known:
        return excess(max(known, key=lambda row: row.excess or 0.0))
    return excess(next(row for row in found if row.excess is None)) if found else NOTHING


def circumstances(found: list[Row]) -> str:
    """Machines, versions, threads and limits behind the numbers."""
    lines: dict[str, None] = {}
    for row in found:
        record, machine = row.record, row.record["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        line = (
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB{gpu}; {record['threads']} "
            f"threads, products on {record['device']}; limits {record['time_limit_s']:g} s and "
            f"{record['memory_limit_gib']:g} GiB; Python {machine['python']}, {versions}"
        )
        lines[line] = None
    return "\n".join(sorted(lines))


def planted_families(found: list[Row]) -> dict[Family, list[Row]]:
    """Rows of planted problems by family."""
    families: dict[Family, list[Row]] = {}
    for row in found:
        if row.spec.kind is not Kind.demo:
            families.setdefault(row.family, []).append(row)
    return families
