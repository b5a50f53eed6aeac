"""The SAEs of a job: every one is checked before long work, then they are loaded on demand, two at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from tqdm import tqdm

from sae_match.errors import UserError
from sae_match.experiment.passes import per_feature
from sae_match.language_model import ResidualStreams
from sae_match.matching.solution import Solver
from sae_match.pairs import Pair, Site, adjacent_pairs, distant_pairs, span
from sae_match.plan.checks import check_header, check_one_stream, check_pair, check_same_stream, needs_no_scale
from sae_match.saes import SaeHeader, SaeSource, SparseAutoencoder, measure_scale, with_scale
from sae_match.saes.folding import check_measurable
from sae_match.saes.site import refuse_encoding
from sae_match.store import Store
from sae_match.study import Study

Scale = Callable[[int, SparseAutoencoder], SparseAutoencoder]
"""An SAE of a layer with the scale that it is folded by."""


class JobSaes:
    """The SAEs of a job, loaded on demand; the two loaded last are kept.

    Args:
        device: where loaded SAEs are put.
        scale: gives a loaded SAE its folding scale.
    """

    def __init__(self, source: SaeSource, device: str, scale: Scale) -> None:
        self.source, self.device, self.scale = source, device, scale
        self._held: OrderedDict[Site, SparseAutoencoder] = OrderedDict()

    def load(self, site: Site) -> SparseAutoencoder:
        """One SAE. A second seed is not kept.

        Raises:
            UserError: as from `SaeSource.load`, or a second seed that does not exist.
        """
        if site.second:
            second = self.source.load_ceiling(site.layer)
            if second is None:
                raise UserError(f"layer {site.layer} has no second seed")
            return self.scale(site.layer, second.to(self.device))
        if site not in self._held:
            # Before reading: a third SAE would otherwise be in memory while the oldest is still held.
            while len(self._held) > 1:
                self._held.popitem(last=False)
            self._held[site] = self.scale(site.layer, self.source.load(site.layer).to(self.device))
        self._held.move_to_end(site)
        return self._held[site]

    def has(self, site: Site) -> bool:
        """Whether there is such an SAE; the span's own are checked beforehand."""
        return not site.second or self.source.ceiling_path(site.layer) is not None

    def pair(self, pair: Pair) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """Both SAEs of a pair."""
        return self.load(pair.a), self.load(pair.b)


def check_saes(
    study: Study, source: SaeSource, solver: Solver, progress: bool, d_model: int | None
) -> dict[int, SaeHeader]:
    """Look at every file's header, then read every SAE once, so that a bad one is found before hours of work.

    Args:
        d_model: width of the model's residual stream, for a full evaluation.

    Returns:
        Headers by layer.

    Raises:
        UserError: missing or invalid files, SAEs over different residual streams or another model than configured,
            SAEs that the configured evaluation or folding scale cannot use, or a problem that does not fit into memory.
    """
    layers = span(study)
    headers: dict[int, SaeHeader] = {}
    for layer in layers:
        # One by one: what is wrong with the first is reported before the others are downloaded.
        headers[layer] = source.header(layer)
        check_one_stream({at: known.d_model for at, known in headers.items()})
        check_header(study, layer, headers[layer], headers[layers[0]])
        if d_model is not None:
            check_same_stream(study.sae.name, headers[layer].d_model, study.model.name, d_model)
    for pair in [*adjacent_pairs(study), *distant_pairs(study)]:
        a, b = (headers[layer] for layer in pair.layers)
        check_pair(study, solver, a.width, b.width, a.d_model)
    for layer in tqdm(layers, desc="checking SAEs", disable=not progress):
        _check_layer(study, source, solver, layer)  # holds no SAE longer than that
    return headers


def _check_layer(study: Study, source: SaeSource, solver: Solver, layer: int) -> None:
    """Read a layer's SAE, and its second seed where there is one: the same SAE would match itself."""
    own, second = source.load(layer), source.load_ceiling(layer)
    _check_usable(study, own)
    if second is None:
        return
    if second.d_model != own.d_model:
        raise UserError(f"{second.source}: d_model {second.d_model}, but layer {layer}'s SAE reads {own.d_model}")
    if second.content_hash == own.content_hash:
        raise UserError(f"{second.source}: the same SAE as layer {layer}'s own, so it is no second seed")
    _check_usable(study, second)
    check_pair(study, solver, own.width, second.width, own.d_model)


def _check_usable(study: Study, sae: SparseAutoencoder) -> None:
    """Refuse an SAE that the evaluation cannot encode with, or that has no folding scale and none to be measured."""
    if study.evaluation.full:
        refuse_encoding(sae.source, sae.site, sae.match_only)
    if study.folding.measured:
        check_measurable(sae, study.folding.scale, study.folding.k)
    else:
        stored_scale(study)(0, sae)


def stored_scale(study: Study) -> Scale:
    """Folding scales that need no data: thresholds, or what else is configured.

    An SAE without thresholds gets scale 1 where nothing is folded and no scale is asked for: its weight distances are
    then in units of the stored weights.
    """
    unscaled, choice = needs_no_scale(study), study.folding.scale

    def scale(layer: int, sae: SparseAutoencoder) -> SparseAutoencoder:
        if unscaled and not sae.foldable:
            return sae.replace(scale=torch.ones_like(sae.threshold))
        return with_scale(sae, choice)

    return scale


def measured_scale(study: Study, store: Store, streams: ResidualStreams) -> Scale:
    """Folding scales measured on residual streams, once per SAE."""
    how = {"batch_windows": study.evaluation.batch_windows, "sink_positions": study.model.sink_positions}
    choice, k = study.folding.scale, study.folding.k

    def scale(layer: int, sae: SparseAutoencoder) -> SparseAutoencoder:
        facts = {"what": choice, "k": k, "streams": streams.key, "layer": layer, **how}
        theta = per_feature(
            store, sae, facts, lambda: measure_scale(sae, choice, streams.layer(layer), k=k, **how).theta
        )
        return sae.replace(scale=theta.to(sae.device))

    return scale
