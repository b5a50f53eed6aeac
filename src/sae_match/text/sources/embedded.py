"""The embedded texts: Wikipedia articles and news inside the gensim wheel, and Python's own standard library."""

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

from sae_match.config.schema import DatasetSource
from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.text.documents import Document, Source
from sae_match.text.sources.wikitext import RECIPE_VERSION, article_prose

WIKI_FILE = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS_FILE = "gensim/test/test_data/lee_background.cor"
SKIPPED_FOLDERS = frozenset(
    # Tests repeat the code they test; encodings and pydoc_data are tables, not code.
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
)
MIN_CODE_BYTES = 4_000
"""About 1,000 tokens: shorter modules are mostly imports and re-exports."""


def open_embedded(source: DatasetSource) -> Source:
    """Open one of the embedded sources.

    Raises UserError where the gensim wheel or the standard library's sources are missing.
    """
    if source is DatasetSource.embedded_wiki:
        return _open_wiki(source.value)
    if source is DatasetSource.embedded_news:
        return _open_news(source.value)
    return _open_code(source.value)


def gensim_file(name: str) -> tuple[Path, str]:
    """Return where a data file of the gensim wheel lies and gensim's version, without importing gensim.

    Raises UserError where gensim, or the file in it, is missing.
    """
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


def _open_wiki(name: str) -> Source:
    path, version = gensim_file(WIKI_FILE)
    identity = {"file_sha256": file_sha256(path), "gensim": version, "stripping": RECIPE_VERSION}
    return Source(name, identity, lambda: _read_wiki(path), note=f"English Wikipedia excerpt of gensim {version}")


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


def _open_news(name: str) -> Source:
    path, version = gensim_file(NEWS_FILE)
    identity = {"file_sha256": file_sha256(path), "gensim": version}
    return Source(name, identity, lambda: _read_news(path), note=f"Lee background corpus of gensim {version}")


def _read_news(path: Path) -> Iterator[Document]:
    """Yield one document per line; the line number, from 1, is its id."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield Document(str(number), f"news {number}", line.strip())


def _open_code(name: str) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    files = standard_library_files(root)
    if not files:
        raise UserError(
            f"No Python sources found under {root}: this Python has no readable standard library.\n"
            "Choose another dataset, or use an ordinary CPython installation."
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    version = platform.python_version()
    identity = {"files_sha256": digest.hexdigest(), "python": version}
    note = f"Standard library sources of Python {version}; the documents depend on the Python version."
    return Source(name, identity, lambda: _read_code(root, files), note=note)


def standard_library_files(root: Path) -> list[Path]:
    """Return the standard library's modules under `root`, sorted by relative path.

    Tests, tables, installed packages and build-machine settings are left out, and so are short files.
    """
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        wanted = SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not relative.name.startswith("_sysconfigdata")
        if wanted and path.is_file() and path.stat().st_size >= MIN_CODE_BYTES:
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _read_code(root: Path, files: list[Path]) -> Iterator[Document]:
    for path in files:
        relative = path.relative_to(root).as_posix()
        with tokenize.open(path) as stream:  # Honours a module's own encoding declaration.
            yield Document(relative, relative, stream.read())
