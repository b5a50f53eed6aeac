"""What a full evaluation reads: the language model, the text in windows, and the span's residual streams."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sae_match.errors import UserError
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.metrics.bootstrap import MIN_DOCUMENTS
from sae_match.pairs import captured_layers, span
from sae_match.plan.checks import check_same_stream
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows, load_fit_windows, load_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Model, text and residual streams.

    Attributes:
        windows: all evaluated windows; residual streams and activation metrics cover these.
        streams: resid_post of the captured layers on them.
        fit_windows, fit_streams: the same of text that is not evaluated, on which controls are fitted; None where
            nothing is fitted.
    """

    model: LanguageModel
    windows: TokenWindows
    streams: ResidualStreams
    fit_windows: TokenWindows | None = None
    fit_streams: ResidualStreams | None = None

    def facts(self) -> dict[str, Any]:
        """text.json: which documents and windows were evaluated, and under `fit` those that controls were fitted on."""
        facts = {"key": self.windows.key, **self.windows.info}
        fit = self.fit_windows
        if fit is not None:
            counts = {"documents": fit.n_documents, "windows": fit.n_windows, "tokens": fit.ids.numel()}
            facts["fit"] = {**fit.info, "key": fit.key, **counts, "titles": fit.titles}
        return facts


def prepare(store: Store, study: Study, d_sae: int, device: str, progress: bool) -> Inputs:
    """Load model and text, and capture the residual streams, or find them in the store.

    Args:
        d_sae: width of the residual stream that the SAEs read.

    Raises:
        UserError: a model or text that cannot be read, or does not fit SAEs and configuration.
    """
    model = load_language_model(study.model, device, store)
    check_same_stream(study.sae.name, d_sae, model.name, model.d_model)
    context = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and study.dataset.window_tokens > context:
        raise UserError(
            f"dataset.window_tokens={study.dataset.window_tokens}: the context of {model.name} is {context} tokens"
        )
    windows = load_windows(study.dataset, model.tokenizer, store, study.model.bos)
    batch = study.evaluation.batch_windows
    streams = capture(model, windows, captured_layers(study), store, batch, progress)
    if not study.fitted:
        return Inputs(model, windows, streams)
    other = load_fit_windows(
        study.dataset, windows, study.evaluation.fit_documents, model.tokenizer, store, study.model.bos
    )
    return Inputs(model, windows, streams, other, capture(model, other, span(study), store, batch, progress))


def log_text(windows: TokenWindows, spliced: TokenWindows) -> None:
    """Log how much is evaluated, and that there are no intervals where documents are too few."""
    logger.info(
        "%d windows of %d documents; token losses on %d of them",
        windows.n_windows, windows.n_documents, spliced.n_windows,
    )  # fmt: skip
    for what, count in (("metrics", windows.n_documents), ("delta losses", spliced.n_documents)):
        if count < MIN_DOCUMENTS:
            logger.warning(
                "%s have no intervals: %d documents, and intervals over documents need at least %d",
                what, count, MIN_DOCUMENTS,
            )  # fmt: skip
