"""Facts for content keys: equal content, equal facts; what has no plain form is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import torch

from sae_match import UserError
from sae_match.keys import Keyed, arguments, plain, source_digest


class Color(Enum):
    red = "r"


@dataclass
class Inner:
    size: int


@dataclass
class Outer(Keyed):
    inner: Inner
    values: tuple[float, ...] = (1.0,)
    note: str = ""


class Known:
    def key(self) -> dict[str, int]:
        return {"known": 1}


def test_objects_are_told_apart_by_content() -> None:
    assert Outer(Inner(1)).facts() == Outer(Inner(1)).facts()
    others = [Outer(Inner(2)), Outer(Inner(1), (1.5,)), Outer(Inner(1), note="n")]
    assert all(other.facts() != Outer(Inner(1)).facts() for other in others)
    assert others[2].facts(("note",)) == Outer(Inner(1)).facts(("note",))


def test_tensors_and_files_count_by_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a")
    other.write_text("a")
    assert plain(one, "x") == plain(other, "x")
    other.write_text("b")
    assert plain(one, "x") != plain(other, "x")
    assert plain([torch.zeros(2)], "x") == plain((torch.zeros(2),), "x") != plain([torch.ones(2)], "x")
    assert plain({"a": Color.red, "b": Known()}, "x") == {"a": "r", "b": {"known": 1}}


def test_what_has_no_plain_form_is_named() -> None:
    @dataclass
    class Careless:
        parts: list[object]

    with pytest.raises(UserError, match=r"Careless.parts\[0\]: a function has no content key"):
        arguments(Careless([test_objects_are_told_apart_by_content]))


def test_the_code_is_that_of_the_whole_module() -> None:
    assert source_digest(Outer) == source_digest(Inner) != source_digest(Keyed)
    assert source_digest(int) is None


def test_a_subclass_counts_its_bases() -> None:
    class Derived(Outer):
        version = 2

    found = Derived(Inner(1)).facts()
    assert found["version"] == 2
    assert found["code"] == [source_digest(Derived), source_digest(Outer)]
