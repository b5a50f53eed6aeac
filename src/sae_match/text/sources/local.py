"""Local texts: a .txt file or a directory of them, .jsonl and .parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sae_match.config.schema import DatasetConfig
from sae_match.errors import UserError
from sae_match.files import file_sha256
from sae_match.text.documents import Document, Source
from sae_match.text.sources.rows import row_texts, rows_to_documents, text_column

FORMATS = (".txt", ".jsonl", ".parquet")


def open_local(cfg: DatasetConfig) -> Source:
    """Open `cfg.path`: a .txt file (one document), a directory of .txt files (one document each, sorted by relative
    path), or a .jsonl or .parquet file (one document per row). `cfg.join_articles` joins rows, or the lines of a
    .txt file, into articles instead.

    Raises UserError where the path is missing or of another kind.
    """
    if not cfg.path:
        raise UserError("dataset.source=local needs dataset.path: a .txt, .jsonl or .parquet file, or a folder of .txt")
    path = Path(cfg.path).expanduser()
    if not path.exists():
        raise UserError(f"dataset.path: {path} does not exist (seen from {Path.cwd()}).")
    files = text_files(path)
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix() if path.is_dir() else file.suffix}\0".encode())
        digest.update(f"{file_sha256(file)}\0".encode())
    identity = {
        "files_sha256": digest.hexdigest(),
        "column": cfg.column or "",
        "join_articles": str(cfg.join_articles),
    }
    return Source("local", identity, lambda: _read(root, files, cfg), note=str(path))


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


def _read(root: Path, files: list[Path], cfg: DatasetConfig) -> Iterator[Document]:
    suffix = files[0].suffix.lower()
    if suffix == ".jsonl":
        texts = row_texts(*_with_column(_jsonl_rows(files[0]), cfg, files[0]))
        yield from rows_to_documents(texts, files[0].stem, cfg.join_articles)
    elif suffix == ".parquet":
        yield from rows_to_documents(_parquet_texts(files[0], cfg), files[0].stem, cfg.join_articles)
    else:
        yield from _text_documents(root, files, cfg.join_articles)


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
    rows: Iterator[Mapping[str, Any]], cfg: DatasetConfig, file: Path
) -> tuple[Iterator[Mapping[str, Any]], str, str]:
    """Look for the text column in the first row, which says what a .jsonl file holds."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} is empty.")
    column = text_column(list(first), cfg.column, str(file))

    def all_rows() -> Iterator[Mapping[str, Any]]:
        yield first
        yield from rows

    return all_rows(), column, str(file)


def _parquet_texts(file: Path, cfg: DatasetConfig) -> Iterator[str]:
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
    with parquet, _readable(file):
        column = text_column(parquet.schema_arrow.names, cfg.column, str(file))
        batches = parquet.iter_batches(batch_size=1024, columns=[column])
        yield from row_texts((row for batch in batches for row in batch.to_pylist()), column, str(file))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Pages of data can be damaged behind a footer that is whole."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
