"""The tiny model, text and SAEs of the experiment tests."""

from __future__ import annotations

from tests.experiment.conftest import (  # noqa: F401 - fixtures
    configured,
    model_directory,
    perfect_saes,
    random_saes,
    text_directory,
)
