"""The cache of small results: round trip, damage, keys."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae_match.record import ResultCache, content_key

KEY = content_key({"pair": [11, 12]})

arrays = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.uint8, np.dtype(">f4")]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=40, deadline=None)
@given(array=arrays, number=st.floats(allow_nan=False, allow_infinity=False), text=st.text())
def test_payloads_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, number: float, text: str
) -> None:
    cache = ResultCache(tmp_path_factory.mktemp("cache"))
    cache.put(KEY, {"array": array.T, "number": number, "text": text, "none": None, "flag": True, "count": 3})
    back = cache.get(KEY)
    assert back is not None
    np.testing.assert_array_equal(back.pop("array"), array.T)
    assert back == {"number": number, "text": text, "none": None, "flag": True, "count": 3}
    assert back["flag"] is True


def test_a_missing_entry_is_none(tmp_path: Path) -> None:
    assert ResultCache(tmp_path / "nowhere").get(KEY) is None


def test_an_entry_without_arrays(tmp_path: Path) -> None:
    ResultCache(tmp_path).put(KEY, {"score": 0.25})
    assert ResultCache(tmp_path).get(KEY) == {"score": 0.25}


def damage_data(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def damage_scalar(content: bytes) -> bytes:
    changed = content.replace(b"0.25", b"0.75")
    assert changed != content
    return changed


@pytest.mark.parametrize(
    "damage", [damage_data, damage_scalar, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"not a tensor file"]
)
def test_a_damaged_entry_is_reported_and_counts_as_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    cache = ResultCache(tmp_path)
    cache.put(KEY, {"score": 0.25, "sums": np.arange(4.0)})
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert path.name in caplog.text
    cache.put(KEY, {"score": 0.25})
    assert cache.get(KEY) == {"score": 0.25}


def test_an_entry_under_a_wrong_name_is_not_believed(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    other = content_key("another result")
    cache.put(KEY, {"score": 0.25})
    cache.path(KEY).rename(cache.path(other))
    assert cache.get(other) is None


@pytest.mark.parametrize("key", ["../etc/passwd", "layer_11.npz", "ABC", ""])
def test_a_key_must_be_a_content_hash(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="content hash"):
        ResultCache(tmp_path).get(key)


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (np.array(["a"]), TypeError), (np.array([object()]), TypeError), ([1, 2], TypeError)],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(
    tmp_path: Path, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ResultCache(tmp_path).put(KEY, {"x": value})
    assert list(tmp_path.iterdir()) == []
