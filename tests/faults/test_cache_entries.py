"""Every kind of cache entry corrupted, cut off, and exchanged with another valid one: noticed, and built again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match.experiment import run
from sae_match.store import Store
from sae_match.study import Study
from tests.faults.kill_loop import scientific_results

Configured = Callable[..., Study]

KINDS = {
    "tokens": "tokens/*.safetensors",
    "residual streams": "residual_streams/*/layer_*.safetensors",
    "token losses": "token_losses/*.safetensors",
    "matchings": "matchings/*.safetensors",
}


def entries(cache: Path, kind: str) -> list[Path]:
    found = sorted(cache.glob(KINDS[kind]))
    assert len(found) >= 2, (kind, found)
    return found


def replace(path: Path, content: bytes) -> None:
    """As another process would: jobs that have the old file mapped keep it."""
    other = path.with_name("replacement")
    other.write_bytes(content)
    os.replace(other, path)


def corrupt(cache: Path, kind: str) -> None:
    """One bit in the middle of each file's data."""
    for path in entries(cache, kind):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        replace(path, bytes(content))


def truncate(cache: Path, kind: str) -> None:
    for path in entries(cache, kind):
        replace(path, path.read_bytes()[: path.stat().st_size // 2])


def swap(cache: Path, kind: str) -> None:
    """Each file takes the place of the next one; both are valid."""
    found = entries(cache, kind)
    contents = [path.read_bytes() for path in found]
    for path, content in zip(found, contents[1:] + contents[:1], strict=True):
        replace(path, content)


def test_damaged_entries_are_noticed_and_built_again(
    configured: Configured, random_saes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All kinds at once; each must be reported, and the results must be those of an undisturbed job."""
    cache, options = Store(tmp_path / "cache").root, ("layers.last=2", "evaluation.bootstrap_samples=10")
    first = run(configured(random_saes, *options))
    # A second recipe, so that there are two entries of tokens to exchange.
    run(configured(random_saes, *options, "dataset.windows_per_document=1", output="other"))
    expected = scientific_results(first.directory)
    for damage in (corrupt, truncate, swap):
        for kind in KINDS:
            damage(cache, kind)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = run(configured(random_saes, *options, output=damage.__name__))
        assert scientific_results(again.directory) == expected
        said = [record.getMessage() for record in caplog.records]
        for part in ("tokens", "residual_streams", "token_losses", "matchings"):
            assert any(part in line and "damaged" in line for line in said), (part, said)
