"""`sae-match-cache` over a cache with an entry of every kind: planted damage, locks, limits, and other processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.numpy import save_file

from sae_match.cache_tool import cli
from sae_match.cache_tool.cleaning import chosen
from sae_match.cache_tool.entries import KINDS, Entry, find_entries, spans
from sae_match.language_model.residual_streams import Manifest, ResidualStreams, layer_path, write_manifest
from sae_match.language_model.sums import file_sum, write_sums
from sae_match.record.cache import ResultCache
from sae_match.text.cache import write_entry
from sae_match.text.token_windows import TokenWindows

RESULT_KEY = "ab" * 32
STREAMS_KEY = "cd" * 16
DAY = 86400.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One entry per kind; the hub's cache holds one blob of a model."""
    root = tmp_path / "cache"
    for kind in ("activations", "splice_losses", "matchings", "judge_answers"):
        ResultCache(root / kind).put(RESULT_KEY, {"losses": np.arange(100.0)})
    streams = root / "residual_streams" / STREAMS_KEY
    manifest = Manifest(STREAMS_KEY, "model", "toy", "ef" * 32, 2, 3, 4)
    write_manifest(streams, manifest)
    for layer in (3, 4):
        data = np.arange(24, dtype="<f4").tobytes()
        layer_path(streams, layer).write_bytes(manifest.header(layer) + data)
        layer_path(streams, layer).with_suffix(".sha256").write_text(file_sum(layer_path(streams, layer)) + "\n")
    recipe = {"source": "embedded_wiki", "version": 1}
    info = {"recipe": recipe, "documents": 1, "windows": 2}
    windows = TokenWindows.build(torch.arange(8).view(2, 4), torch.zeros(2, dtype=torch.int64), ["one"], info)
    write_entry(root, recipe, windows)
    model = root / "models" / "toy-123"
    model.mkdir(parents=True)
    save_file({"weight": np.zeros((8, 8), dtype=np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_sums(model)
    (root / "wandb" / "staging").mkdir(parents=True)
    (root / "wandb" / "staging" / "file").write_bytes(b"x" * 50)
    (root / "offload").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tmp_path / "hub")))
    return root


def hub_cache(root: Path) -> Path:
    """The hub client's layout: a blob named by its sha256, linked from one commit."""
    repository, content = root / "models--org--toy", b"weights" * 100
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / ("c" * 40)).mkdir(parents=True)
    scratch = repository / "blobs" / "new"
    scratch.write_bytes(content)
    blob = scratch.rename(repository / "blobs" / file_sum(scratch))
    (repository / "snapshots" / ("c" * 40) / "model.safetensors").symlink_to(blob)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def aged(path: Path, days: float) -> None:
    """Set an entry's times back."""
    for file in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(file, (time.time() - days * DAY,) * 2)


def flip(path: Path) -> None:
    """Change one bit near the end, and nothing that the file system shows."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_list_says_what_there_is(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "list", "--cache-dir", str(cache))
    entries = {entry["name"].split("/")[0]: entry for entry in found["entries"]}
    assert code == 0 and set(entries) == set(KINDS) - {"offload"}
    assert entries["residual_streams"]["what"] == "toy, 2 x 3 tokens (efefefef), layers 3-4"
    assert entries["tokens"]["what"].startswith("embedded_wiki, 1 documents, 2 windows")
    assert entries["models"]["what"] == "LlamaForCausalLM, converted" and entries["wandb"]["bytes"] == 50
    assert entries["hub"]["what"] == "model org/toy" and entries["hub"]["bytes"] == 700
    files = (cache / "residual_streams" / STREAMS_KEY).iterdir()
    assert entries["residual_streams"]["bytes"] == sum(file.stat().st_size for file in files)

    assert cli.main(["list", "--cache-dir", str(cache), "--kind", "tokens", "--kind", "matchings"]) == 0
    text = capsys.readouterr().out
    assert "matchings/(1 entries)" in text and "toy" not in text and "2 entries," in text


def test_an_intact_cache_is_intact_and_looking_is_not_use(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aged(cache, days=40)
    before = {entry.name: entry.used for entry in find_entries(cache, KINDS)}
    assert run(capsys, "verify", "--cache-dir", str(cache)) == (0, {"cache": str(cache), "checked": 8, "damaged": []})
    assert {entry.name: entry.used for entry in find_entries(cache, KINDS)} == before
    assert not list(cache.rglob("*.lock"))


def tokens(cache: Path) -> Path:
    return next((cache / "tokens").iterdir())


def streams(cache: Path) -> Path:
    return cache / "residual_streams" / STREAMS_KEY


def swapped(cache: Path) -> None:
    for suffix in (".safetensors", ".sha256"):
        shutil.copy(streams(cache) / f"layer_03{suffix}", streams(cache) / f"layer_04{suffix}")


def moved(cache: Path) -> None:
    tokens(cache).rename(cache / "tokens" / ("0" * 64))


def truncated(cache: Path) -> None:
    path = cache / "matchings" / f"{RESULT_KEY}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def renamed(cache: Path) -> None:
    path = cache / "judge_answers" / f"{RESULT_KEY}.safetensors"
    path.rename(path.with_name(f"{'0' * 64}.safetensors"))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a loss": ("splice_losses", lambda cache: flip(cache / "splice_losses" / f"{RESULT_KEY}.safetensors")),
    "half a matching": ("matchings", truncated),
    "an answer to another question": ("judge_answers", renamed),
    "a residual": ("residual_streams", lambda cache: flip(streams(cache) / "layer_03.safetensors")),
    "another layer": ("residual_streams", swapped),
    "no manifest": ("residual_streams", lambda cache: (streams(cache) / "manifest.json").unlink()),
    "a token": ("tokens", lambda cache: flip(tokens(cache) / "windows.safetensors")),
    "another recipe": ("tokens", moved),
    "a weight": ("models", lambda cache: flip(cache / "models" / "toy-123" / "model.safetensors")),
    "no tokenizer": ("models", lambda cache: (cache / "models" / "toy-123" / "config.json").write_text("{")),
    "a download": ("hub", lambda cache: flip(next((cache.parent / "hub").glob("*/blobs/*")))),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(name: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sae_match import hub

    hub._sha256.cache_clear()  # what the process remembers of a file, by its size and time
    kind, harm = DAMAGES[name]
    harm(cache)
    code, found = run(capsys, "verify", "--cache-dir", str(cache))
    assert code == 1 and [entry["kind"] for entry in found["damaged"]] == [kind]
    assert found["damaged"][0]["problem"] and found["damaged"][0]["path"].startswith(str(cache.parent))
    hub._sha256.cache_clear()


def test_clean_without_a_choice_removes_debris_only(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = [cache / "matchings" / f".x.{'1' * 32}.tmp.safetensors", cache / "tokens" / f".writable.{'2' * 32}"]
    scratch = cache / "models" / f".toy-{'3' * 32}"
    scratch.mkdir()
    (scratch / "half").write_bytes(b"x" * 10)
    young = cache / f".y.{'4' * 32}.tmp.json"
    for path in (*old, young):
        path.write_bytes(b"x")
    for path in (*old, scratch):
        aged(path, days=1)
    before = {entry.name for entry in find_entries(cache, KINDS)}
    assert run(capsys, "clean", "--cache-dir", str(cache), "--dry-run")[1]["bytes"] == 12
    assert all(path.exists() for path in (*old, scratch))
    code, found = run(capsys, "clean", "--cache-dir", str(cache))
    assert code == 0 and found["removed"] == [] and found["bytes"] == 12
    assert not any(path.exists() for path in (*old, scratch)) and young.exists()
    assert {entry.name for entry in find_entries(cache, KINDS)} == before


def test_clean_by_age_and_kind(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("tokens", "matchings"):
        aged(cache / kind, days=31)
    aged(cache.parent / "hub", days=99)
    arguments = ("clean", "--cache-dir", str(cache), "--older-than", "30d")
    assert [entry["kind"] for entry in run(capsys, *arguments, "--kind", "tokens")[1]["removed"]] == ["tokens"]
    assert [entry["kind"] for entry in run(capsys, *arguments)[1]["removed"]] == ["matchings"]
    assert list(cache.rglob(".removed*")) == [] and list((cache / "tokens").iterdir()) == []


def test_clean_all_spares_the_hub_unless_it_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    removed = run(capsys, "clean", "--cache-dir", str(cache), "--all")[1]["removed"]
    assert {entry["kind"] for entry in removed} == set(KINDS) - {"hub", "offload"}
    assert [entry.kind for entry in find_entries(cache, KINDS)] == ["hub"]
    assert run(capsys, "clean", "--cache-dir", str(cache), "--all", "--kind", "hub")[0] == 0
    assert find_entries(cache, KINDS) == []


def test_keep_under_removes_the_longest_unused_first() -> None:
    entries = [Entry("tokens", Path(f"{n}"), size=10, used=float(n), what="") for n in (3, 1, 2, 4)]

    def names(**options: Any) -> list[str]:
        found = chosen(entries, **({"everything": False, "older_than": None, "keep_under": None, "now": 5.0} | options))
        return [str(entry.path) for entry in found]

    assert names() == []
    assert names(keep_under=40) == [] and names(keep_under=39) == ["1"] and names(keep_under=15) == ["1", "2", "3"]
    assert names(older_than=2.5) == ["1", "2"] and names(older_than=2.5, keep_under=10) == ["1", "2", "3"]
    assert names(everything=True) == ["1", "2", "3", "4"]


def test_what_a_job_uses_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A capture and a reader of residual streams in other processes, and a matching that is being solved."""
    entry = streams(cache)
    kinds = ("--kind", "residual_streams", "--kind", "matchings")
    for code in (
        f"from filelock import FileLock; lock = FileLock({str(entry / 'capture.lock')!r}); lock.acquire()",
        "from sae_match.language_model import ResidualStreams; from pathlib import Path; "
        f"held = ResidualStreams(Path({str(entry)!r}))",
    ):
        other = subprocess.Popen(
            [sys.executable, "-c", f"{code}; print('ready', flush=True); input()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with FileLock(cache / "matchings" / f"{RESULT_KEY}.lock"):
            code_, found = run(capsys, "clean", "--cache-dir", str(cache), "--all", *kinds)
        assert code_ == 0 and found["removed"] == []
        assert {(kept["kind"], kept["reason"]) for kept in found["kept"]} == {(kind, "in use") for kind in kinds[1::2]}
        assert ResidualStreams(entry).layer(3).shape == (2, 3, 4)
        other.kill()  # the hold ends with the process, however it ends
        other.communicate()
    removed = run(capsys, "clean", "--cache-dir", str(cache), "--all", *kinds)[1]["removed"]
    assert {gone["kind"] for gone in removed} == {"residual_streams", "matchings"} and not entry.exists()


def test_two_cleaners_and_a_writer_at_once(cache: Path) -> None:
    """Nothing fails, whoever is faster, and what is written meanwhile is whole or absent."""
    results = ResultCache(cache / "splice_losses")
    command = [sys.executable, "-m", "sae_match.cache_tool.cli", "clean", "--all", "--cache-dir", str(cache)]
    for n in range(200):
        results.put(f"{n:064x}", {"losses": np.full(10, float(n))})
    cleaners = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for n in range(200):
        results.put(f"{n:064x}", {"losses": np.full(10, float(n))})
        found = results.get(f"{n:064x}")
        assert found is None or found["losses"].tolist() == [float(n)] * 10
    for cleaner in cleaners:
        _, errors = cleaner.communicate(timeout=120)
        assert (cleaner.returncode, errors) == (0, "")


def test_arguments_that_make_no_sense(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["list", "--cache-dir", str(cache / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err
    for wrong in (["clean", "--older-than", "30"], ["clean", "--keep-under", "much"], ["clean", "--kind", "all"], []):
        with pytest.raises(SystemExit) as left:
            cli.main(wrong)
        assert left.value.code == 2
    capsys.readouterr()
    assert (
        cli.parse_size("20GB") == 20 * 10**9 and cli.parse_size("1.5GiB") == 3 * 2**29 and cli.parse_size("500") == 500
    )
    assert cli.parse_duration("2w") == 14 * DAY and cli.parse_duration("90m") == 5400
    assert spans([3, 4, 5, 8]) == "3-5, 8" and spans([]) == "none"
    monkeypatch.setenv("SAE_MATCH_CACHE", str(cache))
    assert cli.default_cache() == cache
    assert cli.main(["list"]) == 0 and str(cache) in capsys.readouterr().out
