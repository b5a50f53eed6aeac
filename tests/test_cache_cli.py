"""`sae-match-cache` over a store with an entry of every kind: damage, locks, limits, foreign files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from sae_match import cache_cli
from sae_match.entries import Entry, list_entries
from sae_match.language_model import ResidualStreams, capture
from sae_match.store import FOLDER, Store
from tests.language_model.conftest import build

KEY = {"what": "a result"}
DAY = 86400.0
KINDS = {"matchings", "token_losses", "activations", "judge_answers", "tokens", "residual_streams", "models", "scratch"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One entry per kind."""
    cache = tmp_path_factory.mktemp("cache")
    store = Store(cache)
    for kind in ("matchings", "token_losses", "activations", "judge_answers", "tokens"):
        store.put(kind, KEY, {"losses": np.arange(100.0), "text": "of a result"})
    ids = torch.randint(3, 61, (2, 3), generator=torch.Generator().manual_seed(2))
    capture(build("llama"), SimpleNamespace(ids=ids, key="ef" * 32), [1, 2], store)

    def fill(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(100))

    store.folder("models", {"gguf": "ab" * 32}, fill, {"model": "toy"})
    (store.scratch("wandb") / "staging").mkdir()
    (store.scratch("wandb") / "staging" / "file").write_bytes(bytes(50))
    return cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cache_cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def entries(cache: Path) -> list[Entry]:
    return list_entries(cache / FOLDER)[0]


def entry(cache: Path, kind: str) -> Path:
    return next(found.path for found in entries(cache) if found.kind == kind)


def snapshot(folder: Path) -> dict[str, tuple[bool, bytes | str]]:
    """Everything below a folder: links with their target, files with their content."""
    return {
        str(path.relative_to(folder)): (
            path.is_symlink(),
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder",
        )
        for path in folder.rglob("*")
    }


def aged(path: Path, days: float) -> None:
    """Set an entry's times back."""
    for file in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(file, (time.time() - days * DAY,) * 2)


def flip(path: Path) -> None:
    """Change one bit near the end."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_list_says_what_there_is(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "list", "--cache-dir", str(cache))
    listed = {one["kind"]: one for one in found["entries"]}
    assert code == 0 and set(listed) == KINDS
    streams = entry(cache, "residual_streams")
    assert listed["residual_streams"]["about"]["model_name"] == "tiny-llama"
    assert listed["residual_streams"]["bytes"] == sum(file.stat().st_size for file in streams.iterdir())
    assert listed["matchings"]["key"] == KEY and listed["matchings"]["name"].startswith("matchings/")
    assert cache_cli.main(["list", "--cache-dir", str(cache), "--kind", "residual_streams", "--kind", "matchings"]) == 0
    text = capsys.readouterr().out
    assert "matchings/(1 entries)" in text and "model_name: tiny-llama" in text and "2 entries," in text
    assert "ef" * 32 not in text, "hashes are shortened"


def test_an_intact_store_is_intact_and_looking_is_not_use(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aged(cache, days=40)
    before = {found.name: found.used for found in entries(cache)}
    found = run(capsys, "verify", "--cache-dir", str(cache))
    assert found == (0, {"cache": str(cache / FOLDER), "checked": len(KINDS), "damaged": []})
    assert {one.name: one.used for one in entries(cache)} == before


def swapped(cache: Path) -> None:
    streams = entry(cache, "residual_streams")
    shutil.copy(streams / "layer_01.safetensors", streams / "layer_02.safetensors")


def moved(cache: Path) -> None:
    path = entry(cache, "models")
    path.rename(path.with_name("0" * 64))


def truncated(cache: Path) -> None:
    path = entry(cache, "matchings")
    path.write_bytes(path.read_bytes()[:-8])


def renamed(cache: Path) -> None:
    path = entry(cache, "judge_answers")
    path.rename(path.with_name(f"{'0' * 64}.safetensors"))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a loss": ("token_losses", lambda cache: flip(entry(cache, "token_losses"))),
    "half a matching": ("matchings", truncated),
    "an answer to another question": ("judge_answers", renamed),
    "a token": ("tokens", lambda cache: flip(entry(cache, "tokens"))),
    "a residual": ("residual_streams", lambda cache: flip(entry(cache, "residual_streams") / "layer_01.safetensors")),
    "another layer": ("residual_streams", swapped),
    "no mark": ("residual_streams", lambda cache: (entry(cache, "residual_streams") / "entry.json").unlink()),
    "another entry's mark": ("models", moved),
    "a weight": ("models", lambda cache: flip(entry(cache, "models") / "model.safetensors")),
    "a lost file": ("models", lambda cache: (entry(cache, "models") / "config.json").unlink()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(name: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, harm = DAMAGES[name]
    harm(cache)
    code, found = run(capsys, "verify", "--cache-dir", str(cache))
    assert code == 1 and len(found["damaged"]) == 1 and found["checked"] == len(KINDS)
    assert found["damaged"][0]["path"].startswith(str(cache / FOLDER / kind)) and found["damaged"][0]["problem"]


def test_clean_without_a_choice_removes_leftovers_only(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cache / FOLDER
    old = [
        root / "matchings" / f".{'a' * 64}.{'1' * 32}.tmp.safetensors",
        root / f".writable.{'2' * 32}",
        root / "tokens" / f"{'b' * 64}.lock",
    ]
    folder = root / "models" / f".{'c' * 64}.{'3' * 32}.tmp"
    folder.mkdir()
    (folder / "half").write_bytes(bytes(10))
    young = root / "matchings" / f".{'a' * 64}.{'4' * 32}.tmp.safetensors"
    for path in (*old, young):
        path.write_bytes(b"x")
    for path in (*old, folder):
        aged(path, days=1)
    before = entries(cache)
    assert run(capsys, "clean", "--cache-dir", str(cache), "--dry-run")[1]["bytes"] == 13
    assert all(path.exists() for path in (*old, folder))
    code, found = run(capsys, "clean", "--cache-dir", str(cache))
    assert code == 0 and found["removed"] == [] and found["bytes"] == 13
    assert not any(path.exists() for path in (*old, folder)) and young.exists()
    assert entries(cache) == before


def test_clean_by_age_kind_and_key(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("tokens", "matchings", "models"):
        aged(cache / FOLDER / kind, days=31)
    arguments = ("clean", "--cache-dir", str(cache), "--older-than", "30d")
    assert [one["kind"] for one in run(capsys, *arguments, "--kind", "tokens")[1]["removed"]] == ["tokens"]
    assert [one["kind"] for one in run(capsys, *arguments, "--key", "a result")[1]["removed"]] == ["matchings"]
    assert [one["kind"] for one in run(capsys, *arguments)[1]["removed"]] == ["models"]
    name = entry(cache, "token_losses").stem
    only = run(capsys, "clean", "--cache-dir", str(cache), "--key", name[:10])[1]["removed"]
    assert [one["kind"] for one in only] == ["token_losses"]
    assert list((cache / FOLDER / "models").iterdir()) == []


def test_keep_under_removes_the_longest_unused_first() -> None:
    found = [Entry("tokens", Path(f"{n}"), 10, float(n), None, None) for n in (3, 1, 2, 4)]

    def names(**options: Any) -> list[str]:
        return [str(one.path) for one in cache_cli.select_entries(found, now=5.0, **options)]

    assert names() == []
    assert names(keep_under=40) == [] and names(keep_under=39) == ["1"] and names(keep_under=15) == ["1", "2", "3"]
    assert names(older_than=2.5) == ["1", "2"] and names(older_than=2.5, keep_under=10) == ["1", "2", "3"]
    assert names(everything=True) == ["1", "2", "3", "4"]


def foreign_files(cache: Path, elsewhere: Path) -> None:
    """A user's own files and folders: beside the store, inside it, under its names, and behind links."""
    root, old = cache / FOLDER, entry(cache, "models")
    for folder in ("models/my-finetune", "wandb/offline-run-1", "tokens/my-corpus", "activations", ".git"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "file.bin").write_bytes(os.urandom(500))
    (cache / "activations" / f"{'d' * 64}.safetensors").write_bytes(b"mine")
    (cache / f".x.{'1' * 32}.tmp.safetensors").write_bytes(b"mine")
    (cache / f".writable.{'1' * 32}").write_bytes(b"mine")
    for place in ("models", "matchings", "my_notes"):
        (root / place).mkdir(exist_ok=True)
        (root / place / "notes.txt").write_text("mine")
        (root / place / f"{'e' * 64}.safetensors").write_bytes(b"not an entry")
        (root / place / ("f" * 64)).mkdir()
        (root / place / ("f" * 64) / "thesis.tex").write_text("mine")
        (root / place / f"mine.{'1' * 32}.tmp").write_text("mine")
    shutil.copytree(old, elsewhere / "models" / old.name)  # an entry of ours, out of the store
    shutil.copy(entry(cache, "matchings"), elsewhere / "copy.safetensors")
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "file").write_text("mine")
    (root / "residual_streams" / ("1" * 64)).symlink_to(elsewhere / "data")
    (root / "elsewhere").symlink_to(elsewhere / "models")
    (root / "tokens" / f"{'2' * 64}.safetensors").symlink_to(elsewhere / "copy.safetensors")
    (root / "tokens" / f".{'3' * 64}.{'4' * 32}.tmp").symlink_to(elsewhere / "data")
    (entry(cache, "scratch") / "link").symlink_to(elsewhere / "data")


@pytest.mark.parametrize("choice", [["--all"], ["--older-than", "1d"], ["--keep-under", "0"]])
def test_what_is_not_ours_is_neither_listed_nor_removed(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: list[str]
) -> None:
    ours = {one.path for one in entries(cache)}
    inside = {path for one in ours for path in ([one, *one.rglob("*")] if one.is_dir() else [one])}
    foreign_files(cache, tmp_path / "elsewhere")
    aged(cache, days=60)
    before, outside = snapshot(cache), snapshot(tmp_path / "elsewhere")
    listed = run(capsys, "list", "--cache-dir", str(cache))[1]["entries"]
    assert {Path(one["path"]) for one in listed} == ours
    code, found = run(capsys, "clean", "--cache-dir", str(cache), *choice)
    assert code == 0 and {Path(one["path"]) for one in found["removed"]} == ours and found["debris"] == []
    gone = {str(path.relative_to(cache)) for path in inside} | {
        name for name in before if name.startswith(str(entry_of_scratch(ours).relative_to(cache)))
    }
    assert snapshot(cache) == {name: content for name, content in before.items() if name not in gone}
    assert snapshot(tmp_path / "elsewhere") == outside


def entry_of_scratch(paths: set[Path]) -> Path:
    return next(path for path in paths if path.parent.name == "scratch")


@pytest.mark.parametrize("tag", [None, "Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n"])
def test_a_folder_without_our_tag_has_no_entries(
    cache: Path, capsys: pytest.CaptureFixture[str], tag: str | None
) -> None:
    (cache / FOLDER / "CACHEDIR.TAG").unlink()
    if tag is not None:
        (cache / FOLDER / "CACHEDIR.TAG").write_text(tag)
    before = snapshot(cache)
    assert run(capsys, "clean", "--cache-dir", str(cache), "--all") == (
        0,
        {"cache": str(cache / FOLDER), "dry_run": False, "removed": [], "debris": [], "kept": [], "bytes": 0},
    )
    assert snapshot(cache) == before


def test_what_a_job_uses_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A writer and a reader of residual streams, and readers of other folders, in other processes."""
    streams, kinds = entry(cache, "residual_streams"), ("residual_streams", "models", "matchings")
    chosen = [word for kind in kinds for word in ("--kind", kind)]
    for held in (
        f"lock = Store({str(cache)!r}).writing(Path({str(streams)!r})); lock.__enter__()",
        f"from sae_match.language_model import ResidualStreams; held = ResidualStreams(Path({str(streams)!r}))",
    ):
        code = f"from pathlib import Path; from sae_match.store import Store; {held}\n"
        model = f"store = Store({str(cache)!r}); store.find_folder('models', {{'gguf': {'ab' * 32!r}}})\n"
        other = subprocess.Popen(
            [sys.executable, "-c", f"{code}{model}print('ready', flush=True); input()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with FileLock(entry(cache, "matchings").with_suffix(".lock")):
            code_, found = run(capsys, "clean", "--cache-dir", str(cache), "--all", *chosen)
        assert code_ == 0 and found["removed"] == []
        assert {(kept["kind"], kept["reason"]) for kept in found["kept"]} == {(kind, "in use") for kind in kinds}
        assert ResidualStreams(streams).layer(1).shape == (2, 3, 16)
        other.kill()  # the lock ends with the process, however it ends
        other.communicate()
    removed = run(capsys, "clean", "--cache-dir", str(cache), "--all", *chosen)[1]["removed"]
    assert {gone["kind"] for gone in removed} == set(kinds) and not streams.exists()


def test_two_cleaners_and_a_writer_at_once(cache: Path) -> None:
    """Nothing fails, whoever is faster, and what is written meanwhile is whole or absent."""
    store = Store(cache)
    command = [sys.executable, "-m", "sae_match.cache_cli", "clean", "--all", "--cache-dir", str(cache)]
    for n in range(200):
        store.put("token_losses", {"n": n}, {"losses": np.full(10, float(n))})
    cleaners = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for n in range(200):
        store.put("token_losses", {"n": n}, {"losses": np.full(10, float(n))})
        found = store.get("token_losses", {"n": n})
        assert found is None or found["losses"].tolist() == [float(n)] * 10
    for cleaner in cleaners:
        _, errors = cleaner.communicate(timeout=120)
        assert (cleaner.returncode, errors) == (0, "")


def test_arguments(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_cli.main(["list", "--cache-dir", str(cache / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err
    for wrong in (
        ["clean", "--older-than", "30"],
        ["clean", "--keep-under", "much"],
        ["clean", "--kind", "all"],
        ["clean", "--key", ""],
        [],
    ):
        with pytest.raises(SystemExit) as left:
            cache_cli.main(wrong)
        assert left.value.code == 2
    capsys.readouterr()
    sizes = {"20GB": 20 * 10**9, "1.5GiB": 3 * 2**29, "500": 500, "2K": 2000}
    assert {text: cache_cli.parse_size(text) for text in sizes} == sizes
    assert cache_cli.parse_duration("2w") == 14 * DAY and cache_cli.parse_duration("90m") == 5400
    monkeypatch.setenv("SAE_MATCH_CACHE", f"{cache}/")
    assert cache_cli.main(["list"]) == 0 and str(cache) in capsys.readouterr().out
    monkeypatch.setenv("SAE_MATCH_CACHE", str(cache.parent))
    assert cache_cli.main(["list"]) == 0 and "0 entries, 0 B" in capsys.readouterr().out
