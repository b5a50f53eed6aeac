"""Where in a block an SAE reads, and which SAEs can encode the residual stream."""

from __future__ import annotations

import re
from enum import StrEnum

from sae_match.errors import UserError


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


_HOOK = re.compile(r"blocks\.(\d{1,4})\.((?:attn\.)?hook_\w+)$")
_MODULE = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.(\w+))?$")
_SITES = {
    "hook_resid_post": Site.resid_post, "hook_resid_pre": Site.resid_pre, "hook_resid_mid": Site.resid_mid,
    "hook_mlp_out": Site.mlp_out, "hook_attn_out": Site.attn_out, "attn.hook_z": Site.attn_out,
    None: Site.resid_post, "mlp": Site.mlp_out, "attn": Site.attn_out, "self_attn": Site.attn_out,
    "attention": Site.attn_out,
}  # fmt: skip


def site_of_hook(name: object) -> tuple[Site, int | None]:
    """Site and block of a TransformerLens hook (`blocks.3.hook_resid_post`) or of the output of a module of a
    transformers model (`model.layers.3`, `h.3.mlp`, `gpt_neox.layers.3`); `unknown` where the name is another.

    `blocks.N.attn.hook_z`, the attention output before its last projection, counts as attn_out.
    """
    found = (_HOOK.match(name) or _MODULE.match(name)) if isinstance(name, str) else None
    return (Site.unknown, None) if found is None else (_SITES.get(found[2], Site.unknown), int(found[1]))


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
        obstacle = f"reads {site.value}, and activations are compared on resid_post only"
    elif obstacle is not None:
        obstacle = f"cannot encode, because {obstacle}"
    if obstacle is not None:
        raise UserError(f"{where}: {obstacle}. Its weights can be matched: evaluation=weights_only")
