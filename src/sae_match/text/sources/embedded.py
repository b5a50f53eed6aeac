"""The embedded texts: Wikipedia articles and news inside the gensim wheel, and Python's own standard library.

Their labels and ids never change: SAEs were trained on one part of each. Wikipedia's markup becomes prose by gensim's
filter, after inline templates are resolved and before lines are tidied.
"""

from __future__ import annotations

import bz2
import hashlib
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.options import option
from sae_match.text.source import Document, TextSource

WIKI_FILE = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS_FILE = "gensim/test/test_data/lee_background.cor"
SKIPPED_FOLDERS = frozenset(
    # Tests repeat the code they test; encodings and pydoc_data are tables, not code.
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
)
MIN_CODE_BYTES = 4_000
"""About 1,000 tokens: shorter modules are mostly imports and re-exports."""


@option
class EmbeddedWiki(TextSource):
    """Excerpt of the English Wikipedia inside the gensim wheel: articles as prose."""

    label = "embedded_wiki"

    def identity(self) -> dict[str, str]:
        """The dump's hash, and the version of what strips its markup."""
        path, version = _gensim_file(WIKI_FILE)
        return {"file_sha256": file_sha256(path), "gensim": version, "stripping": RECIPE_VERSION}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        return _read_wiki(_gensim_file(WIKI_FILE)[0])

    def note(self) -> str:
        return f"English Wikipedia excerpt of gensim {_gensim_file(WIKI_FILE)[1]}"


@option
class EmbeddedNews(TextSource):
    """The Lee background corpus inside the gensim wheel: short news texts."""

    label = "embedded_news"

    def identity(self) -> dict[str, str]:
        path, version = _gensim_file(NEWS_FILE)
        return {"file_sha256": file_sha256(path), "gensim": version}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        """Yield one document per line; the line number, from 1, is its id."""
        path, _ = _gensim_file(NEWS_FILE)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                yield Document(str(number), f"news {number}", line.strip())

    def note(self) -> str:
        return f"Lee background corpus of gensim {_gensim_file(NEWS_FILE)[1]}"


@option
class EmbeddedCode(TextSource):
    """The Python standard library's own sources; the documents depend on the Python version."""

    label = "embedded_code"

    def identity(self) -> dict[str, str]:
        digest = hashlib.sha256()
        for name, path in _standard_library().items():
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
        return {"files_sha256": digest.hexdigest(), "python": platform.python_version()}

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        """Yield one document per module; its relative path is its id."""
        for name, path in _standard_library().items():
            with tokenize.open(path) as stream:  # Honors a module's own encoding declaration.
                yield Document(name, name, stream.read())

    def note(self) -> str:
        _standard_library()
        version = platform.python_version()
        return f"Standard library sources of Python {version}; the documents depend on the Python version."


def _gensim_file(name: str) -> tuple[Path, str]:
    """Where a data file of the gensim wheel lies and gensim's version, without importing gensim."""
    try:
        distribution = metadata.distribution("gensim")
    except metadata.PackageNotFoundError:
        raise UserError(
            "The embedded wiki and news texts ship inside the gensim wheel, which is not installed.\n"
            "Install it with `pip install gensim==4.4.0`, or choose another dataset."
        ) from None
    path = Path(str(distribution.locate_file(name)))
    if not path.is_file():
        raise UserError(
            f"gensim {distribution.version} is installed, but without {name}.\n"
            "Install the wheel from PyPI with `pip install --force-reinstall gensim==4.4.0`, or choose another dataset."
        )
    return path, distribution.version


def _read_wiki(path: Path) -> Iterator[Document]:
    """Yield the articles (namespace 0, no redirects) of a MediaWiki dump as title and prose."""
    with bz2.open(path) as stream:
        for _, element in ElementTree.iterparse(stream):
            if not element.tag.endswith("}page"):
                continue
            prefix = element.tag[: -len("page")]
            title = element.findtext(f"{prefix}title") or ""
            markup = element.findtext(f"{prefix}revision/{prefix}text") or ""
            redirect = element.find(f"{prefix}redirect") is not None or markup.lower().startswith("#redirect")
            if element.findtext(f"{prefix}ns") == "0" and not redirect:
                yield Document(title, title, f"{title}\n\n{article_prose(markup)}\n")
            element.clear()


def _standard_library() -> dict[str, Path]:
    """The standard library's modules that count as text by relative path, sorted.

    Tests, tables, installed packages and build-machine settings are left out, and so are short files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        wanted = SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not relative.name.startswith("_sysconfigdata")
        if wanted and path.is_file() and path.stat().st_size >= MIN_CODE_BYTES:
            found[relative.as_posix()] = path
    if not found:
        raise UserError(
            f"No Python sources found under {root}: this Python has no readable standard library.\n"
            "Choose another dataset, or use an ordinary CPython installation."
        )
    return dict(sorted(found.items()))


RECIPE_VERSION = "1"
"""Part of the cache key: to be raised whenever `article_prose` gives other text."""

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
