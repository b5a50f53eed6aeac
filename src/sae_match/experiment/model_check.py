"""What can be refused from a model's config.json, before SAEs are downloaded and weights are loaded."""

from __future__ import annotations

import logging

from sae_match.errors import UserError
from sae_match.language_model.facts import ModelFacts
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)


def check_model_facts(store: Store, cfg: Study) -> int | None:
    """Refuse a layer span or a window that the model does not have.

    A gated or unreachable model is met here too: its config.json is the first file of it that a job needs.

    Returns:
        d_model. Of the embedded model it is what the configuration states: its files are made on first use, which
        takes longer than the check is worth.

    Raises:
        UserError: an unreadable, gated or unreachable model, or one that does not fit the rest of the configuration.
    """
    facts = cfg.model.facts(store)
    if facts is None:
        return cfg.model.d_model
    logger.info(
        "model %s: %s, %d blocks, d_model %d", cfg.model.name, facts.architecture, facts.n_layers, facts.d_model
    )
    check_span(cfg, facts)
    check_window(cfg, facts)
    check_dtype(cfg, facts)
    return facts.d_model


def check_span(cfg: Study, facts: ModelFacts) -> None:
    """Refuse layers that the model does not have, and SAEs of a model of another depth.

    Raises:
        UserError: the first of them.
    """
    if cfg.layers.last >= facts.n_layers:
        raise UserError(
            f"layers.last={cfg.layers.last}: {cfg.model.name} ({facts.architecture}) has blocks "
            f"0..{facts.n_layers - 1}. Set layers.first and layers.last within them, or choose the model that the SAEs "
            "were trained on"
        )
    if cfg.sae.n_layers is not None and cfg.sae.n_layers != facts.n_layers:
        raise UserError(
            f"sae.n_layers={cfg.sae.n_layers}: {cfg.model.name} ({facts.architecture}) has {facts.n_layers} blocks, so "
            f"it is not the model that the SAEs {cfg.sae.name} were trained on. Choose it with model=..., or "
            "evaluation=weights_only"
        )


def check_window(cfg: Study, facts: ModelFacts) -> None:
    """Refuse windows longer than the model's context.

    Raises:
        UserError: they are.
    """
    if facts.context is not None and cfg.dataset.window_tokens > facts.context:
        raise UserError(
            f"dataset.window_tokens={cfg.dataset.window_tokens}: the context of {cfg.model.name} is "
            f"{facts.context} tokens"
        )


def check_dtype(cfg: Study, facts: ModelFacts) -> None:
    """Refuse float16 for Gemma.

    Gemma 3 270M's residual stream at BOS has a norm of 98,606 after block 11; float16 ends at 65,504.

    Raises:
        UserError: the model is a Gemma in float16.
    """
    if facts.architecture.startswith("Gemma") and cfg.model.dtype == "float16":
        raise UserError("model.dtype=float16: Gemma's residual stream overflows it; use bfloat16 or float32")
