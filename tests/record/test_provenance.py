"""Versions, commits, content keys."""

from __future__ import annotations

import subprocess
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_match.content import content_key
from sae_match.files import file_sha256
from sae_match.record.provenance import git_state, versions

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Color(StrEnum):
    red = "rot"


def reordered(value: object) -> object:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return tuple(map(reordered, value)) if isinstance(value, list) else value


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_order_and_kind_of_sequence_do_not_matter(value: object) -> None:
    assert content_key(value) == content_key(reordered(value))


def test_known_key_and_differences() -> None:
    # sha256 of b'{"a":[1,2.5,null]}'
    assert content_key({"a": [1, 2.5, None]}) == "d975df8927b51788b7b73ca3d967eca7ebd63be609bfebbe2a40722fcf88d4d7"
    assert len({content_key(value) for value in (1, 1.0, "1", True, [1], {"1": 1}, None)}) == 7


def test_enums_and_numpy_scalars_hash_as_their_values() -> None:
    assert content_key([Color.red, np.float64(0.1), np.int32(3)]) == content_key(["rot", 0.1, 3])


@pytest.mark.parametrize("value", [Path("a"), np.zeros(2), {1: 2}, object(), {1, 2}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        content_key({"x": value})


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError):
        content_key(float("nan"))


def test_file_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_absent_libraries_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_match.record.provenance.RECORDED_LIBRARIES", ("numpy", "no-such-library"))
    found = versions()
    assert found["numpy"] == np.__version__ and found["no-such-library"] is None


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_state_follows_the_checkout(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_state(package) == (None, None)

    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-q", "-m", "other")
    git_state.cache_clear()
    # Inside a repository, but not under its version control (a virtual environment, say).
    assert git_state(package) == (None, None)

    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    git_state.cache_clear()
    assert git_state(package) == (git(tmp_path, "rev-parse", "HEAD"), False)

    (package / "new.py").write_text("x = 1\n")
    git_state.cache_clear()
    assert git_state(package).dirty is True
    git_state.cache_clear()
