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
from sae_match.evaluation.top_activations import TopActivations, top_activations
from sae_match.experiment.text import JobText, read_text
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.language_model.loading import load_tokenizer
from sae_match.language_model.sources import ModelSource
from sae_match.matching.feature_pair import Streams
from sae_match.pairs import Pair, Site, captured_layers, span
from sae_match.plan.checks import check_same_stream
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows
from sae_match.text.tokenization import decode_tokens

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
        tokenizer: that of the first side.
        text: the evaluated text.
        streams: resid_post of the captured layers on its counted windows, by side.
        fit_text, fit_streams: the same of text that is not evaluated, on which controls are fitted; None where nothing
            is fitted.
        batch_windows, sink_positions: how many counted windows are read at a time, and positions at the start of each
            that are left out.
        map: how the first side's residual stream is carried to the second's before weights are compared.
    """

    models: JobModels
    tokenizer: Any
    text: JobText
    streams: tuple[Streams, ...]
    fit_text: JobText | None
    fit_streams: tuple[Streams, ...] | None
    batch_windows: int
    sink_positions: int
    map: MapKind = MapKind.none

    @property
    def windows(self) -> TokenWindows:
        """What activation metrics cover."""
        return self.text.counted

    def stream(self, site: Site) -> Streams:
        """Residual streams of the model that a dictionary reads."""
        return self.streams[min(site.source, len(self.streams) - 1)]

    def residual(self, site: Site) -> Float[Tensor, "windows tokens d"]:
        """resid_post that a dictionary reads."""
        return self.stream(site).layer(site.at)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens of the first side."""
        return decode_tokens(self.tokenizer, tokens)

    def top_activations(self, sae: SparseAutoencoder, site: Site, k: int) -> TopActivations:
        """Where each feature of an SAE is most active in the residual stream of a dictionary: k windows of each."""
        return top_activations(sae, self.residual(site), k, self.batch_windows, self.sink_positions)

    def fit(self, pair: Pair) -> tuple[Streams | None, Streams | None]:
        """What the similarities and splices of a pair are fitted on: A's streams, and B's where they are others."""
        if self.fit_streams is None:
            return None, None
        a, b = (self.fit_streams[min(site.source, len(self.fit_streams) - 1)] for site in (pair.a, pair.b))
        return a, None if b.key == a.key else b

    def reads(self, pair: Pair) -> dict[str, object]:
        """Which residual streams of which layers a pass over a pair reads, as plain data."""
        a, b = self.stream(pair.a).key, self.stream(pair.b).key
        return {"streams": a if a == b else [a, b], "layers": pair.blocks}

    def mapped(self, pair: Pair, a: SparseAutoencoder) -> SparseAutoencoder | None:
        """A carried into B's residual stream; None where both read one."""
        fit_a, fit_b = self.fit(pair)
        if self.map is MapKind.none or fit_a is None:
            return None
        x_a, x_b = fit_a.layer(pair.blocks[0]), (fit_a if fit_b is None else fit_b).layer(pair.blocks[1])
        return fit_stream_map(x_a, x_b, self.map, self.batch_windows, self.sink_positions, a.device).carry(a)

    def facts(self) -> dict[str, Any]:
        """text.json: which documents and windows were evaluated, and under `fit` those that controls were fitted on."""
        facts = {"key": self.windows.key, **self.windows.info}
        if self.fit_text is not None:
            fit = self.fit_text.counted
            counts = {"documents": fit.n_documents, "windows": fit.n_windows, "tokens": fit.ids.numel()}
            facts["fit"] = {**fit.info, "key": fit.key, **counts, "titles": fit.titles}
        return facts

    def notes(self) -> list[str]:
        """What a reader of the record must know of the text."""
        if self.text.rows is None:
            return []
        shares = (
            f"{share:.1%} of the tokens of {side.model.name}"
            for share, side in zip(self.text.shares, self.models.sides, strict=True)
        )
        return [
            f"the models read different tokens: compared at {self.windows.n_windows} positions where all have read the "
            f"same text, {' and '.join(shares)}. Token losses are left out: a splice needs the first model's residual "
            "stream at every token of the second"
        ]


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
    tokenizer = models.of(0).tokenizer
    tokenizers = [tokenizer if side.model == study.model else load_tokenizer(side.model, store) for side in sides]
    text = fit_text = None
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
        if text is None:
            text, fit_text = read_text(study, sides, tokenizers, store)
        streams.append(capture(model, text.side(source), captured_layers(side), store, batch, progress))
        if fit_text is not None:
            fit_streams.append(capture(model, fit_text.side(source), span(side), store, batch, progress))
    assert text is not None  # there is at least one side
    sinks = max(side.model.sink_positions for side in sides)
    return Inputs(
        models, tokenizer, text, text.select(streams), fit_text,
        None if fit_text is None else fit_text.select(fit_streams), *text.how(batch, sinks), study.pairs.stream_map,
    )  # fmt: skip


def log_text(text: JobText, spliced: TokenWindows) -> None:
    """Log how much is evaluated."""
    windows, losses = text.counted, text.rows is None
    told = f"; token losses on {spliced.n_windows} of them" if losses else ", one per position that is compared"
    logger.info("%d windows of %d documents%s", windows.n_windows, windows.n_documents, told)
