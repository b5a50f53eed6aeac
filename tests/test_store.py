"""The store: round trips, damage, keys, one computer at a time, owners, and where it lies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sae_match.store as store_module
from sae_match import UserError
from sae_match.entries import find_corruption, list_entries, set_sums
from sae_match.files import file_sha256
from sae_match.store import FOLDER, Store, cache_directory

KEY = {"pair": [11, 12], "sae": "ab" * 32}

arrays = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.uint8, np.dtype(">f4")]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=40, deadline=None)
@given(array=arrays, number=st.floats(allow_nan=False, allow_infinity=False), text=st.text())
def test_payloads_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, number: float, text: str
) -> None:
    store = Store(tmp_path_factory.mktemp("cache"))
    values = {"number": number, "text": text, "none": None, "flag": True, "count": 3, "nested": {"a": [1, text]}}
    store.put("matchings", KEY, {"array": array.T, **values})
    back = store.get("matchings", KEY)
    assert back is not None
    np.testing.assert_array_equal(back.pop("array"), array.T)
    assert back == values and back["flag"] is True


def test_tensors_are_stored_and_computed_values_look_like_stored_ones(tmp_path: Path) -> None:
    def compute() -> dict[str, Any]:
        return {"x": torch.arange(6.0).view(2, 3).T, "mean": np.float64(2.5)}

    found = [Store(tmp_path).get_or("matchings", KEY, compute, lambda payload: payload) for _ in range(2)]
    for payload in found:
        assert isinstance(payload["x"], np.ndarray) and payload["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert payload["mean"] == 2.5


def calls(store: Store, kind: str = "matchings", value: float = 1.0, **options: Any) -> tuple[list[int], float]:
    """How often it is computed, and what comes of it."""
    made: list[int] = []

    def compute() -> dict[str, Any]:
        made.append(1)
        return {"value": value}

    return made, store.get_or(kind, KEY, compute, lambda payload: float(payload["value"]), **options)


def test_what_is_known_is_not_computed(tmp_path: Path) -> None:
    assert calls(Store(tmp_path)) == ([1], 1.0)
    assert calls(Store(tmp_path), value=2.0) == ([], 1.0)
    assert calls(Store(tmp_path), "token_losses", 3.0) == ([1], 3.0), "the kind is part of the key"
    assert not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.tmp*"))


def test_without_reading_results_are_computed_once_more_and_inputs_are_shared(tmp_path: Path) -> None:
    for kind in ("matchings", "token_losses", "activations", "somebodys_own", "tokens", "judge_answers"):
        calls(Store(tmp_path), kind)
        fresh = Store(tmp_path, read=False)
        made = calls(fresh, kind, 2.0)
        assert made == (([], 1.0) if kind in ("tokens", "judge_answers") else ([1], 2.0)), kind
        assert calls(fresh, kind, 3.0)[0] == [], "what it has computed itself it reads"
        assert calls(Store(tmp_path), kind, 4.0) == ([], made[1]), "the new result is the stored one"


def test_what_is_not_to_be_kept_is_not(tmp_path: Path) -> None:
    for _ in range(2):
        assert calls(Store(tmp_path), keep=lambda payload: False) == ([1], 1.0)


def damage_data(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def damage_scalar(content: bytes) -> bytes:
    changed = content.replace(b"0.25", b"0.75")
    assert changed != content
    return changed


@pytest.mark.parametrize(
    "damage",
    [damage_data, damage_scalar, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"not a tensor file",
     lambda c: c.replace(b"[11,12]", b"[11,13]"), lambda c: c.replace(b"sae_match.store.v1", b"sae_match.store.v0")],
)  # fmt: skip
def test_a_damaged_entry_is_reported_and_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    store = Store(tmp_path)
    store.put("matchings", KEY, {"value": 0.25, "sums": np.arange(4.0)})
    path = store.path("matchings", KEY)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with caplog.at_level(logging.WARNING):
        assert calls(store, value=0.5) == ([1], 0.5)
    assert path.name in caplog.text and "damaged" in caplog.text
    assert calls(store) == ([], 0.5)


@pytest.mark.parametrize("kind", ["matchings", "token_losses"])
def test_an_entry_under_another_name_is_not_believed(tmp_path: Path, kind: str) -> None:
    store, other = Store(tmp_path), {"pair": "another"}
    store.put("matchings", KEY, {"value": 0.25})
    target = store.path(kind, other if kind == "matchings" else KEY)
    target.parent.mkdir(exist_ok=True)
    store.path("matchings", KEY).rename(target)
    assert store.get(kind, other if kind == "matchings" else KEY) is None


def test_an_entry_that_its_reader_refuses_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.put("matchings", KEY, {"other": 1})
    with caplog.at_level(logging.WARNING):
        assert calls(store) == ([1], 1.0)
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (np.array(["a"]), TypeError), (np.array([object()]), TypeError), ({1, 2}, TypeError),
     (torch.zeros(2, dtype=torch.complex64), TypeError)],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(
    tmp_path: Path, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Store(tmp_path).put("matchings", KEY, {"x": value})
    assert list(tmp_path.rglob("*")) == []


def test_of_two_that_want_one_entry_one_computes(tmp_path: Path) -> None:
    made: list[int] = []

    def compute() -> dict[str, Any]:
        made.append(1)
        time.sleep(0.3)
        return {"value": 1.0}

    found: list[float] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(Store(tmp_path).get_or("matchings", KEY, compute, lambda p: p["value"]))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (made, found) == ([1], [1.0] * 3)


def test_a_process_that_dies_lets_go_of_its_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from sae_match.store import Store\n"
        f"Store({str(tmp_path)!r}).get_or('matchings', {KEY!r}, lambda: os._exit(9), lambda payload: payload)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(list(tmp_path.rglob("*.lock"))) == 1
    started = time.monotonic()
    assert calls(Store(tmp_path)) == ([1], 1.0)
    assert time.monotonic() - started < 5


def test_an_owner_forgets_its_own_only(tmp_path: Path) -> None:
    for owner, number in (("one", 1), ("one", 2), ("two", 3), ("", 4)):
        Store(tmp_path, owner=owner).put("activations", {"number": number}, {"x": number})
    Store(tmp_path, owner="one").put("matchings", KEY, {"x": 5})
    Store(tmp_path).forget("activations")
    Store(tmp_path, owner="one").forget("activations")
    kept = {entry.key.get("number") for entry in list_entries(Store(tmp_path).root)[0]}
    assert kept == {3, 4, None}


# -- folders --------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    (folder / "weights").write_text("weights")
    (folder / "more").mkdir()
    (folder / "more" / "config").write_text("{}")


def test_a_folder_is_filled_once_and_described(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.folder("models", KEY, fill, {"model": "toy"})
    assert (first / "more" / "config").read_text() == "{}"
    assert Store(tmp_path).folder("models", KEY, lambda _: pytest.fail("filled twice")) == first
    (entry,), _ = list_entries(store.root)
    assert (entry.kind, entry.path, entry.about, entry.key) == ("models", first, {"model": "toy"}, KEY)
    assert find_corruption(first) is None
    (first / "more" / "config").write_text("[]")
    assert find_corruption(first) == "more/config: checksum mismatch"


def test_a_folder_that_lost_a_file_or_its_mark_is_filled_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    for name in ("weights", "entry.json"):
        folder = store.folder("models", KEY, fill)
        (folder / name).unlink()
        assert (store.folder("models", KEY, fill) / name).is_file()
        assert "damaged" in caplog.text
        caplog.clear()


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        Store(tmp_path).folder("models", KEY, broken)
    assert list((tmp_path / FOLDER / "models").iterdir()) == []
    assert Store(tmp_path).find_folder("models", KEY) is None


def test_files_of_a_growing_folder_are_added_and_struck_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.growing_folder("residual_streams", KEY, {"model": "toy"})
    for name in ("a", "b"):
        (folder / name).write_text(name)
        with store.writing(folder):
            set_sums(folder, {name: file_sha256(folder / name)})
    assert store.growing_folder("residual_streams", KEY) == folder and find_corruption(folder) is None
    (folder / "a").unlink()
    assert find_corruption(folder) == "a is missing"
    set_sums(folder, {"a": None})
    assert find_corruption(folder) is None


# -- where it lies --------------------------------------------------------------------------------------------


def test_the_root_is_tagged(tmp_path: Path) -> None:
    Store(tmp_path).put("matchings", KEY, {"x": 1})
    tag = (tmp_path / FOLDER / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n") and "sae_match.store.v1" in tag


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no CACHEDIR\.TAG of sae_match"):
        Store(tmp_path).put("matchings", KEY, {"x": 1})
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["mine.txt"]


def test_a_folder_that_another_process_makes_at_the_same_time_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def is_store(root: Path) -> bool:
        looks.append(root)
        if len(looks) == 1:  # the other process comes between this look and the listing
            monkeypatch.setattr(store_module, "is_store", is_store_of_entries)
            Store(tmp_path).put("tokens", KEY, {"x": 2})
            monkeypatch.setattr(store_module, "is_store", is_store)
            return False
        return is_store_of_entries(root)

    is_store_of_entries = store_module.is_store
    monkeypatch.setattr(store_module, "is_store", is_store)
    Store(tmp_path).put("matchings", KEY, {"x": 1})
    assert len(looks) == 2
    assert Store(tmp_path).get("matchings", KEY) == {"x": 1} and Store(tmp_path).get("tokens", KEY) == {"x": 2}


def test_what_users_write_for_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAE_MATCH_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    default = tmp_path / "home" / ".cache" / "sae_match"
    for text in ("", "  ", str(default), "~/.cache/sae_match/"):
        assert cache_directory(text) == default, text
    assert cache_directory("~/x") == tmp_path / "home" / "x"
    assert cache_directory("relative/cache/") == cache_directory(Path("relative/cache")) == tmp_path / "relative/cache"
    with pytest.raises(UserError, match=r"paths\.cache_dir=~nobody-of-this-name"):
        cache_directory("~nobody-of-this-name/x")
    monkeypatch.setenv("SAE_MATCH_CACHE", "~/elsewhere")
    assert cache_directory() == tmp_path / "home" / "elsewhere"
    monkeypatch.setenv("SAE_MATCH_CACHE", "")
    assert cache_directory() == default


def test_a_default_that_cannot_be_written_gives_way_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SAE_MATCH_CACHE", raising=False)
    monkeypatch.setattr(store_module.tempfile, "gettempdir", lambda: str(tmp_path))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)) and access(path, mode))
    with caplog.at_level(logging.WARNING):
        found = cache_directory()
    assert found == tmp_path / f"sae_match-{os.getuid()}" and found.stat().st_mode & 0o777 == 0o700
    assert "cannot write to" in caplog.text and "SAE_MATCH_CACHE=DIR" in caplog.text
    assert cache_directory(home / "mine") == home / "mine", "a directory that was chosen is not replaced"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "sae_match-12345").mkdir()
    with pytest.raises(UserError, match="somebody else's"):
        cache_directory()
