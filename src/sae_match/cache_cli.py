"""Console command `sae-match-cache`: list, verify and clean the store that jobs share."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from sae_match.content import canonical_json
from sae_match.entries import Entry, find_leftovers, list_entries, remove_entry, remove_leftover, verify_entry
from sae_match.errors import UserError
from sae_match.files import format_duration, format_size
from sae_match.store import INPUTS, RESULTS, Store
from sae_match.terminal import quiet_when_unread

MAX_DESCRIPTION = 100
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands.

    Returns:
        0; 1 if `verify` found damage or `clean` could not remove what it chose; 2 if the arguments are wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        store = Store(options.cache_dir)
        if not store.directory.is_dir():
            raise UserError(
                f"{store.directory}: no such directory. Name the cache with --cache-dir DIR or SAE_MATCH_CACHE."
            )
        code: int = options.command(store, options)
    except UserError as error:
        print(f"sae-match-cache: {error}", file=sys.stderr)
        return 2
    return code


def _list(store: Store, options: argparse.Namespace) -> int:
    entries, _ = list_entries(store.root, options.kind)
    if options.json:
        _print_json(store, entries=[entry.as_dict() for entry in entries])
        return 0
    now = time.time()
    rows = [["entry", "size", "last used", "what"]]
    for kind in dict.fromkeys(entry.kind for entry in entries):
        group = [entry for entry in entries if entry.kind == kind]
        if not options.all and not group[0].path.is_dir():  # results by the thousand are one row
            size, used = sum(entry.size for entry in group), max(entry.used for entry in group)
            rows.append([f"{kind}/({len(group)} entries)", format_size(size), _age(now - used), "--all lists each"])
        else:
            rows += [[entry.name, format_size(entry.size), _age(now - entry.used), describe(entry)] for entry in group]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(entries)} entries, {format_size(sum(entry.size for entry in entries))} in {store.root}")
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    entries, unreadable = list_entries(store.root, options.kind)
    found = {str(path): problem for path, problem in unreadable.items()}
    found |= {str(entry.path): problem for entry in entries if (problem := verify_entry(entry)) is not None}
    checked = len(entries) + len(unreadable)
    if options.json:
        damaged = [{"path": path, "problem": problem} for path, problem in found.items()]
        _print_json(store, checked=checked, damaged=damaged)
    else:
        for path, problem in found.items():
            print(f"damaged: {path}: {' '.join(problem.split())}")
        print(f"{checked} entries checked, {len(found)} damaged")
        if found:
            print("Jobs make damaged entries again; to be rid of them now, delete the paths above.")
    return 1 if found else 0


def _clean(store: Store, options: argparse.Namespace) -> int:
    now = time.time()
    entries, _ = list_entries(store.root, options.kind)
    limits = {"older_than": options.older_than, "keep_under": options.keep_under, "key": options.key}
    chosen = select_entries(entries, now=now, everything=options.all, **limits)
    leftovers = find_leftovers(store.root, now)
    kept: dict[Entry, str] = {}
    if not options.dry_run:
        kept = {entry: reason for entry in chosen if (reason := remove_entry(entry)) is not None}
        for path in leftovers:
            remove_leftover(path)
    removed = [entry for entry in chosen if entry not in kept]
    freed = sum(entry.size for entry in removed) + sum(leftovers.values())
    if options.json:
        _print_json(
            store,
            dry_run=options.dry_run,
            removed=[entry.as_dict() for entry in removed],
            debris=[str(path) for path in leftovers],
            bytes=freed,
            kept=[entry.as_dict() | {"reason": reason} for entry, reason in kept.items()],
        )
    else:
        verb = "would remove" if options.dry_run else "removed"
        for name in [*(entry.name for entry in removed), *leftovers]:
            print(f"{verb} {name}")
        for entry, reason in kept.items():
            print(f"kept {entry.name}: {reason}")
        print(f"{verb} {len(removed)} entries and {len(leftovers)} temporary files, {format_size(freed)}")
    return 1 if any(reason != "in use" for reason in kept.values()) else 0


def select_entries(
    entries: Sequence[Entry],
    *,
    now: float,
    everything: bool = False,
    older_than: float | None = None,
    keep_under: int | None = None,
    key: str | None = None,
) -> list[Entry]:
    """Entries to remove, the longest unused first.

    Args:
        everything: all of them.
        older_than: those not used for so many seconds.
        keep_under: beyond these, as many as it takes for the rest to have at most so many bytes.
        key: only those whose name begins with this text or whose key contains it; if nothing else is asked, all such.
    """
    if key is not None:
        entries = [e for e in entries if e.name.split("/")[1].startswith(key) or key in canonical_json(e.key)]
        everything = everything or (older_than is None and keep_under is None)
    left = sorted(entries, key=lambda entry: (entry.used, entry.name))
    chosen = [e for e in left if everything or (older_than is not None and now - e.used > older_than)]
    rest = [entry for entry in left if entry not in chosen]
    size = sum(entry.size for entry in rest)
    for entry in rest:
        if keep_under is None or size <= keep_under:
            break
        chosen.append(entry)
        size -= entry.size
    return chosen


def describe(entry: Entry) -> str:
    """What an entry is, on one line; hashes are shortened."""
    text = json.dumps(entry.about or entry.key, ensure_ascii=False)
    text = re.sub(r"([0-9a-f]{8})[0-9a-f]{24,56}", r"\1", text).replace('"', "").strip("{}")
    return text if len(text) <= MAX_DESCRIPTION else f"{text[: MAX_DESCRIPTION - 3]}..."


def parse_size(text: str) -> int:
    """Bytes of `20GB`, `500M`, `1.5GiB`.

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?", text.strip().upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; say 20GB, 500MB or 1.5GiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))


def parse_duration(text: str) -> float:
    """Seconds of `30d`, `12h`, `2w`, `90m`.

    Raises:
        argparse.ArgumentTypeError: it is no duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; say 30d, 12h, 2w or 90m")
    return float(found.group(1)) * _SECONDS[found.group(2)]


def _nonempty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty, and would choose everything")
    return text


def _age(seconds: float) -> str:
    return "just now" if seconds < 60 else f"{format_duration(seconds)} ago"


def _print_json(store: Store, **values: Any) -> None:
    print(json.dumps({"cache": str(store.root), **values}, indent=2, sort_keys=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-match-cache",
        description="The store that jobs share, a folder of its own inside the cache directory: tokens, residual "
        "streams, converted models, matchings, token losses, judges' answers, W&B's files. Nothing else is touched.",
        epilog="Exit code: 0; 1 if verify finds damage, or clean cannot remove what it chose; 2 for wrong arguments.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("list", _list, "what there is, its size, and when it was last used"),
        ("verify", _verify, "check every entry against its checksums; the damaged ones are named"),
        ("clean", _clean, "remove temporary files of dead processes, and the entries that the options choose"),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        add = sub.add_argument
        add("--cache-dir", default="", metavar="DIR", help="default: SAE_MATCH_CACHE or ~/.cache/sae_match")
        add("--kind", action="append", choices=(*INPUTS, *RESULTS), help="only this kind; repeatable")
        add("--json", action="store_true", help="machine-readable")
        if name == "list":
            add("--all", action="store_true", help="one row per result, too")
        if name == "clean":
            add("--older-than", type=parse_duration, metavar="TIME", help="not used for so long: 30d, 12h")
            add("--key", type=_nonempty, metavar="TEXT", help="whose name begins with TEXT, or whose key contains it")
            add("--keep-under", type=parse_size, metavar="SIZE", help="the longest unused, until the rest fits: 20GB")
            add("--all", action="store_true", help="every entry")
            add("--dry-run", action="store_true", help="say what would go, and remove nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
