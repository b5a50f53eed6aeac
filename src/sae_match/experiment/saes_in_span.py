"""Reading the SAEs of a span: everything is checked before long work, then at most a few are held at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sae_match.errors import UserError
from sae_match.experiment.activation_cache import ActivationCache
from sae_match.language_model import ResidualStreams
from sae_match.matching.solution import Solver
from sae_match.plan.checks import (
    check_header,
    check_one_stream,
    check_pair,
    check_same_stream,
    far_pairs,
    needs_no_scale,
)
from sae_match.saes import SaeHeader, SaeSource, SparseAutoencoder, measure_scale, with_scale
from sae_match.saes.folding import check_measurable
from sae_match.saes.site import refuse_encoding
from sae_match.study import Study


@dataclass(frozen=True)
class SaeFacts:
    """What the preflight keeps of an SAE."""

    d_model: int
    width: int
    content_hash: str


class SpanSaes:
    """The SAEs of layers first..last, loaded on demand and kept two at a time.

    Args:
        study: the job's configuration.
        device: where loaded SAEs are put.

    Attributes:
        unfolded: nothing is folded and no scale is asked for, so an SAE without thresholds needs none. It gets scale 1:
            its weight distances are then in units of the stored weights.
    """

    def __init__(self, study: Study, device: str) -> None:
        self.study, self.device = study, device
        self.layers = list(range(study.layers.first, study.layers.last + 1))
        self.source = SaeSource(study.sae, tuple(self.layers))
        self.full = study.evaluation.full
        self.measured = study.folding.measured
        self.unfolded = needs_no_scale(study)
        self.facts: dict[int, SaeFacts] = {}
        self._measured_on: tuple[ResidualStreams, ActivationCache] | None = None
        self._scales: dict[str, Tensor] = {}
        self._held: OrderedDict[int, SparseAutoencoder] = OrderedDict()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Adjacent pairs (t, t+1) of the span."""
        return list(zip(self.layers[:-1], self.layers[1:], strict=True))

    def preflight(self, solver: Solver, progress: bool, d_model: int | None = None) -> None:
        """Look at every file's header, then read every SAE once, so that a bad one is found before hours of work.

        Args:
            d_model: width of the model's residual stream, for a full evaluation.

        Raises:
            UserError: missing or invalid files, SAEs over different residual streams or another model than
                configured, SAEs that the configured evaluation or folding scale cannot use, or a problem that does
                not fit into memory.
        """
        headers: dict[int, SaeHeader] = {}
        for layer in self.layers:
            # One by one: what is wrong with the first is said before the others are downloaded.
            headers[layer] = self.source.header(layer)
            self._check_header(layer, headers, d_model)
        for a, b in [*self.pairs, *far_pairs(self.study)]:
            check_pair(self.study, solver, headers[a].width, headers[b].width, headers[a].d_model)
        for layer in tqdm(self.layers, desc="checking SAEs", disable=not progress):
            sae = self._usable(self.source.load(layer))
            self.facts[layer] = SaeFacts(sae.d_model, sae.width, sae.content_hash)
            self._check_ceiling(layer, self.source.load_ceiling(layer), solver)

    def check_model(self, d_model: int, name: str) -> None:
        """Refuse a model whose residual stream is not the one the SAEs read.

        Raises:
            UserError: different d_model.
        """
        check_same_stream(self.study.sae.name, self.facts[self.layers[0]].d_model, name, d_model)

    def measure_on(self, streams: ResidualStreams, passes: ActivationCache) -> None:
        """Measure folding scales that need activations on these residual streams, each when its SAE is first loaded;
        what was measured is kept among `passes`."""
        self._measured_on = streams, passes

    def _check_header(self, layer: int, headers: dict[int, SaeHeader], d_model: int | None) -> None:
        first, header = headers[self.layers[0]], headers[layer]
        check_one_stream({at: known.d_model for at, known in headers.items()})
        check_header(self.study, layer, header, first)
        if d_model is not None:
            check_same_stream(self.study.sae.name, header.d_model, self.study.model.name, d_model)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer on the job's device."""
        if layer not in self._held:
            # Before reading: a third SAE would otherwise be in memory while the oldest is still held.
            while len(self._held) > 1:
                self._held.popitem(last=False)
            self._held[layer] = self._scaled(layer, self.source.load(layer).to(self.device))
        self._held.move_to_end(layer)
        return self._held[layer]

    def load_ceiling(self, layer: int) -> SparseAutoencoder | None:
        """A second seed of one layer, if the configuration names one that exists."""
        sae = self.source.load_ceiling(layer)
        return None if sae is None else self._scaled(layer, sae.to(self.device))

    def _usable(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The SAE, if the configured evaluation can encode with it and the folding scale exists or can be measured."""
        if self.full:
            refuse_encoding(sae.source, sae.site, sae.match_only)
        if self.measured:
            check_measurable(sae, self.study.folding.scale, self.study.folding.k)
        else:
            self._with_scale(sae)
        return sae

    def _with_scale(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The SAE with the configured scale; with 1 where nothing is folded and it has none."""
        if self.unfolded and not sae.foldable:
            return sae.replace(scale=torch.ones_like(sae.threshold))
        return with_scale(sae, self.study.folding.scale)

    def _scaled(self, layer: int, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The SAE with what plays theta for it; a measured scale is measured once per SAE."""
        if not self.measured:
            return self._with_scale(sae)
        if self._measured_on is None:
            raise UserError(f"folding.scale={self.study.folding.scale.value}: needs evaluation=full")
        if sae.content_hash not in self._scales:
            self._scales[sae.content_hash] = self._measure(layer, sae, *self._measured_on)
        return sae.replace(scale=self._scales[sae.content_hash])

    def _measure(self, layer: int, sae: SparseAutoencoder, streams: ResidualStreams, passes: ActivationCache) -> Tensor:
        study = self.study
        how = {"batch_windows": study.evaluation.batch_windows, "sink_positions": study.model.sink_positions}
        scale, k = study.folding.scale, study.folding.k
        facts = {"what": scale, "k": k, "streams": streams.key, "layer": layer, **how}
        measured = passes.per_feature(
            sae, facts, lambda: measure_scale(sae, scale, streams.layer(layer), k=k, **how).theta
        )  # fmt: skip
        return measured.to(sae.device)

    def _check_ceiling(self, layer: int, second: SparseAutoencoder | None, solver: Solver) -> None:
        """Refuse a second seed that is not one: the same SAE would make a perfect ceiling."""
        if second is None:
            return
        own = self.facts[layer]
        if second.d_model != own.d_model:
            raise UserError(f"{second.source}: d_model {second.d_model}, but layer {layer}'s SAE reads {own.d_model}")
        if second.content_hash == own.content_hash:
            raise UserError(f"{second.source}: the same SAE as layer {layer}'s own, so it is no second seed")
        self._usable(second)
        check_pair(self.study, solver, own.width, second.width, own.d_model)
