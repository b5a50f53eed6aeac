"""The SAEs of a job: every one is checked before long work, then they are loaded on demand, two at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from sae_match.errors import UserError
from sae_match.experiment.inputs import Inputs
from sae_match.experiment.passes import per_feature
from sae_match.matching.solution import Solver
from sae_match.pairs import Pair, Role, Site, distant_pairs, own_pairs, seed_pair
from sae_match.plan.checks import (
    check_header,
    check_one_stream,
    check_pair,
    check_same_stream,
    check_widths,
    needs_no_scale,
)
from sae_match.saes import SaeHeader, SaeSource, SparseAutoencoder, measure_scale, with_scale
from sae_match.saes.folding import check_measurable
from sae_match.saes.site import refuse_encoding
from sae_match.store import Store
from sae_match.study import Study

Scale = Callable[[Site, SparseAutoencoder], SparseAutoencoder]
"""A dictionary's SAE with the scale that it is folded by."""


class JobSaes:
    """The SAEs of a job, loaded on demand; the two loaded last are kept.

    Args:
        sources: by `Site.source`.
        device: where loaded SAEs are put.
        scale: gives a loaded SAE its folding scale.
    """

    def __init__(self, sources: Sequence[SaeSource], device: str, scale: Scale) -> None:
        self.sources, self.device, self.scale = sources, device, scale
        self._held: OrderedDict[Site, SparseAutoencoder] = OrderedDict()

    def load(self, site: Site) -> SparseAutoencoder:
        """One SAE. A second seed is not kept.

        Raises:
            UserError: as from `SaeSource.load`.
        """
        source = self.sources[site.source]
        if source.second:
            return self.scale(site, source.load(site.at).to(self.device))
        if site not in self._held:
            # Before reading: a third SAE would otherwise be in memory while the oldest is still held.
            while len(self._held) > 1:
                self._held.popitem(last=False)
            self._held[site] = self.scale(site, source.load(site.at).to(self.device))
        self._held.move_to_end(site)
        return self._held[site]

    def has(self, site: Site) -> bool:
        """Whether there is such an SAE; the job's own are checked beforehand."""
        return self.sources[site.source].has(site.at)

    def pair(self, pair: Pair) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """Both SAEs of a pair."""
        return self.load(pair.a), self.load(pair.b)


def check_saes(
    study: Study, sources: Sequence[SaeSource], solver: Solver, progress: bool, d_models: Sequence[int | None]
) -> dict[Site, SaeHeader]:
    """Look at every file's header, then read every SAE once, so that a bad one is found before hours of work.

    Args:
        sources: by `Site.source`.
        d_models: width of the residual stream of every side's model, for a full evaluation.

    Returns:
        Headers of all dictionaries but second seeds.

    Raises:
        UserError: missing or invalid files, SAEs over different residual streams or another model than configured,
            SAEs that the configured evaluation or folding scale cannot use, or a problem that does not fit into memory.
    """
    sides, sites = study.pairs.sides(study), study.pairs.sites(study)
    headers: dict[Site, SaeHeader] = {}
    for site in sites:
        # One by one: what is wrong with the first is reported before the others are downloaded.
        header = headers[site] = sources[site.source].header(site.at)
        side, d_model = sides[site.source], d_models[site.source]
        check_one_stream({at.at: known.d_model for at, known in headers.items() if at.source == site.source})
        check_header(side, site.at, header, headers[sites[0]])
        if d_model is not None:
            check_same_stream(side.sae.name, header.d_model, side.model.name, d_model)
    for pair in [*own_pairs(study), *distant_pairs(study)]:
        check_widths(study, solver, headers[pair.a], headers[pair.b])
    hashes: dict[Site, str] = {}
    for site in tqdm(sites, desc="checking SAEs", disable=not progress):
        hashes[site] = _check_site(study, sources, solver, site)  # holds no SAE longer than that
    for pair in own_pairs(study):
        one_model = sides[pair.a.source].model == sides[pair.b.source].model
        if pair.role is Role.sources and one_model and hashes[pair.a] == hashes[pair.b]:
            raise UserError(f"{pair}: one SAE on either side; name another one (pairs={study.pairs.name})")
    return headers


def _check_site(study: Study, sources: Sequence[SaeSource], solver: Solver, site: Site) -> str:
    """Read an SAE, and its second seed where there is one: the same SAE would match itself."""
    own, seeds = sources[site.source].load(site.at), seed_pair(site.layer).b
    _check_usable(study, own)
    if not sources[seeds.source].second or not sources[seeds.source].has(site.at):
        return own.content_hash
    second = sources[seeds.source].load(site.at)
    if second.d_model != own.d_model:
        raise UserError(f"{second.source}: d_model {second.d_model}, but layer {site.at}'s SAE reads {own.d_model}")
    if second.content_hash == own.content_hash:
        raise UserError(f"{second.source}: the same SAE as layer {site.at}'s own, so it is no second seed")
    _check_usable(study, second)
    check_pair(study, solver, own.width, second.width, own.d_model)
    return own.content_hash


def _check_usable(study: Study, sae: SparseAutoencoder) -> None:
    """Refuse an SAE that the evaluation cannot encode with, or that has no folding scale and none to be measured."""
    if study.evaluation.full:
        refuse_encoding(sae.source, sae.site, sae.match_only)
    if study.folding.measured:
        check_measurable(sae, study.folding.scale, study.folding.k)
    else:
        stored_scale(study)(Site(0), sae)


def stored_scale(study: Study) -> Scale:
    """Folding scales that need no data: thresholds, or what else is configured.

    An SAE without thresholds gets scale 1 where nothing is folded and no scale is asked for: its weight distances are
    then in units of the stored weights.
    """
    unscaled, choice = needs_no_scale(study), study.folding.scale

    def scale(site: Site, sae: SparseAutoencoder) -> SparseAutoencoder:
        if unscaled and not sae.foldable:
            return sae.replace(scale=torch.ones_like(sae.threshold))
        return with_scale(sae, choice)

    return scale


def measured_scale(study: Study, store: Store, inputs: Inputs) -> Scale:
    """Folding scales measured on residual streams, once per SAE."""
    batch, sinks = inputs.text.how(study.evaluation.batch_windows, study.model.sink_positions)
    how = {"batch_windows": batch, "sink_positions": sinks}
    choice, k = study.folding.scale, study.folding.k

    def scale(site: Site, sae: SparseAutoencoder) -> SparseAutoencoder:
        facts = {"what": choice, "k": k, "streams": inputs.stream(site).key, "layer": site.at, **how}
        theta = per_feature(
            store, sae, facts, lambda: measure_scale(sae, choice, inputs.residual(site), k=k, **how).theta
        )
        return sae.replace(scale=theta.to(sae.device))

    return scale
