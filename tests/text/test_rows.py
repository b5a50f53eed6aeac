"""Columns, rows and WikiText articles."""

from __future__ import annotations

import pytest

from sae_match.errors import UserError
from sae_match.text.source import LINES_WITHOUT_HEADING, row_texts, rows_to_documents, text_column

WIKITEXT = [
    "",
    " = First Title = \n",
    "",
    " Some text . \n",
    "",
    " = = A section = = \n",
    "",
    " where x \n",
    " = 2 = \n",
    "",
    " = Second = Title = \n",
    "",
    " More text . ",
]


def test_articles_are_joined_at_single_headings_after_a_blank_line() -> None:
    articles = list(rows_to_documents(WIKITEXT, "here", join=True))
    assert [article.title for article in articles] == ["First Title", "Second = Title"]
    assert [article.id for article in articles] == ["1/First Title", "2/Second = Title"]
    assert articles[0].text == (" = First Title = \n\n Some text . \n\n = = A section = = \n\n where x \n = 2 = \n\n")
    assert articles[1].text == " = Second = Title = \n\n More text . \n"


def test_a_single_letter_is_a_title() -> None:
    assert [article.title for article in rows_to_documents([" = K = \n"], "here", join=True)] == ["K"]


def test_lines_before_the_first_heading_are_dropped() -> None:
    (article,) = rows_to_documents(["tail of another article\n", "\n", " = T = \n", "body\n"], "here", join=True)
    assert article.text == " = T = \nbody\n"


@pytest.mark.parametrize("count", [3, LINES_WITHOUT_HEADING + 5])
def test_no_heading_is_an_error_and_is_found_early(count: int) -> None:
    lines = iter(["text\n"] * count)
    with pytest.raises(UserError, match="join_articles"):
        list(rows_to_documents(lines, "here", join=True))
    assert len(list(lines)) == max(0, count - LINES_WITHOUT_HEADING)


def test_rows_are_documents_with_stable_numbers() -> None:
    documents = list(rows_to_documents(["a", " \n", "", "b"], "file", join=False))
    assert [(document.id, document.title, document.text) for document in documents] == [
        ("1", "file 1", "a"),
        ("4", "file 4", "b"),
    ]


def test_the_column_is_the_first_known_one_or_the_one_named() -> None:
    assert text_column(["code", "content", "x"], None, "here") == "content"
    assert text_column(["code", "x"], None, "here") == "code"
    assert text_column(["text", "x"], "x", "here") == "x"


@pytest.mark.parametrize("wanted", [None, "body"])
def test_a_missing_column_lists_the_columns(wanted: str | None) -> None:
    with pytest.raises(UserError, match=r"Its columns: id, prose"):
        text_column(["id", "prose"], wanted, "here")


def test_a_null_is_empty_and_a_number_is_refused() -> None:
    assert list(row_texts([{"text": "a"}, {"text": None}, {}], "text", "here")) == ["a", "", ""]
    with pytest.raises(UserError, match="row 2: column 'text' holds int"):
        list(row_texts([{"text": "a"}, {"text": 3}], "text", "here"))
