"""What a full evaluation reads: the language models, the text in windows, and the residual streams of every side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.stream_map import MapKind, fit_stream_map
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.language_model.sources import ModelSource
from sae_match.matching.feature_pair import residuals
from sae_match.metrics.bootstrap import MIN_DOCUMENTS
from sae_match.pairs import Pair, Site, captured_layers, span
from sae_match.plan.checks import check_same_stream
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows, load_fit_windows, load_windows

logger = logging.getLogger(__name__)


class JobModels:
    """The models of a job's sides; the one that was used last is in memory.

    Args:
        sides: by `Site.source`.
    """

    def __init__(self, sides: Sequence[Study], device: str, store: Store) -> None:
        self.sides, self.device, self.store = sides, device, store
        self._held: tuple[ModelSource, LanguageModel] | None = None

    def of(self, source: int) -> LanguageModel:
        """The model of a side; of second seeds the job's own.

        Raises:
            UserError: as from `load_language_model`.
        """
        wanted = self.sides[min(source, len(self.sides) - 1)].model
        if self._held is None or self._held[0] != wanted:
            self._held = None  # before the next one is loaded
            self._held = wanted, load_language_model(wanted, self.device, self.store)
        return self._held[1]


@dataclass(frozen=True)
class Inputs:
    """Models, text and residual streams.

    Attributes:
        tokenizer: that of the first side, whose tokens all sides read.
        windows: all evaluated windows; residual streams and activation metrics cover these.
        streams: resid_post of the captured layers on them, by side.
        fit_windows, fit_streams: the same of text that is not evaluated, on which controls are fitted; None where
            nothing is fitted.
        map: how the first side's residual stream is carried to the second's before weights are compared.
    """

    models: JobModels
    tokenizer: Any
    windows: TokenWindows
    streams: tuple[ResidualStreams, ...]
    fit_windows: TokenWindows | None = None
    fit_streams: tuple[ResidualStreams, ...] | None = None
    map: MapKind = MapKind.none

    def stream(self, site: Site) -> ResidualStreams:
        """Residual streams of the model that a dictionary reads."""
        return self.streams[min(site.source, len(self.streams) - 1)]

    def residual(self, site: Site) -> Float[Tensor, "windows tokens d"]:
        """resid_post that a dictionary reads."""
        return self.stream(site).layer(site.at)

    def fit(self, pair: Pair) -> tuple[ResidualStreams | None, ResidualStreams | None]:
        """What the similarities and splices of a pair are fitted on: A's streams, and B's where they are others."""
        if self.fit_streams is None:
            return None, None
        a, b = (self.fit_streams[min(site.source, len(self.fit_streams) - 1)] for site in (pair.a, pair.b))
        return a, None if b.key == a.key else b

    def reads(self, pair: Pair) -> dict[str, object]:
        """Which residual streams of which layers a pass over a pair reads, as plain data."""
        a, b = self.stream(pair.a).key, self.stream(pair.b).key
        return {"streams": a if a == b else [a, b], "layers": pair.blocks}

    def mapped(self, pair: Pair, a: SparseAutoencoder, batch_windows: int, sinks: int) -> SparseAutoencoder | None:
        """A carried into B's residual stream; None where both read one."""
        fit_a, fit_b = self.fit(pair)
        if self.map is MapKind.none or fit_a is None:
            return None
        both = residuals(fit_a, fit_b, pair.blocks)
        return fit_stream_map(*both, self.map, batch_windows, sinks, a.device).carry(a)

    def facts(self) -> dict[str, Any]:
        """text.json: which documents and windows were evaluated, and under `fit` those that controls were fitted on."""
        facts = {"key": self.windows.key, **self.windows.info}
        fit = self.fit_windows
        if fit is not None:
            counts = {"documents": fit.n_documents, "windows": fit.n_windows, "tokens": fit.ids.numel()}
            facts["fit"] = {**fit.info, "key": fit.key, **counts, "titles": fit.titles}
        return facts


def prepare(
    store: Store, study: Study, sides: Sequence[Study], d_saes: Sequence[int], device: str, progress: bool
) -> Inputs:
    """Load models and text, and capture the residual streams, or find them in the store.

    Args:
        sides: by `Site.source`.
        d_saes: width of the residual stream that the SAEs of each side read.

    Raises:
        UserError: a model or text that cannot be read, or does not fit SAEs and configuration.
    """
    models, batch = JobModels(sides, device, store), study.evaluation.batch_windows
    windows = fit_windows = tokenizer = None
    streams: list[ResidualStreams] = []
    fit_streams: list[ResidualStreams] = []
    for source, (side, d_sae) in enumerate(zip(sides, d_saes, strict=True)):
        model = models.of(source)
        check_same_stream(side.sae.name, d_sae, model.name, model.d_model)
        context = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and study.dataset.window_tokens > context:
            raise UserError(
                f"dataset.window_tokens={study.dataset.window_tokens}: the context of {model.name} is {context} tokens"
            )
        own = load_windows(study.dataset, model.tokenizer, store, study.model.bos)
        if windows is None:
            windows, tokenizer = own, model.tokenizer
            if study.fitted:
                fit_windows = load_fit_windows(
                    study.dataset, windows, study.evaluation.fit_documents, tokenizer, store, study.model.bos
                )
        elif own.key != windows.key:
            raise UserError(
                f"pairs={study.pairs.name}: the tokenizers of {sides[0].model.name} and {model.name} cut this text "
                "into different tokens, and activations are compared token by token; choose models of one tokenizer"
            )
        streams.append(capture(model, windows, captured_layers(side), store, batch, progress))
        if fit_windows is not None:
            fit_streams.append(capture(model, fit_windows, span(side), store, batch, progress))
    assert windows is not None  # there is at least one side
    fitted = tuple(fit_streams) if fit_windows is not None else None
    return Inputs(models, tokenizer, windows, tuple(streams), fit_windows, fitted, study.pairs.stream_map)


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
