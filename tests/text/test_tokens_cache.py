"""The token cache: reuse, damage, and a key that follows every field of the recipe."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sae_match.errors import UserError
from sae_match.text import load_windows
from sae_match.text import windows as windows_module


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(cache: Path) -> set[str]:
    return {path.name for path in (cache / "tokens").iterdir()}


def test_an_entry_is_read_not_built(config, cache: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    first = load_windows(config(), tokenizer, cache)
    monkeypatch.setattr(windows_module, "_build", None)
    second = load_windows(config(name="another label"), tokenizer, cache)
    assert second.key == first.key and second.titles == first.titles and second.info == first.info
    (entry,) = (cache / "tokens").iterdir()
    assert {path.name for path in entry.iterdir()} == {"windows.safetensors", "manifest.json"}
    assert entry.name == first.info["recipe_key"]


def flip_a_token(entry: Path) -> None:
    content = bytearray((entry / "windows.safetensors").read_bytes())
    content[-3] ^= 1
    (entry / "windows.safetensors").write_bytes(content)


def truncate_tensors(entry: Path) -> None:
    content = (entry / "windows.safetensors").read_bytes()
    (entry / "windows.safetensors").write_bytes(content[: len(content) // 2])


def break_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text("{", encoding="utf-8")


def other_recipe(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
    manifest["recipe"]["seed"] = 99
    (entry / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def lose_tensors(entry: Path) -> None:
    (entry / "windows.safetensors").unlink()


@pytest.mark.parametrize("damage", [flip_a_token, truncate_tensors, break_manifest, other_recipe, lose_tensors])
def test_a_damaged_entry_is_built_again_with_a_warning(config, cache: Path, caplog, damage, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    first = load_windows(config(), tokenizer, cache)
    damage(cache / "tokens" / first.info["recipe_key"])
    with caplog.at_level(logging.WARNING):
        again = load_windows(config(), tokenizer, cache)
    assert "damaged" in caplog.text and again.key == first.key
    caplog.clear()
    assert load_windows(config(), tokenizer, cache).key == first.key and "damaged" not in caplog.text


def test_an_unfinished_entry_is_built_in_silence(config, cache: Path, caplog, make_tokenizer) -> None:
    first = load_windows(config(), make_tokenizer(), cache)
    (cache / "tokens" / first.info["recipe_key"] / "manifest.json").unlink()
    assert load_windows(config(), make_tokenizer(), cache).key == first.key
    assert not caplog.records


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
def test_every_field_of_the_recipe_changes_the_entry(config, cache: Path, changes, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    plain = load_windows(config(), tokenizer, cache).info["recipe_key"]
    assert load_windows(config(**changes), tokenizer, cache).info["recipe_key"] != plain
    assert len(entries(cache)) == 2


def test_content_tokenizer_and_bos_change_the_entry(config, folder: Path, cache: Path, make_tokenizer) -> None:
    load_windows(config(), make_tokenizer(), cache)
    load_windows(config(), make_tokenizer(words=101), cache)
    load_windows(config(), make_tokenizer(added=True), cache)
    load_windows(config(), make_tokenizer(added=True), cache, "none")
    (folder / "d00.txt").write_text("w1 " * 40, encoding="utf-8")
    load_windows(config(), make_tokenizer(), cache)
    (folder / "d00.txt").rename(folder / "renamed.txt")
    load_windows(config(), make_tokenizer(), cache)
    assert len(entries(cache)) == 6


def test_using_the_tokenizer_in_between_does_not_change_the_entry(config, cache: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    load_windows(config(), tokenizer, cache)
    tokenizer("w1 w2 w3", truncation=True, max_length=2)
    load_windows(config(), tokenizer, cache)
    assert len(entries(cache)) == 1


def test_an_unwritable_cache_is_the_users_to_mend(config, tmp_path: Path, make_tokenizer) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory is wanted")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        load_windows(config(), make_tokenizer(), blocked)
