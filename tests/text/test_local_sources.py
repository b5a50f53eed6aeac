"""Local .txt, folders of .txt, .jsonl and .parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_match.errors import UserError
from sae_match.text.source import Document
from sae_match.text.sources.local import LocalText

ROWS = [{"id": 7, "text": "first\u2028row"}, {"id": 8, "text": None}, {"id": 9, "text": "third"}]


def read(path: Path, **changes: object) -> list[Document]:
    return list(LocalText(name="x", path=str(path), **changes).read({}))  # type: ignore[arg-type]


def write_rows(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert read(tmp_path / "a.txt") == [Document("a.txt", "a.txt", "one\n\ntwo\n")]


def test_a_folder_is_read_in_the_order_of_relative_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [document.id for document in read(tmp_path)] == ["a/y.txt", "a/z.txt", "b.txt"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_of_a_file(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name)
    expected = [Document("1", "rows 1", "first\u2028row"), Document("3", "rows 3", "third")]
    assert read(path) == expected and read(path, column="text") == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_wrong_column_lists_the_columns(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name)
    with pytest.raises(UserError, match=r"no column 'body'\. Its columns: id, text"):
        read(path, column="body")
    with pytest.raises(UserError, match="column 'id' holds int"):
        read(path, column="id")


def test_lines_of_a_text_file_are_joined_into_articles(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" \n = A = \n \n a \n \n = B = \n \n b \n", encoding="utf-8")
    articles = read(tmp_path / "wiki.txt", join_articles=True)
    assert [(article.id, article.title) for article in articles] == [("wiki.txt/1/A", "A"), ("wiki.txt/2/B", "B")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\nnonsense\n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b"", "is empty"),
        ("a.parquet", b"nonsense", "not a readable parquet"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("a.csv", b"x", "none of .txt"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_path_and_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "absent.txt")
    with pytest.raises(UserError, match=r"holds no \.txt"):
        read(tmp_path)
