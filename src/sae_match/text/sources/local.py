"""Local texts: a .txt file or a directory of them, .jsonl and .parquet. None of them is held in memory as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_match.errors import UserError
from sae_match.files import known_sha256
from sae_match.hub import Lookup
from sae_match.options import option
from sae_match.text.source import Document, TextSource, row_texts, rows_to_documents, text_column

FORMATS = (".txt", ".jsonl", ".parquet")
MAX_WHOLE = 2**20
"""Bytes of a .txt file that is read at once; a larger one is a document in pieces."""
MAX_LINE = 2**26
"""Characters of a line."""


@option
class LocalText(TextSource):
    """A .txt file (one document), a directory of .txt files (one document each, sorted by relative path), or a .jsonl
    or .parquet file (one document per row)."""

    label = "local"
    location: ClassVar[tuple[str, ...]] = ("path",)

    path: Annotated[str, Field(min_length=1)]
    """The file or directory."""
    column: str | None = None
    """Text column of a .jsonl or .parquet file; null = the first of text, content, code that exists."""
    join_articles: bool = False
    """WikiText: rows, or the lines of a .txt file, are joined into articles at ` = Title = ` headings."""

    def identity(self) -> dict[str, str]:
        """The files' content, and how it is read."""
        path, (root, files) = Path(self.path).expanduser(), self._files()
        digest = hashlib.sha256()
        for file in files:
            name = file.relative_to(root).as_posix() if root == path else file.suffix
            digest.update(f"{name}\0{known_sha256(file)}\0".encode())
        return {
            "files_sha256": digest.hexdigest(),
            "column": self.column or "",
            "join_articles": str(self.join_articles),
        }

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        root, files = self._files()
        file, suffix = files[0], files[0].suffix.lower()
        if suffix in (".jsonl", ".parquet"):
            rows = _jsonl_texts if suffix == ".jsonl" else _parquet_texts
            yield from rows_to_documents(rows(file, self.column), file.stem, self.join_articles)
            return
        for file in files:
            name = file.relative_to(root).as_posix()
            if self.join_articles:
                lines = (part for line in _lines(file) for part in line.splitlines(keepends=True))
                for article in rows_to_documents(lines, name, join=True):
                    yield Document(f"{name}/{article.id}", article.title, article.text)
            else:
                pieces = _pieces(file)
                yield Document(name, name, "".join(pieces) if file.stat().st_size <= MAX_WHOLE else pieces)

    def note(self) -> str:
        """The path, which must exist."""
        self._files()
        return str(Path(self.path).expanduser())

    def availability(self, lookup: Lookup) -> str:
        """Nothing to fetch; the first document is read, so that a wrong column or format is found early."""
        next(self.read({}), None)
        return ""

    def _files(self) -> tuple[Path, list[Path]]:
        """The folder that names are relative to, and the file itself or the .txt files anywhere under a directory."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = [file for file in path.rglob("*.txt") if file.is_file()]
            if not found:
                raise UserError(
                    f"dataset.path: {path} holds no .txt file. Give a .jsonl or .parquet file by its own path."
                )
            return path, sorted(found, key=lambda file: file.relative_to(path).as_posix())
        if not path.exists():
            raise UserError(f"dataset.path: {path} does not exist (seen from {Path.cwd()}).")
        if path.suffix.lower() not in FORMATS:
            raise UserError(f"dataset.path: {path} is none of {', '.join(FORMATS)}, nor a directory of .txt files.")
        return path.parent, [path]


@contextmanager
def _decoded(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text ({error}). Convert it, for instance with iconv.") from error


def _pieces(file: Path) -> Iterator[str]:
    with _decoded(file) as stream:
        yield from iter(partial(stream.read, MAX_WHOLE), "")


def _lines(file: Path) -> Iterator[str]:
    with _decoded(file) as stream:
        for number, line in enumerate(iter(partial(stream.readline, MAX_LINE + 1), ""), start=1):
            if len(line) > MAX_LINE:
                raise UserError(f"{file}, line {number} has more than {MAX_LINE} characters, which is no row of text.")
            yield line


def _jsonl_texts(file: Path, wanted: str | None) -> Iterator[str]:
    rows = _jsonl_rows(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} is empty.")
    column = text_column(list(first), wanted, str(file))
    yield from row_texts(chain([first], rows), column, str(file))


def _jsonl_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number} is not a JSON object with a text column.")
        yield row


def _parquet_texts(file: Path, wanted: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            column = text_column(parquet.schema_arrow.names, wanted, str(file))
            batches = parquet.iter_batches(batch_size=1024, columns=[column])
            yield from row_texts((row for batch in batches for row in batch.to_pylist()), column, str(file))
    except (pa.ArrowException, OSError) as error:  # pages of data can be damaged behind a footer that is whole
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
