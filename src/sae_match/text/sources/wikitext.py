"""MediaWiki markup to prose: gensim's filter, after inline templates are resolved and before lines are tidied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

RECIPE_VERSION = "1"
"""Part of the cache key: to be raised whenever this module's output changes."""

APPENDICES = frozenset(
    (
        *("see also", "references", "notes", "footnotes", "further reading", "external links", "bibliography"),
        *("sources", "citations", "works cited", "explanatory notes", "general references", "notes and references"),
        *("references and notes", "references and further reading", "notes and citations"),
        *("footnotes and references", "external links and references"),
    )
)
"""Second-level sections that list links and citations instead of prose."""

_RANGE_WORDS = frozenset({"-", "–", "to", "and", "by", "x", "or"})


def _convert(args: list[str]) -> str:
    if len(args) > 3 and args[1] in _RANGE_WORDS:
        return f"{args[0]} {args[1]} {args[2]} {args[3]}"
    return " ".join(args[:2])


_TEMPLATES: dict[str, Callable[[list[str]], str]] = {
    "lang": lambda args: args[-1],
    "transl": lambda args: args[-1],
    "transliteration": lambda args: args[-1],
    "nihongo": lambda args: args[0],
    "convert": _convert,
    "as of": lambda args: "as of " + " ".join(args[:1]),
    "chem": "".join,
    **dict.fromkeys(
        ("nowrap", "small", "smaller", "quote", "quotation", "angbr", "vanchor", "sup", "sub", "nts", "flag", "abbr"),
        lambda args: args[0],
    ),
}
"""Inline templates whose visible text is worth keeping; gensim's filter deletes every template."""

_INNERMOST = re.compile(r"\{\{([^{}|]+)\|([^{}]*)\}\}")
_ARGUMENT_BAR = re.compile(r"\|(?![^\[\]]*\]\])")
_NAMED = re.compile(r"^\s*[A-Za-z_-]+\d*\s*=")
_FOOTNOTE = re.compile(r"<ref\b[^>]*/>|<ref\b[^>]*>.*?</ref>", re.DOTALL | re.IGNORECASE)
_PICTURE = re.compile(
    r"<gallery\b.*?</gallery>|\[\[(?:file|image):(?:[^\[\]]|\[[^\[\]]*\]|\[\[[^\[\]]*\]\])*\]\]",
    re.DOTALL | re.IGNORECASE,
)
_LEFTOVER_PICTURE = re.compile(r"^(?:file|image):|\.(?:jpe?g|png|svg|gif|og[gv])\|", re.IGNORECASE)
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1$")
_BULLET = re.compile(r"^[*#:;]*[*#]\s*")
_INDENT = re.compile(r"^[:;]+\s*")


def article_prose(markup: str) -> str:
    """Return the prose of an article's MediaWiki markup: paragraphs, list items and headings, one per line.

    Tables, pictures, footnotes, templates without visible text and the link lists at an article's end are dropped.
    Uses `gensim.corpora.wikicorpus.filter_wiki`.
    """
    from gensim.corpora.wikicorpus import filter_wiki  # Slow to import, and wanted only when the cache is cold.

    text = _without_tables(_PICTURE.sub("", _FOOTNOTE.sub("", markup)))
    for _ in range(3):  # Templates nest; each pass resolves the innermost.
        text = _INNERMOST.sub(_visible_text, text)
    paragraphs = list(_paragraphs(_without_appendices(filter_wiki(text).split("\n"))))
    kept = list(_without_empty_sections(paragraphs))
    return "".join(_separator(line, following) for line, following in zip(kept, [*kept[1:], ""], strict=True))


def _separator(line: str, following: str) -> str:
    """A line and what separates it from the next: a blank line, except between the items of a list."""
    return line + ("\n" if line.startswith("- ") and following.startswith("- ") else "\n\n" if following else "")


def _visible_text(match: re.Match[str]) -> str:
    show = _TEMPLATES.get(match.group(1).strip().lower())
    if show is None:
        return match.group(0)
    args = [arg.strip() for arg in _ARGUMENT_BAR.split(match.group(2)) if not _NAMED.match(arg)]
    args = [re.sub(r"^[12]\s*=\s*", "", arg) for arg in args]
    return show(args) if args else ""


def _without_tables(markup: str) -> str:
    """Drop `{| ... |}` tables, which nest; their marks stand at the beginning of a line."""
    kept, depth = [], 0
    for line in markup.split("\n"):
        stripped = line.lstrip(" :*")
        if stripped.startswith("{|"):
            depth += 1
        if depth == 0:
            kept.append(line)
        if depth and stripped.startswith("|}") and not stripped.startswith("|}}"):
            depth -= 1
    return "\n".join(kept)


def _without_appendices(lines: list[str]) -> Iterator[str]:
    dropping = False
    for line in lines:
        heading = _HEADING.match(line.strip())
        if heading and len(heading.group(1)) == 2:
            dropping = heading.group(2).strip().lower() in APPENDICES
        if not dropping:
            yield line


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join wrapped lines: a single line break does not end a paragraph; a blank line, a heading or an item does."""
    wrapped: list[str] = []
    for line in lines:
        begins_own = line.strip()[:1] in ("=", "*", "#", ":", ";")
        if wrapped and (begins_own or not line.strip()):
            yield " ".join(wrapped)
            wrapped = []
        readable = _tidy_line(line)
        if readable and begins_own:
            yield readable
        elif readable:
            wrapped.append(readable)
    if wrapped:
        yield " ".join(wrapped)


def _tidy_line(line: str) -> str:
    """Return one line as a person reads it, or an empty string where nothing readable is left."""
    line = re.sub(r"'{2,}|__[A-Z]+__", "", line.replace("\xa0", " ")).strip()
    heading = _HEADING.match(line)
    if not heading:
        line = _INDENT.sub("", _BULLET.sub("- ", line))
    line = re.sub(r"\(\s*[,;:]?\s*\)|\[\s*\]", "", line)  # What a deleted template leaves behind.
    line = re.sub(r"\(\s*(?:[,;:]\s*)+", "(", line)
    line = re.sub(r"\s+([,.;:)])(?=\s|$)", r"\1", re.sub(r"\s{2,}", " ", line))
    readable = re.search(r"\w", line) and not _LEFTOVER_PICTURE.search(line)
    return line.strip() if readable else ""


def _without_empty_sections(lines: list[str]) -> Iterator[str]:
    """Yield the lines with headings bare, leaving out headings that nothing but a heading of their rank follows."""
    for line, following in zip(lines, [*lines[1:], "== end =="], strict=True):
        heading, next_heading = _HEADING.match(line), _HEADING.match(following)
        if not heading:
            yield line
        elif not (next_heading and len(next_heading.group(1)) <= len(heading.group(1))):
            yield heading.group(2)
