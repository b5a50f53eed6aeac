"""What is known of an SAE before its tensors are read, and the checks that compare it with what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from sae_match.config.sae_schema import SaeConfig, Site
from sae_match.errors import UserError


@dataclass(frozen=True)
class SaeHeader:
    """Facts from file headers, JSON configs and folder names.

    Attributes:
        d_model: dimensions that the SAE reads.
        width: number of features.
        site: where in the block it reads; `unknown` where the files do not say.
        layer: 0-based block as the files say, None where they do not.
        obstacle: why the SAE cannot encode, where that is known already.
    """

    d_model: int
    width: int
    site: Site = Site.unknown
    layer: int | None = None
    obstacle: str | None = None

    def checked(self, where: str, cfg: SaeConfig, layer: int | None) -> SaeHeader:
        """This header with its site settled between the files and `sae.site`.

        The input of block t+1 is the output of block t: an SAE of `resid_pre` at t+1 is one of `resid_post` at t.

        Raises:
            UserError: the files name another layer, site or d_model than the configuration.
        """
        site, stated = self.site, self.layer
        if site is Site.resid_pre and stated is not None and layer == stated - 1:
            site, stated = Site.resid_post, layer
        if layer is not None and stated is not None and stated != layer:
            hint = " (sae.folder with {next} names the folder of block t+1)" if site is Site.resid_pre else ""
            raise UserError(f"{where}: asked for layer {layer}, but the file is of layer {stated} ({site.value}){hint}")
        if site is Site.unknown and cfg.site is not None:
            site = cfg.site
        if cfg.site is not None and cfg.site is not site:
            raise UserError(f"{where}: sae.site={cfg.site.value}, but the file reads {site.value}")
        if cfg.d_model is not None and cfg.d_model != self.d_model:
            raise UserError(f"{where}: reads d_model={self.d_model}, but sae.d_model={cfg.d_model}")
        return SaeHeader(self.d_model, self.width, site, stated, self.obstacle)


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
