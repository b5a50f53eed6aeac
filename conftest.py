"""Fixtures that every test directory shares: offline by construction, small SAEs, one thread."""

from __future__ import annotations

import gc
import logging
import os
import sys
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

from tests import shapes

REPOSITORY = Path(__file__).parent
# Before anything imports the package: its annotated shapes are checked at every call.
shapes.install(REPOSITORY / "src")

from tests.hub_server import hub  # noqa: E402, F401 - a fixture, from what imports the package

hypothesis.settings.register_profile("sae_match", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("sae_match")


gc.disable()  # until the tests are collected, a third of whose time it would take


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look at it again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process is left alone with one of them at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or "golden" in item.path.parts}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take half of a small job's time, so jobs draw none, and the files of other figures hold one pixel.

    Jobs of tests marked `drawn` draw theirs, with files of one pixel; tests marked `figures` get real ones.
    """
    if request.node.get_closest_marker("figures"):
        return
    monkeypatch.setattr(Figure, "savefig", write_pixel)
    # Not imported here for that: most tests run no job.
    job = sys.modules.get("sae_match.experiment.job")
    if job is not None and not request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(job, "draw_figures", lambda *_, **__: [])


def write_pixel(_: Figure, path: Path, format: str = "png", **__: object) -> None:
    """In the place of `Figure.savefig`."""
    if format == "svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")
    else:
        Image.new("L", (1, 1)).save(path, format)


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
    return REPOSITORY
