"""Fixtures that every test directory shares: offline by construction, small SAEs, one thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports a hub client or W&B: no test may reach a network or an account.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.hub_server import hub  # noqa: F401 - a fixture

hypothesis.settings.register_profile("sae_match", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("sae_match")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering takes most of a small job's time: figures are built, but their files hold one pixel.

    Tests marked `figures` get real ones.
    """
    if request.node.get_closest_marker("figures"):
        return

    def write_pixel(_: Figure, path: Path, format: str = "png", **__: object) -> None:
        if format == "svg":
            path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")
        else:
            Image.new("L", (1, 1)).save(path, format)

    monkeypatch.setattr(Figure, "savefig", write_pixel)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs inside a test sets up logging; Hydra's `disabled` even switches off loggers that exist."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.partition(".")[0] == "sae_match":
            logger.disabled = False


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source checkout."""
    return Path(__file__).parent
