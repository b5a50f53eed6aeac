"""SAEs in memory: objects of SAELens, sparsify and dictionary_learning, told by what they have; none is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import parse
from sae_match.saes.activation import ActivationKind, Convention
from sae_match.saes.formats import dictionary_learning, saelens, sparsify
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

PROBES = 32
"""Random inputs on which an object is compared with the SAE that it becomes."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05
"""Relative difference of the median input; the second where the object computes in half precision."""


@dataclass(frozen=True)
class _Found:
    """What an object holds and says of itself.

    Attributes:
        stated_l0: active features per token that it was trained for.
        run: features and reconstruction by the object's own methods; None where they depend on the batch or take
            another shape.
    """

    state: dict[str, Tensor]
    convention: Convention
    site: Site = Site.unknown
    layer: int | None = None
    match_only: str | None = None
    stated_l0: float | None = None
    run: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


def as_sae(sae: object, layer: int | None = None, site: Site | str | None = None) -> SparseAutoencoder:
    """A `SparseAutoencoder` as it is, or at another site; a copy of a live SAE of another library as one.

    Args:
        layer: compared with what the object says; an SAE of the input of block layer + 1 reads the output of `layer`.
        site: where in the block it reads, where the object does not say.

    Raises:
        UserError: another kind of object, one that is not supported, contradicts `layer` or `site`, or computes
            something else than its class says.
    """
    if isinstance(sae, SparseAutoencoder):
        return sae if site is None else sae.replace(site=parse(Site, site, "site"))
    for read in (_sae_lens, _sparsify, _dictionary_learning):
        if (found := read(sae)) is not None:
            return _built(sae, found, layer, site)
    raise UserError(
        f"a {type(sae).__name__} is no SAE that is known here: expected a SparseAutoencoder, or an object of SAELens "
        "(version 6), sparsify or dictionary_learning. load_sae(PATH) reads files, and "
        "SparseAutoencoder.from_state_dict(sae.state_dict(), Convention(...)) takes any other module's tensors"
    )


def read_sae_lens(sae: object, site: Site | str | None = None) -> SparseAutoencoder:
    """As `as_sae`, of SAELens' objects only."""
    if (found := _sae_lens(sae)) is None:
        raise UserError(f"a {type(sae).__name__} is no SAE of SAELens (version 6): it has no cfg with an architecture")
    return _built(sae, found, None, site)


def _built(sae: object, found: _Found, layer: int | None, site: Site | str | None) -> SparseAutoencoder:
    source, at, stated = f"{type(sae).__name__} in memory", found.site, found.layer
    if at is Site.resid_pre and stated is not None and layer == stated - 1:
        at, stated = Site.resid_post, layer
    if None not in (layer, stated) and layer != stated:
        raise UserError(f"{source}: asked for layer {layer}, but it is of layer {stated} ({found.site.value})")
    if site is not None and at not in (Site.unknown, parse(Site, site, "site")):
        raise UserError(f"{source}: site={site}, but it reads {at.value}")
    ours = SparseAutoencoder.from_state_dict(
        found.state, found.convention, site=at if site is None else site, source=source
    )
    if found.run is not None and ours.match_only is None:
        _compare(ours, found.run, next(iter(found.state.values())).dtype)
    return ours.replace(match_only=ours.match_only or found.match_only, stated_l0=found.stated_l0)


@torch.no_grad()
def _compare(ours: SparseAutoencoder, run: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    """Refuse an object that computes something else: a subclass, a hook, another version of its library."""
    offset = ours.b_enc.abs().median() + ours.threshold.median()
    scale = float(3 * offset / ours.W_enc.norm(dim=0).median()) or 1.0  # many features fire, and offsets count
    x = scale * torch.randn(PROBES, ours.d_model, generator=torch.Generator().manual_seed(0))
    x = x.to(ours.device, dtype)
    f, x_hat = (values.to_dense() if values.is_sparse else values for values in run(x))
    tolerance = HALF_TOLERANCE if dtype in (torch.float16, torch.bfloat16) else TOLERANCE
    for name, mine, theirs in (("encode", ours.encode(x), f), ("decode", ours.decode(f), x_hat)):
        # The median: a rounded pre-activation may fall on the other side of a threshold, but not for most inputs.
        error = float(((mine - theirs.float()).norm(dim=1) / theirs.float().norm(dim=1).clamp(min=1e-30)).median())
        if not error <= tolerance:
            raise UserError(
                f"{ours.source}: its {name} is not that of its class as it is known here (relative difference "
                f"{error:.2g} on random inputs). A subclass, a hook or another version? Say what it computes with "
                "SparseAutoencoder.from_state_dict(sae.state_dict(), Convention(...))"
            )


def _copied(sae: Any) -> dict[str, Tensor]:
    """The state dict as it is now: training may go on."""
    return {str(name): values.detach().clone() for name, values in sae.state_dict().items()}


def _sae_lens(sae: Any) -> _Found | None:
    """Of a training class what SAELens would save for inference (BatchTopK: a JumpReLU SAE)."""
    cfg: Any = getattr(sae, "cfg", None)
    if not callable(getattr(cfg, "architecture", None)) or not callable(getattr(sae, "state_dict", None)):
        return None
    state, trained = _copied(sae), cfg.architecture()
    if hasattr(cfg, "get_inference_sae_cfg_dict"):
        said: Mapping[str, Any] = cfg.get_inference_sae_cfg_dict()
        sae.process_state_dict_for_saving_inference(state)
    else:
        said = cfg.to_dict()
    if missing := {"architecture", "metadata", "apply_b_dec_to_input", "normalize_activations"} - said.keys():
        raise UserError(f"{type(sae).__name__}: its cfg does not say {', '.join(sorted(missing))}; another version?")
    settings = saelens.settings_of(type(sae).__name__, said)
    details = said["metadata"].get("training_architecture_details") or {}
    own = trained not in ("batchtopk", "matryoshka_batchtopk") and said.get("reshape_activations") != "hook_z"
    return _Found(
        state={name: values for name, values in state.items() if name != "W_skip"},
        convention=settings.convention,
        site=settings.header.site,
        layer=settings.header.layer,
        match_only=settings.header.obstacle,
        stated_l0=details.get("k"),
        run=_own_methods(sae) if own else None,
    )


def _sparsify(sae: Any) -> _Found | None:
    cfg: Any = getattr(sae, "cfg", None)
    if not all(hasattr(cfg, name) for name in ("k", "num_latents", "expansion_factor")):
        return None
    if getattr(cfg, "activation", "topk") != "topk" or getattr(cfg, "signed", False):
        raise UserError(f"sparsify SAE with activation={cfg.activation}: only topk is supported")
    state, transcodes = _copied(sae), bool(getattr(cfg, "transcode", False))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        top, indices = sae.encode(x)[:2]
        f = top.new_zeros(len(x), len(state["encoder.bias"])).scatter_(-1, indices, top)
        return f, sae.decode(top, indices)

    return _Found(
        state={name: values for name, values in state.items() if name != "W_skip"},
        convention=sparsify.convention_of(cfg.k, transcodes),
        site=Site.transcoder if transcodes else Site.unknown,
        match_only=sparsify.SKIPS if "W_skip" in state else None,
        run=run,
    )


def _dictionary_learning(sae: Any) -> _Found | None:
    names = [kind.__name__ for kind in type(sae).__mro__ if kind.__name__ in dictionary_learning.CLASSES]
    if not names or not all(hasattr(sae, name) for name in ("activation_dim", "dict_size", "state_dict")):
        return None
    state, k, threshold = _copied(sae), None, -1.0
    if dictionary_learning.CLASSES[names[0]][2] is None:  # of the TopK classes these are no parameters
        k, threshold = int(state.pop("k")), float(state.pop("threshold", -1.0))
        state.pop("group_sizes", None)
    convention = dictionary_learning.convention_of(type(sae).__name__, names[0], k, threshold)
    if convention.activation is ActivationKind.jumprelu:
        state.setdefault("threshold", state["b_dec"].new_full((), threshold))
    subtracts = getattr(sae, "apply_b_dec_to_input", convention.subtracts_b_dec)
    return _Found(
        state=state,
        convention=replace(convention, subtracts_b_dec=subtracts),
        stated_l0=k,
        run=_own_methods(sae),
    )


def _own_methods(sae: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(x)
        return f, sae.decode(f)

    return run
