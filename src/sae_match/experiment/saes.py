"""The SAEs of a job: every one is checked before long work, then they are loaded on demand, two at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from tqdm import tqdm

from sae_match.errors import UserError
from sae_match.experiment.inputs import Inputs
from sae_match.experiment.passes import per_feature
from sae_match.pairs import JobPairs, Pair, Role, Site
from sae_match.plan.checks import check_header, check_one_stream, check_same_stream, check_widths
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

    def pair(self, pair: Pair) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """Both SAEs of a pair."""
        return self.load(pair.a), self.load(pair.b)


def check_saes(
    study: Study, pairs: JobPairs, progress: bool, d_models: Sequence[int | None]
) -> dict[Site, SaeHeader]:  # fmt: skip
    """Look at every file's header, then read every SAE once, so that a bad one is found before hours of work.

    Args:
        d_models: width of the residual stream of every side's model, for a full evaluation.

    Returns:
        Headers of all dictionaries but second seeds.

    Raises:
        UserError: missing or invalid files, SAEs over different residual streams or another model than configured,
            SAEs that the configured evaluation or folding scale cannot use, or a problem that does not fit into memory.
    """
    headers: dict[Site, SaeHeader] = {}
    for site in pairs.sites:
        # One by one: what is wrong with the first is reported before the others are downloaded.
        header = headers[site] = pairs.sources[site.source].header(site.at)
        side, d_model = pairs.sides[site.source], d_models[site.source]
        check_one_stream({at.at: known.d_model for at, known in headers.items() if at.source == site.source})
        check_header(side, site.at, header, headers[pairs.sites[0]])
        if d_model is not None:
            check_same_stream(side.sae.name, header.d_model, side.model.name, d_model)
    for pair in (*pairs.own, *pairs.distant):
        check_widths(study, headers[pair.a], headers[pair.b])
    hashes: dict[Site, str] = {}
    for site in tqdm([*pairs.sites, *(pair.b for pair in pairs.seeds)], desc="checking SAEs", disable=not progress):
        sae = pairs.sources[site.source].load(site.at)
        if study.evaluation.full:
            refuse_encoding(sae.source, sae.site, sae.match_only)
        if study.folding.measured:
            check_measurable(sae, study.folding.scale, study.folding.k)
        else:
            with_scale(sae, study.folding.scale, optional=study.unscaled)
        hashes[site] = sae.content_hash
        del sae  # before the next one is read
    for pair in pairs.seeds:
        if hashes[pair.a] == hashes[pair.b]:
            layer, second = pair.b.at, pairs.sources[pair.b.source]
            path = second.locate([layer])[layer]
            raise UserError(f"{path}: the same SAE as layer {layer}'s own, so it is no second seed")
    for pair in pairs.own:
        one_model = pairs.sides[pair.a.source].model == pairs.sides[pair.b.source].model
        if pair.role is Role.sources and one_model and hashes[pair.a] == hashes[pair.b]:
            raise UserError(f"{pair}: one SAE on either side; name another one (pairs={study.pairs.name})")
    return headers


def folding_scale(study: Study, store: Store, inputs: Inputs | None) -> Scale:
    """What gives the SAEs of a job their folding scale: measured on residual streams, once per SAE, where the
    configuration asks for that, otherwise thresholds, or what else needs no data."""
    batch, sinks = study.evaluation.batch_windows, study.model.sink_positions
    if inputs is not None:
        batch, sinks = inputs.text.how(batch, sinks)
    how = {"batch_windows": batch, "sink_positions": sinks}
    choice, k = study.folding.scale, study.folding.k

    def scale(site: Site, sae: SparseAutoencoder) -> SparseAutoencoder:
        if inputs is not None and study.folding.measured:
            facts = {"what": choice, "k": k, "streams": inputs.stream(site).key, "layer": site.at, **how}
            theta = per_feature(
                store, sae, facts, lambda: measure_scale(sae, choice, inputs.residual(site), k=k, **how).theta
            )
            return sae.replace(scale=theta.to(sae.device))
        return with_scale(sae, choice, optional=study.unscaled)

    return scale
