"""The embedded texts: Wikipedia articles and news inside the gensim wheel, and Python's own standard library.

Their labels and ids never change: SAEs were trained on one part of each.
"""

from __future__ import annotations

import bz2
import hashlib
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.options import option
from sae_match.text.source import Document, TextSource
from sae_match.text.sources.wikitext import RECIPE_VERSION, article_prose

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
