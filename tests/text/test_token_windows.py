"""TokenWindows: its invariants, its key, its prefix and its concatenation."""

from __future__ import annotations

import pytest
import torch

from sae_match.errors import UserError
from sae_match.text import TokenWindows


def make(document: list[int], start: int = 0, tokens: int = 3) -> TokenWindows:
    ids = torch.arange(start, start + len(document) * tokens).reshape(len(document), tokens)
    titles = [f"{start}:{i}" for i in range(max(document) + 1)]
    return TokenWindows.build(ids, torch.tensor(document), titles, {"start": start})


def test_key_is_a_hash_of_the_content_alone() -> None:
    windows = make([0, 0, 1])
    assert TokenWindows.build(windows.ids.clone(), windows.document, ["a", "b"], {}).key == windows.key
    assert make([0, 1, 1]).key != windows.key
    changed = windows.ids.clone()
    changed[2, 1] += 1
    assert TokenWindows.build(changed, windows.document, windows.titles, {}).key != windows.key
    transposed = TokenWindows.build(windows.ids.reshape(1, 9), torch.tensor([0]), ["a"], {})
    assert transposed.key != windows.key


def test_concatenate_renumbers_documents() -> None:
    first, second = make([0, 0, 1]), make([0, 1, 1], start=50)
    joined = TokenWindows.concatenate([first, second])
    assert joined.document.tolist() == [0, 0, 1, 2, 3, 3]
    assert joined.titles == first.titles + second.titles
    assert torch.equal(joined.ids, torch.cat([first.ids, second.ids]))
    assert joined.subset(joined.leading(2, 0)).key == first.key


def test_concatenate_refuses_different_lengths_and_nothing() -> None:
    with pytest.raises(UserError, match="one length"):
        TokenWindows.concatenate([make([0]), make([0], tokens=4)])
    with pytest.raises(UserError, match="none at all"):
        TokenWindows.concatenate([])


@pytest.mark.parametrize("document", [[1, 1, 2], [0, 2, 2], [0, 1, 0], [0, 1]])
def test_wrong_numbering_is_refused(document: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0"):
        TokenWindows.build(torch.zeros(3, 2, dtype=torch.int64), torch.tensor(document), ["a", "b"], {})


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        TokenWindows.build(torch.zeros(1, 2, dtype=torch.int32), torch.tensor([0]), ["a"], {})


def test_leading_windows_of_leading_documents() -> None:
    ids = torch.arange(12).reshape(6, 2)
    windows = TokenWindows.build(ids, torch.tensor([0, 0, 0, 1, 2, 2]), ["a", "b", "c"], {})
    assert windows.leading(0, 0).all()
    assert windows.leading(2, 0).tolist() == [True, True, True, True, False, False]
    assert windows.leading(0, 1).tolist() == [True, False, False, True, True, False]
    assert windows.leading(2, 2).tolist() == [True, True, False, True, False, False]
    kept = windows.subset(torch.tensor([False, False, False, True, False, True]))
    assert (kept.ids.tolist(), kept.document.tolist(), kept.titles) == ([[6, 7], [10, 11]], [0, 1], ["b", "c"])
    assert windows.subset(windows.leading(0, 0)).key == windows.key
