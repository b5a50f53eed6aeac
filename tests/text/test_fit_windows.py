"""The text that controls are fitted on shares no document with the evaluated one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from sae_match import UserError
from sae_match.store import Store
from sae_match.text import TokenWindows, load_fit_windows, load_windows
from sae_match.text.source import Part
from sae_match.text.sources.local import LocalText


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty documents, each of one word of its own."""
    directory = tmp_path / "texts"
    directory.mkdir()
    for i in range(40):
        (directory / f"d{i:02d}.txt").write_text(f"w{i} " * 12, encoding="utf-8")
    return directory


def dataset(texts: Path, part: Part = "all", documents: int = 6) -> LocalText:
    return LocalText(
        name="local", path=str(texts), part=part, documents=documents,
        window_tokens=5, windows_per_document=2,
    )  # fmt: skip


class WordTokenizer:
    """A word w7 is token 7."""

    bos_token_id = None
    bos_token = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def get_vocab(self) -> dict[str, int]:
        return {f"w{i}": i for i in range(40)}


def words(windows: TokenWindows) -> set[int]:
    return set(windows.ids.flatten().tolist())


@pytest.mark.parametrize("part", get_args(Part))
@pytest.mark.parametrize("documents", [None, 3])
def test_documents_are_disjoint(texts: Path, tmp_path: Path, part: Part, documents: int | None) -> None:
    cfg, cache = dataset(texts, part), Store(tmp_path / "cache")
    evaluated = load_windows(cfg, WordTokenizer(), cache)
    fit = load_fit_windows(cfg, evaluated, documents, WordTokenizer(), cache)
    assert fit.n_documents == (documents or 6)
    assert len(words(fit)) == fit.n_documents
    assert not words(fit) & words(evaluated)
    assert not set(fit.titles) & set(evaluated.titles)


def test_too_few_documents_say_what_to_do(texts: Path, tmp_path: Path) -> None:
    cfg, cache = dataset(texts, documents=36), Store(tmp_path / "cache")
    evaluated = load_windows(cfg, WordTokenizer(), cache)
    assert load_fit_windows(cfg, evaluated, 4, WordTokenizer(), cache).n_documents == 4
    with pytest.raises(UserError, match=r"40 of 40 documents(.|\n)*fitted on 36 documents(.|\n)*fit_documents"):
        load_fit_windows(cfg, evaluated, None, WordTokenizer(), cache)


def test_a_text_that_changed_in_between_is_refused(texts: Path, tmp_path: Path) -> None:
    cfg, cache = dataset(texts), Store(tmp_path / "cache")
    evaluated = load_windows(replace(cfg, seed=1), WordTokenizer(), cache)
    with pytest.raises(UserError, match="does not begin with the evaluated documents"):
        load_fit_windows(cfg, evaluated, None, WordTokenizer(), cache)
