"""Descriptions: Neuronpedia's files in the bucket's layout, and contexts around top activations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.judging.descriptions import explained, from_contexts, read_explanations

SOURCE = "20-gemmascope-res-16k"


def entry(
    index: Any, description: Any, kind: str = "oai_token-act-pair", model: str = "gpt-4o-mini", **more: Any
) -> str:
    fields = {
        "id": f"id{index}{description}", "modelId": "gemma-2-2b", "layer": SOURCE, "index": index,
        "description": description, "typeName": kind, "explanationModelName": model,
    }  # fmt: skip
    return json.dumps(fields | more)


def folder(tmp_path: Path, *batches: list[str], packed: bool = False) -> str:
    directory = tmp_path / SOURCE / "explanations"
    directory.mkdir(parents=True)
    for number, lines in enumerate(batches):
        content = ("\n".join(lines) + "\n").encode()
        name = f"batch-{number}.jsonl" + (".gz" if packed else "")
        (directory / name).write_bytes(gzip.compress(content) if packed else content)
    return str(tmp_path / "{layer}-gemmascope-res-16k" / "explanations")


@pytest.mark.parametrize("packed", [False, True])
def test_string_indices_in_textual_order_with_gaps(tmp_path: Path, packed: bool) -> None:
    first = [entry("0", "zero"), entry("1", "one"), entry("10", "ten")]
    root = folder(tmp_path, first, [entry("2", "two"), ""], packed=packed)
    assert read_explanations(root, 20, 11) == {0: "zero", 1: "one", 2: "two", 10: "ten"}


def test_several_explanations_give_one_whatever_their_order(tmp_path: Path) -> None:
    lines = [
        entry("3", "late", kind="z-type"),
        entry("3", "b", model="gpt-4o-mini"),
        entry("3", "z", model="claude"),
        entry("3", "a", model="gpt-4o-mini"),
        entry("3", "  ", model="a-blank-one"),
        entry("4", None),
    ]
    for number, order in enumerate((lines, lines[::-1])):
        root = folder(tmp_path / str(number), order[:3], order[3:])
        assert read_explanations(root, 20, 16) == {3: "z"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "batch-0.jsonl, line 2: not an explanation"),
        ("[1]", "line 2: not an explanation"),
        (entry("x", "d"), "line 2: not an explanation"),
        ('{"description": "d"}', "line 2: not an explanation"),
        (entry("16", "d"), "feature 16, but the SAE of layer 20 has 16"),
        (entry("-1", "d"), "feature -1"),
        (entry("1", "d", layer="2-gemmascope-res-16k"), "of 2-gemmascope-res-16k, not of layer 20"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path: Path, line: str, message: str) -> None:
    root = folder(tmp_path, [entry("0", "zero"), line])
    with pytest.raises(UserError, match=message):
        read_explanations(root, 20, 16)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path, [entry("0", "zero")], packed=True)
    with pytest.raises(UserError, match=r"no folder .*21-gemmascope"):
        read_explanations(root, 21, 16)
    path = next((tmp_path / SOURCE).rglob("*.gz"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a readable explanation file"):
        read_explanations(root, 20, 16)
    path.rename(path.with_name("README"))
    with pytest.raises(UserError, match=r"holds no batch-N\.jsonl"):
        read_explanations(root, 20, 16)


def test_terms_of_an_explanation_are_its_telling_words() -> None:
    description = explained("References to  cats, Cats and dogs\nin 2 texts", 12)
    assert description.text == "References t"
    assert dict(description.terms) == {"cats": 2, "dogs": 1, "texts": 1}


WORDS = ["The", " cat", " sat", " on", " the", " mat", "\n", " Cat"]


def decode(ids: Sequence[int]) -> str:
    """Like SentencePiece: the space at the beginning of what is decoded is dropped."""
    return "".join(WORDS[i] for i in ids).removeprefix(" ")


def test_contexts_by_hand() -> None:
    ids = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 1, 1, 0, 0, 0, 0, 0]]
    description = from_contexts(ids, [(0, 1), (1, 1), (0, 7), (0, 6), (1, 0)], decode, around=2, limit=500)
    assert description is not None
    assert description.text.splitlines() == [
        'Most activating tokens: "cat", "Cat", "\\n"',
        "- The« cat» sat on",
        "- Cat« cat» catThe",
        "- mat « Cat»",
        "- the mat« » Cat",
        "- «Cat» cat cat",
    ]
    assert dict(description.terms) == {"cat": 4, "\\n": 1}
    assert description.places == {(0, 1), (1, 1), (0, 7), (0, 6), (1, 0)}


def test_a_description_is_cut_at_whole_contexts() -> None:
    ids = [[0, 1, 2]]
    whole = from_contexts(ids, [(0, 1), (0, 2)], decode, around=1, limit=500)
    assert whole is not None
    cut = from_contexts(ids, [(0, 1), (0, 2)], decode, around=1, limit=len(whole.text) - 1)
    assert cut is not None
    assert whole.text.startswith(cut.text)
    assert len(cut.text.splitlines()) == 2
    assert cut.terms == whole.terms


def test_a_character_spread_over_tokens_does_not_break_the_context() -> None:
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:], b"b"]

    def raw(ids: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    description = from_contexts([[0, 1, 2, 3]], [(0, 2)], raw, around=2, limit=500)
    assert description is not None
    assert "»b" in description.text


def test_a_silent_feature_has_no_description() -> None:
    assert from_contexts([[0]], [], decode, around=1, limit=100) is None
