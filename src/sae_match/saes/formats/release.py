"""SAEs by the names of SAELens' registry: one release, one id per layer, resolved to files without sae-lens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind
from sae_match.saes.formats.base import SaeFormat, SaeHeader, fill
from sae_match.saes.formats.cross_layer import CrossLayerTranscoder
from sae_match.saes.formats.dictionary_learning import DictionaryLearning
from sae_match.saes.formats.gemma_scope import GemmaScope, choose_similar
from sae_match.saes.formats.gemma_scope_2 import GemmaScope2
from sae_match.saes.formats.llama_scope import LlamaScope, LlamaScopeR1
from sae_match.saes.formats.reading import SaeShape
from sae_match.saes.formats.saelens import Saelens
from sae_match.saes.formats.state_dict import StateDict
from sae_match.saes.formats.temporal import Temporal
from sae_match.saes.releases import L0, PublishedRelease, PublishedSae, release_named
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from sae_match.hub import HubFile

_RELU = {"activation": ActivationKind.relu, "subtracts_b_dec": False}
_PICKED = {"ignores_others": True}
"""SAELens takes the four tensors and does not say what else there is."""
CONVERTERS: dict[str, tuple[type[SaeFormat], tuple[str, ...], Mapping[str, Any]]] = {
    "connor_rob_hook_z": (StateDict, ("{path}",), {"activation": ActivationKind.relu, "subtracts_b_dec": True}),
    "deepseek_r1": (StateDict, ("{path}",), _RELU | _PICKED),
    "dictionary_learning_1": (DictionaryLearning, DictionaryLearning.FILES, {}),
    "gemma_2": (GemmaScope, ("params.npz",), {}),
    "gemma_2_transcoder": (GemmaScope, ("params.npz",), {}),
    "gemma_3": (GemmaScope2, ("params.safetensors",), {}),
    "goodfire": (StateDict, ("{path}",), _RELU | _PICKED),
    "llama_scope": (LlamaScope, LlamaScope.FILES, {}),
    "llama_scope_r1_distill": (LlamaScopeR1, LlamaScopeR1.FILES, {}),
    "mntss_clt_layer_transcoder": (
        CrossLayerTranscoder, ("W_enc_{path}.safetensors", "W_dec_{path}.safetensors"), {},
    ),
    "mwhanna_transcoder": (StateDict, ("{path}",), _RELU),
    "qwen_scope": (StateDict, ("{path}",), _RELU | _PICKED | {"activation": ActivationKind.topk}),
    "sae_lens": (Saelens, Saelens.FILES, {}),
    "temporal": (Temporal, Temporal.FILES, {}),
}  # fmt: skip
"""By the registry's name of a layout: its format, the files of one SAE (in the folder `path`, or made from it), and
the convention of those whose files do not state it."""


@option
class Release(SaeFormat):
    """SAEs of a release by its name in SAELens' registry, whatever the layout of their files.

    Repository, files and format follow from the package's own table of the registry. Site, block, normalization and
    model are those of the registry, compared with what the files say and with the job's model.
    """

    dialect: ClassVar[str] = "release"

    release: str
    """Name of the release, such as gemma-scope-2b-pt-res-canonical."""
    id: str
    """Id of one SAE, with {layer} or {next} (= layer + 1, for hook_resid_pre) in place of its block, and {l0} in place
    of the N of average_l0_N, which differs by layer."""
    l0: Annotated[int, Field(ge=1)] | None = None
    """With {l0} in the id: each layer takes the published L0 nearest to this one in ratio."""
    model: str | None = None
    """Model that the SAEs are used on; null = the one that they were trained on. Another one is refused unless it is
    named here."""

    @model_validator(mode="after")
    def _resolved(self) -> Release:
        """Fill in what the table says, so that a record holds it."""
        published = self._published
        if published.converter not in CONVERTERS:
            raise UserError(f"sae.release={self.release}: the layout {published.converter} is not supported")
        if self.l0 is not None and L0 not in self.id:
            raise UserError(f"sae.l0={self.l0}: sae.id has no {L0} to be chosen; write {L0} in place of the number")
        covered = self.covered()
        if not covered and "{" not in self.id:
            published.find(self.id)  # embeddings, or an error that names the nearest ids
        elif not covered:
            known = ", ".join([id for id in published.patterns() if "{layer}" in id][:8])
            raise UserError(f"sae.id={self.id}: no SAE of release {self.release} is called so; its ids: {known}")
        sites = {self._site(sae, layer) for layer, sae in covered.items()}
        found = {
            "repo_id": self.repo_id or published.repo_id,
            "model": self.model or published.model,
            "site": self.site or (sites.pop() if len(sites) == 1 else None),
            "neuronpedia": self.neuronpedia or self._neuronpedia(covered),
            "first_layer": max(self.first_layer, min(covered, default=0)),
            "last_layer": min(self.last_layer, max(covered, default=0)),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        return self

    def covered(self) -> dict[int, PublishedSae]:
        """By layer one SAE that the id names there; without {layer} the one layer that it is of."""
        published, found = self._published, dict[int, PublishedSae]()
        for layer in sorted({at for sae in published.saes.values() for at in (sae.block, sae.layer) if at is not None}):
            name = self._filled(layer)
            named = published.choices(name) if L0 in name else [published.saes[name]] if name in published.saes else []
            if fits := [sae for sae in named if layer in (sae.block, sae.layer)]:
                found[layer] = fits[0]
        return found

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that the release has no such SAE for."""
        if not (covered := list(self.covered())):
            raise UserError(
                f"sae.id={self.id}: is of no layer, so a job cannot match it; load_sae(release=, id=) reads it"
            )
        if missing := [layer for layer in layers if layer not in covered]:
            first, last = covered[0], covered[-1]
            whole = last - first + 1 == len(covered)
            have = f"layers.first={first} layers.last={last}" if whole else f"'layers.list={covered}'"
            named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(f"sae.release={self.release}, sae.id={self.id}: no SAE of layers {named}; there are {have}")

    def sae(self, layer: int | None) -> PublishedSae:
        """The table's entry for a layer; for None, of an id without placeholders.

        Raises:
            UserError: there is none.
        """
        if layer is None:
            return self._published.find(self.id)
        name = self._filled(layer)
        if L0 not in name:
            sae = self._published.find(name)
            if layer not in (sae.block, sae.layer):
                raise UserError(f"sae.id={self.id}: is of block {sae.block}, and layer {layer} was asked for")
            return sae
        self.check_layers((layer,))
        choices = {sae.l0 or 0: sae for sae in self._published.choices(name)}
        if self.l0 is None and len(choices) > 1:
            have = ", ".join(map(str, choices))
            raise UserError(f"sae.id={self.id}: layer {layer} has the L0s {have}; say near which with sae.l0=N")
        return choices[choose_similar({layer: list(choices)}, self.l0)[layer]]

    def files(self, layer: int | None, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The files of the SAE of one layer."""
        path, names = self.sae(layer).path, CONVERTERS[self._published.converter][1]
        return tuple(name.format(path=path) if "{path}" in name else f"{path}/{name}" for name in names)

    def place(self, files: list[Path]) -> Path:
        """As the format of the files has it."""
        return self._format(None).place(files)

    def shape_at_hub(self, files: list[HubFile], d_model: int | None) -> SaeShape | None:
        """As the format of the files has it."""
        return self._format(None).shape_at_hub(files, d_model)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """As the format of the files has it, compared with the registry's site."""
        return self._format(layer).header(path, layer)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """As the format of the files has it, with the registry's settings."""
        return self._format(layer).read(path, layer)

    @property
    def _published(self) -> PublishedRelease:
        return release_named(self.release)

    def _filled(self, layer: int) -> str:
        """The id of a layer, {l0} in it left as it is."""
        return L0.join(fill(part, layer, "sae.id") for part in self.id.split(L0))

    def _site(self, sae: PublishedSae, layer: int | None) -> Site:
        """The input of the next block is the output of this one."""
        return Site.resid_post if sae.site is Site.resid_pre and layer == sae.layer else sae.site

    def _neuronpedia(self, covered: Mapping[int, PublishedSae]) -> str | None:
        """The name there with {layer}, where it is one name for all layers."""
        names = {sae.neuronpedia and sae.neuronpedia.replace(f"/{at}-", "/{layer}-") for at, sae in covered.items()}
        return names.pop() if len(names) == 1 else None

    def _format(self, layer: int | None) -> SaeFormat:
        """The format of the release's files, told what the registry knows of one layer's SAE."""
        published = self._published
        kind, _, convention = CONVERTERS[published.converter]
        covered = self.covered()
        sae = covered.get(layer) if layer is not None else next(iter(covered.values()), None)
        site = self.site if sae is None else self.site or self._site(sae, layer)
        told: dict[str, Any] = {"site": site, **convention}
        if kind is StateDict:
            told["k"] = published.settings.get("k")
        if kind in (Saelens, LlamaScopeR1) and sae is not None and sae.scale is not None and layer is not None:
            told["norm_scaling_factors"] = {layer: sae.scale}
        # The release's own repository, also where a mirror is read: registry settings go by it.
        return kind(name=self.name, repo_id=published.repo_id, d_model=self.d_model, last_layer=layer or 0, **told)
