"""SAEs in memory: objects of SAELens, sparsify and dictionary_learning, told by what they have; none is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes.activation import ActivationKind
from sae_match.saes.convention import Convention
from sae_match.saes.formats.dictionary_learning import CLASSES
from sae_match.saes.site import Site, parse_site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_SAE_LENS = {
    "standard": ActivationKind.relu,
    "jumprelu": ActivationKind.jumprelu,
    "topk": ActivationKind.topk,
    "gated": ActivationKind.gated,
    "transcoder": ActivationKind.relu,
    "skip_transcoder": ActivationKind.relu,
    "jumprelu_transcoder": ActivationKind.jumprelu,
    "jumprelu_skip_transcoder": ActivationKind.jumprelu,
}
"""Activations by SAELens' architecture."""
_SKIPS = "its skip connection is not part of its features"
PROBES = 32
"""Random inputs on which an object is compared with the SAE that it becomes."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05
"""Relative difference of the median input; the second where the object computes in half precision."""


@dataclass(frozen=True)
class _Found:
    """What an object holds and says of itself.

    Attributes:
        stored_threshold: the scalar beside a TopK that does not use it.
        stated_l0: active features per token that it was trained for.
        run: features and reconstruction by the object's own methods; None where they depend on the batch or take
            another shape.
    """

    state: dict[str, Tensor]
    convention: Convention
    site: Site = Site.unknown
    layer: int | None = None
    match_only: str | None = None
    stored_threshold: float | None = None
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
        return sae if site is None else sae.replace(site=parse_site(site))
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
    if site is not None and at not in (Site.unknown, parse_site(site)):
        raise UserError(f"{source}: site={site}, but it reads {at.value}")
    ours = SparseAutoencoder.from_state_dict(
        found.state, found.convention, site=at if site is None else site, source=source
    )
    if found.run is not None and ours.match_only is None:
        _compare(ours, found.run, next(iter(found.state.values())).dtype)
    return ours.replace(
        match_only=ours.match_only or found.match_only,
        activation=replace(ours.activation, stored_threshold=found.stored_threshold),
        stated_l0=found.stated_l0,
    )


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
    name, metadata = said["architecture"], said["metadata"]
    if name not in _SAE_LENS:
        raise UserError(f"SAELens architecture {name}: supported are {', '.join(_SAE_LENS)}")
    if metadata.get("hook_head_index") is not None:
        raise UserError(f"SAELens {name} of a single attention head (hook_head_index): not supported")
    kind, batch = _SAE_LENS[name], trained in ("batchtopk", "matryoshka_batchtopk")
    site, layer = site_of_hook(metadata.get("hook_name"))
    centered = (metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
    obstacle = "it was trained on a residual stream without its mean (center_writing_weights)" if centered else None
    details = metadata.get("training_architecture_details") or {}

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(x)
        return f, sae.decode(f)

    return _Found(
        state={name: values for name, values in state.items() if name != "W_skip"},
        convention=Convention(
            activation=kind,
            subtracts_b_dec=said["apply_b_dec_to_input"],
            normalization=said["normalize_activations"],
            k=said.get("k"),
            rescales_by_decoder_norm=said.get("rescale_acts_by_decoder_norm"),
        ),
        site=Site.transcoder if "transcoder" in name else site,
        layer=layer,
        match_only=_SKIPS if "skip" in name else obstacle,
        stated_l0=details.get("k"),
        run=None if batch or said.get("reshape_activations") == "hook_z" else run,
    )


def _sparsify(sae: Any) -> _Found | None:
    cfg: Any = getattr(sae, "cfg", None)
    if not all(hasattr(cfg, name) for name in ("k", "num_latents", "expansion_factor")):
        return None
    if getattr(cfg, "activation", "topk") != "topk" or getattr(cfg, "signed", False):
        raise UserError(f"sparsify SAE with activation={cfg.activation}: only topk is supported")
    state, transcodes = _copied(sae), bool(getattr(cfg, "transcode", False))
    convention = Convention(
        activation="topk", subtracts_b_dec=not transcodes, normalization="none", k=cfg.k, rescales_by_decoder_norm=False
    )

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        top, indices = sae.encode(x)[:2]
        f = top.new_zeros(len(x), len(state["encoder.bias"])).scatter_(-1, indices, top)
        return f, sae.decode(top, indices)

    return _Found(
        state={name: values for name, values in state.items() if name != "W_skip"},
        convention=convention,
        site=Site.transcoder if transcodes else Site.unknown,
        match_only=_SKIPS if "W_skip" in state else None,
        run=run,
    )


def _dictionary_learning(sae: Any) -> _Found | None:
    names = [kind.__name__ for kind in type(sae).__mro__ if kind.__name__ in CLASSES]
    if not names or not all(hasattr(sae, name) for name in ("activation_dim", "dict_size", "state_dict")):
        return None
    _, subtracts, fixed = CLASSES[names[0]]
    state, k, threshold = _copied(sae), None, -1.0
    if fixed is None:  # of the TopK classes these are no parameters
        k, threshold = int(state.pop("k")), float(state.pop("threshold", -1.0))
        state.pop("group_sizes", None)
    if fixed is not None:
        kind = fixed.kind
    elif names[0] == "AutoEncoderTopK":
        kind = ActivationKind.topk
    elif threshold > 0:
        kind, state["threshold"] = ActivationKind.jumprelu, state["b_dec"].new_full((), threshold)
    else:
        kind = ActivationKind.batch_topk
    ranked = kind in (ActivationKind.topk, ActivationKind.batch_topk)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(x)
        return f, sae.decode(f)

    return _Found(
        state=state,
        convention=Convention(
            activation=kind,
            subtracts_b_dec=getattr(sae, "apply_b_dec_to_input", subtracts),
            normalization="none",
            k=k if ranked else None,
            rescales_by_decoder_norm=False if ranked else None,
        ),
        stored_threshold=threshold if kind is ActivationKind.topk and threshold > 0 else None,
        stated_l0=k,
        run=run,
    )
