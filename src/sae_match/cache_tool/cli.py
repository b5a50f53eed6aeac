"""Console command `sae-match-cache`: list, verify and clean the cache that jobs share."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_match.errors import UserError
from sae_match.terminal import quiet_when_unread

from .cleaning import chosen, discard, find_debris, remove
from .entries import HUB, KINDS, Entry, find_entries, measure
from .verifying import UNCHECKED, damage

_SIZES = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
_DURATIONS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands.

    Returns:
        0; 1 if `verify` found damage or `clean` could not remove what it chose; 2 if the arguments are wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        cache = options.cache_dir or default_cache()
        if not cache.is_dir():
            raise UserError(f"{cache}: no such directory. Name the cache with --cache-dir DIR or SAE_MATCH_CACHE.")
        code: int = options.command(cache, options)
    except UserError as error:
        print(f"sae-match-cache: {error}", file=sys.stderr)
        return 2
    return code


def default_cache() -> Path:
    """Where jobs keep the cache by default: conf/config.yaml says the same."""
    return Path(os.environ.get("SAE_MATCH_CACHE") or Path(os.environ.get("HOME", ".")) / ".cache" / "sae_match")


def _list(cache: Path, options: argparse.Namespace) -> int:
    entries = find_entries(cache, tuple(options.kind or KINDS))
    if options.json:
        _print_json({"cache": str(cache), "entries": [entry.as_dict() for entry in entries]})
        return 0
    rows = [[e.name, show_size(e.size), show_age(time.time() - e.used), e.what] for e in _folded(entries, options.all)]
    _print_table(["entry", "size", "last used", "what"], rows)
    print(f"{len(entries)} entries, {show_size(sum(entry.size for entry in entries))} in {cache}")
    return 0


def _verify(cache: Path, options: argparse.Namespace) -> int:
    kinds = tuple(options.kind or KINDS)
    entries = [entry for entry in find_entries(cache, kinds) if entry.kind not in UNCHECKED]
    found = [(entry, problem) for entry in entries if (problem := damage(entry)) is not None]
    if options.json:
        damaged = [entry.as_dict() | {"problem": problem} for entry, problem in found]
        _print_json({"cache": str(cache), "checked": len(entries), "damaged": damaged})
    else:
        for entry, problem in found:
            print(f"damaged: {entry.path}: {' '.join(problem.split())}")
        print(f"{len(entries)} entries checked, {len(found)} damaged")
        if found:
            print("Jobs make damaged entries again or name them; to be rid of them now, delete the paths above.")
    return 1 if found else 0


def _clean(cache: Path, options: argparse.Namespace) -> int:
    # The hub's cache belongs to other programs as well: it is touched only where it is named.
    kinds = tuple(options.kind or [kind for kind in KINDS if kind != HUB])
    now = time.time()
    entries = chosen(
        find_entries(cache, kinds), everything=options.all, older_than=options.older_than,
        keep_under=options.keep_under, now=now,
    )  # fmt: skip
    debris = {path: measure(path)[0] for path in find_debris(cache, now)}
    stayed = {} if options.dry_run else {entry: reason for entry in entries if (reason := remove(entry)) is not None}
    if not options.dry_run:
        for path in debris:
            discard(path)
    removed = [entry for entry in entries if entry not in stayed]
    freed = sum(entry.size for entry in removed) + sum(debris.values())
    if options.json:
        kept = [entry.as_dict() | {"reason": reason} for entry, reason in stayed.items()]
        _print_json({"cache": str(cache), "dry_run": options.dry_run, "removed": [e.as_dict() for e in removed],
                     "debris": [str(path) for path in debris], "kept": kept, "bytes": freed})  # fmt: skip
    else:
        verb = "would remove" if options.dry_run else "removed"
        for name in [*(entry.name for entry in removed), *(str(path) for path in debris)]:
            print(f"{verb} {name}")
        for entry, reason in stayed.items():
            print(f"kept {entry.name}: {reason}")
        print(f"{verb} {len(removed)} entries and {len(debris)} temporary files, {show_size(freed)}")
    return 1 if any(reason != "in use" for reason in stayed.values()) else 0


def _folded(entries: Sequence[Entry], show_all: bool) -> list[Entry]:
    """Results by the thousand are one row per kind, unless all are asked for."""
    folded: list[Entry] = []
    for kind in KINDS:
        group = [entry for entry in entries if entry.kind == kind]
        if show_all or not group or group[0].path.is_dir():
            folded += group
        else:
            size, used = sum(entry.size for entry in group), max(entry.used for entry in group)
            folded.append(Entry(kind, Path(f"({len(group)} entries)"), size, used, f"each {group[0].what}"))
    return folded


def show_size(size: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show_age(seconds: float) -> str:
    """A duration in its largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def parse_size(text: str) -> int:
    """Bytes of `20GB`, `500M`, `1.5GiB`.

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?", text.strip().upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; say 20GB, 500MB or 1.5GiB")
    return int(float(found.group(1)) * _SIZES[found.group(2)])


def parse_duration(text: str) -> float:
    """Seconds of `30d`, `12h`, `2w`, `90m`.

    Raises:
        argparse.ArgumentTypeError: it is no duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; say 30d, 12h, 2w or 90m")
    return float(found.group(1)) * _DURATIONS[found.group(2)]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-match-cache",
        description="The cache that jobs share: converted models, residual streams, tokens, token losses, matchings, "
        "judges' answers, W&B's and the hub's files.",
        epilog="Exit code: 0; 1 if verify finds damage, or clean cannot remove what it chose; 2 for wrong arguments.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("list", _list, "what there is, its size, and when it was last used"),
        ("verify", _verify, "check every entry against its checksum or manifest; the damaged ones are named"),
        ("clean", _clean, "remove temporary files of dead processes, and the entries that the options choose"),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        sub.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: SAE_MATCH_CACHE or ~/.cache/sae_match")
        sub.add_argument("--kind", action="append", choices=KINDS, help="only this kind; repeatable")
        sub.add_argument("--json", action="store_true", help="machine-readable")
        if name == "list":
            sub.add_argument("--all", action="store_true", help="one row per result, too")
        if name == "clean":
            sub.add_argument("--older-than", type=parse_duration, metavar="TIME", help="not used for so long: 30d, 12h")
            sub.add_argument(
                "--keep-under", type=parse_size, metavar="SIZE", help="the longest unused, until the rest fits: 20GB"
            )
            sub.add_argument("--all", action="store_true", help="every entry (the hub's only with --kind hub)")
            sub.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
