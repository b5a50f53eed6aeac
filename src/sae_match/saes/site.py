"""Where in a block an SAE reads, and which SAEs can encode the residual stream."""

from __future__ import annotations

import re
from enum import StrEnum

from sae_match.errors import UserError

_HOOK = re.compile(r"blocks\.(\d{1,4})\.(?:(attn)\.)?hook_(\w+)$")


class Site(StrEnum):
    """Where in a block an SAE reads. Residual streams are captured at resid_post, so only that site is encoded."""

    resid_post = "resid_post"
    resid_pre = "resid_pre"
    resid_mid = "resid_mid"
    mlp_out = "mlp_out"
    attn_out = "attn_out"
    transcoder = "transcoder"
    embedding = "embedding"
    unknown = "unknown"


_SITES = {name: Site(name) for name in ("resid_post", "resid_pre", "resid_mid", "mlp_out", "attn_out")}
_MODULE = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.(\w+))?$")
_MODULE_SITES = {
    None: Site.resid_post, "mlp": Site.mlp_out, "attn": Site.attn_out, "self_attn": Site.attn_out,
    "attention": Site.attn_out,
}  # fmt: skip


def site_of_hook(name: object) -> tuple[Site, int | None]:
    """Site and block of a TransformerLens hook name or of a module of a transformers model (`site_of_module`);
    `unknown` where the name says something else.

    `blocks.N.attn.hook_z`, the attention output before its last projection, counts as attn_out.
    """
    found = _HOOK.match(name) if isinstance(name, str) else None
    if found is None:
        return site_of_module(name) if isinstance(name, str) else (Site.unknown, None)
    layer, attention, hook = int(found[1]), found[2], found[3]
    if attention is not None:
        return (Site.attn_out if hook == "z" else Site.unknown), layer
    return _SITES.get(hook, Site.unknown), layer


def site_of_module(name: str) -> tuple[Site, int | None]:
    """Site and block of a module whose output is read, such as `model.layers.3`, `h.3.mlp` or `gpt_neox.layers.3`."""
    found = _MODULE.match(name)
    return (Site.unknown, None) if found is None else (_MODULE_SITES.get(found[2], Site.unknown), int(found[1]))


def refuse_encoding(where: str, site: Site, obstacle: str | None) -> None:
    """Refuse an SAE whose activations on the residual stream would mean nothing.

    Raises:
        UserError: another site than resid_post, or an SAE that only matches.
    """
    if site is Site.unknown:
        raise UserError(
            f"{where}: the files do not say what the SAE reads. If it is the residual stream after the block, say so "
            "with sae.site=resid_post (in the library, load_sae(..., site='resid_post')); weights match without it"
        )
    if site is not Site.resid_post:
        raise UserError(
            f"{where}: reads {site.value}, and activations are compared on resid_post only. Its weights can be "
            "matched: evaluation=weights_only"
        )
    if obstacle is not None:
        raise UserError(
            f"{where}: cannot encode, because {obstacle}. Its weights can be matched: evaluation=weights_only"
        )
