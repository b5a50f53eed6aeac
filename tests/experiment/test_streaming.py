"""What is in memory at once does not grow with the number of layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match import SparseAutoencoder, pairs
from sae_match.experiment import run
from sae_match.saes import SaeSource
from sae_match.study import Study

Configured = Callable[..., Study]


@pytest.mark.parametrize("level", ["weights_only", "full"])
def test_at_most_two_saes_are_in_memory(
    configured: Configured, perfect_saes: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: weakref.WeakSet[SparseAutoencoder] = weakref.WeakSet()
    most: list[int] = []

    class Counting(SaeSource):
        def load(self, layer: int) -> SparseAutoencoder:
            before = len(loaded)
            sae = super().load(layer)
            loaded.add(sae)
            most.append(before + 1)
            return sae

    monkeypatch.setattr(pairs, "SaeSource", Counting)
    run(configured(perfect_saes, f"evaluation={level}"))
    assert len(most) >= 8
    assert max(most) == 2
