"""The token cache: reuse, damage, and a key that follows every field of the recipe."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sae_match.errors import UserError
from sae_match.store import Store
from sae_match.text import load_windows
from sae_match.text import windows as windows_module


@pytest.fixture
def cache(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def entries(cache: Store) -> list[Path]:
    return sorted((cache.root / "tokens").iterdir())


def test_an_entry_is_read_not_built(config, cache: Store, monkeypatch: pytest.MonkeyPatch, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    first = load_windows(config(), tokenizer, cache)
    monkeypatch.setattr(windows_module, "_build", None)
    second = load_windows(config(name="another label"), tokenizer, cache)
    assert second.key == first.key and second.titles == first.titles and second.info == first.info
    assert entries(cache) == [cache.path("tokens", first.info["recipe"])]


def flip_a_token(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[-3] ^= 1
    entry.write_bytes(content)


def truncate(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_token, truncate])
def test_a_damaged_entry_is_built_again_with_a_warning(config, cache: Store, caplog, damage, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    first = load_windows(config(), tokenizer, cache)
    damage(entries(cache)[0])
    with caplog.at_level(logging.WARNING):
        again = load_windows(config(), tokenizer, cache)
    assert "damaged" in caplog.text and again.key == first.key
    caplog.clear()
    assert load_windows(config(), tokenizer, cache).key == first.key and "damaged" not in caplog.text


def test_windows_that_are_not_what_their_key_says_are_built_again(config, cache: Store, caplog, make_tokenizer) -> None:
    first = load_windows(config(), make_tokenizer(), cache)
    recipe = first.info["recipe"]
    cache.put("tokens", recipe, {**(cache.get("tokens", recipe) or {}), "ids": first.ids + 1})
    with caplog.at_level(logging.WARNING):
        assert load_windows(config(), make_tokenizer(), cache).key == first.key
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"part": "train"},
        {"documents": 3},
        {"window_tokens": 5},
        {"windows_per_document": 1},
        {"seed": 1},
        {"column": "text"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_of_the_recipe_changes_the_entry(config, cache: Store, changes, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    plain = load_windows(config(), tokenizer, cache).info["recipe_key"]
    assert load_windows(config(**changes), tokenizer, cache).info["recipe_key"] != plain
    assert len(entries(cache)) == 2


def test_content_tokenizer_and_bos_change_the_entry(config, folder: Path, cache: Store, make_tokenizer) -> None:
    load_windows(config(), make_tokenizer(), cache)
    load_windows(config(), make_tokenizer(words=101), cache)
    load_windows(config(), make_tokenizer(added=True), cache)
    load_windows(config(), make_tokenizer(added=True), cache, "none")
    (folder / "d00.txt").write_text("w1 " * 40, encoding="utf-8")
    load_windows(config(), make_tokenizer(), cache)
    (folder / "d00.txt").rename(folder / "renamed.txt")
    load_windows(config(), make_tokenizer(), cache)
    assert len(entries(cache)) == 6


def test_using_the_tokenizer_in_between_does_not_change_the_entry(config, cache: Store, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    load_windows(config(), tokenizer, cache)
    tokenizer("w1 w2 w3", truncation=True, max_length=2)
    load_windows(config(), tokenizer, cache)
    assert len(entries(cache)) == 1


def test_an_unwritable_cache_is_the_users_to_mend(config, tmp_path: Path, make_tokenizer) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory is wanted")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        load_windows(config(), make_tokenizer(), Store(blocked))
