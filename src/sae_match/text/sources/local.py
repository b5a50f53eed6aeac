"""Local texts: a .txt file or a directory of them, .jsonl and .parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.hub import Lookup
from sae_match.options import option
from sae_match.text.source import Document, TextSource
from sae_match.text.sources.rows import row_texts, rows_to_documents, text_column

FORMATS = (".txt", ".jsonl", ".parquet")


@option
class LocalText(TextSource):
    """A .txt file (one document), a directory of .txt files (one document each, sorted by relative path), or a .jsonl
    or .parquet file (one document per row)."""

    location: ClassVar[tuple[str, ...]] = ("path",)

    path: Annotated[str, Field(min_length=1)]
    """The file or directory."""
    column: str | None = None
    """Text column of a .jsonl or .parquet file; null = the first of text, content, code that exists."""
    join_articles: bool = False
    """WikiText: rows, or the lines of a .txt file, are joined into articles at ` = Title = ` headings."""

    @property
    def label(self) -> str:
        """Fixed: the same file anywhere gives the same sample."""
        return "local"

    def identity(self) -> dict[str, str]:
        """The files' content, and how it is read.

        Raises:
            UserError: the path is missing or of another kind.
        """
        path, (root, files) = Path(self.path).expanduser(), self._files()
        digest = hashlib.sha256()
        for file in files:
            name = file.relative_to(root).as_posix() if root == path else file.suffix
            digest.update(f"{name}\0".encode())
            digest.update(f"{file_sha256(file)}\0".encode())
        return {
            "files_sha256": digest.hexdigest(),
            "column": self.column or "",
            "join_articles": str(self.join_articles),
        }

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        """Yield the documents.

        Raises:
            UserError: the path is missing or of another kind, or a file is not what its name says.
        """
        root, files = self._files()
        file, suffix = files[0], files[0].suffix.lower()
        if suffix == ".jsonl":
            texts = row_texts(*_with_column(_jsonl_rows(file), self.column, file))
            yield from rows_to_documents(texts, file.stem, self.join_articles)
        elif suffix == ".parquet":
            yield from rows_to_documents(_parquet_texts(file, self.column), file.stem, self.join_articles)
        else:
            yield from _text_documents(root, files, self.join_articles)

    def note(self) -> str:
        """The path, which must exist."""
        self._files()
        return str(Path(self.path).expanduser())

    def availability(self, lookup: Lookup) -> str:
        """Nothing to fetch; the first document is read, so that a wrong column or format is found early."""
        next(self.read({}), None)
        return ""

    def _files(self) -> tuple[Path, list[Path]]:
        """The folder that names are relative to, and the files."""
        path = Path(self.path).expanduser()
        if not path.exists():
            raise UserError(f"dataset.path: {path} does not exist (seen from {Path.cwd()}).")
        return path if path.is_dir() else path.parent, text_files(path)


def text_files(path: Path) -> list[Path]:
    """The file itself, or the .txt files anywhere under a directory, sorted by relative path.

    Raises UserError for another kind of file and for a directory without .txt files.
    """
    if path.is_dir():
        found = [file for file in path.rglob("*.txt") if file.is_file()]
        if not found:
            raise UserError(f"dataset.path: {path} holds no .txt file. Give a .jsonl or .parquet file by its own path.")
        return sorted(found, key=lambda file: file.relative_to(path).as_posix())
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"dataset.path: {path} is none of {', '.join(FORMATS)}, nor a directory of .txt files.")
    return [path]


def _text_documents(root: Path, files: list[Path], join: bool) -> Iterator[Document]:
    for file in files:
        name, text = file.relative_to(root).as_posix(), _decode(file)
        if not join:
            yield Document(name, name, text)
            continue
        for article in rows_to_documents(text.splitlines(keepends=True), name, join=True):
            yield Document(f"{name}/{article.id}", article.title, article.text)


def _decode(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}). Convert it, for instance with iconv.") from error


def _jsonl_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_decode(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number} is not a JSON object with a text column.")
        yield row


def _with_column(
    rows: Iterator[Mapping[str, Any]], wanted: str | None, file: Path
) -> tuple[Iterator[Mapping[str, Any]], str, str]:
    """Look for the text column in the first row, which says what a .jsonl file holds."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} is empty.")
    column = text_column(list(first), wanted, str(file))

    def all_rows() -> Iterator[Mapping[str, Any]]:
        yield first
        yield from rows

    return all_rows(), column, str(file)


def _parquet_texts(file: Path, wanted: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
    with parquet, _readable(file):
        column = text_column(parquet.schema_arrow.names, wanted, str(file))
        batches = parquet.iter_batches(batch_size=1024, columns=[column])
        yield from row_texts((row for batch in batches for row in batch.to_pylist()), column, str(file))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Pages of data can be damaged behind a footer that is whole."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
