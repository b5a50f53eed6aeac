"""SAEs of one layer at several sparsities: which is meant by `sae.l0`, and which there are in the native layout."""

from __future__ import annotations

import re

from sae_match.config.sae_schema import SaeConfig
from sae_match.errors import UserError
from sae_match.saes.locating import fill, local_root

_MARK = "sparsity"
"""Stands for the L0 while a file name becomes a pattern."""


def l0_of_layer(l0: str | None, layer: int, span: tuple[int, ...]) -> str | None:
    """What `sae.l0` says of one layer: `71/70` is a number per layer of the span, anything else holds for all.

    Raises:
        UserError: another number of L0s than layers, or a layer outside the span.
    """
    if l0 is None or "/" not in l0:
        return l0
    numbers = l0.split("/")
    if len(numbers) != len(span) or layer not in span:
        raise UserError(f"sae.l0={l0}: names {len(numbers)} L0s for the layers {list(span)}; layer {layer} needs one")
    return numbers[span.index(layer)]


def native_l0(cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> str | None:
    """The L0 of a layer's file in the native layout; None where it is `sae.filename` itself."""
    l0 = l0_of_layer(cfg.l0, layer, span)
    return None if l0 is None or l0 == str(cfg.default_l0) else l0


def native_name(cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> str:
    """File of a layer in the native layout.

    Raises:
        UserError: an L0 is asked for and `sae.l0_filename` is not set, or a name cannot be filled in.
    """
    l0 = native_l0(cfg, layer, span)
    return fill(cfg.filename, layer, "sae.filename") if l0 is None else _at_l0(cfg, layer, l0)


def check_native_l0(cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> None:
    """Say which L0s there are where the one that is asked for is not (local files only).

    Raises:
        UserError: no file of the layer at this L0 below `sae.root`.
    """
    l0 = native_l0(cfg, layer, span)
    if l0 is None or cfg.root is None:
        return
    have = native_l0s(cfg, layer)
    if int(l0) not in have:
        known = ", ".join(map(str, have)) or "none"
        raise UserError(
            f"sae.l0={cfg.l0}: no SAE of layer {layer} at L0 {l0} in {local_root(cfg.root)} "
            f"({_at_l0(cfg, layer, l0)}); there are: {known}. sae-match-train training.target_l0={l0} trains one"
        )


def native_l0s(cfg: SaeConfig, layer: int) -> list[int]:
    """L0s of one layer for which there are files below `sae.root`, ascending; `sae.default_l0` among them."""
    root = local_root(cfg.root or "")
    pattern = re.compile(re.escape(_at_l0(cfg, layer, _MARK)).replace(_MARK, r"(\d+)"))
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    found = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
    if cfg.default_l0 is not None and (root / fill(cfg.filename, layer, "sae.filename")).is_file():
        found.add(cfg.default_l0)
    return sorted(found)


def _at_l0(cfg: SaeConfig, layer: int, l0: str) -> str:
    if cfg.l0_filename is None:
        raise UserError(f"sae.l0={cfg.l0}: needs sae.l0_filename, such as 'layer_{{layer:02d}}_l0_{{l0}}.safetensors'")
    return fill(cfg.l0_filename.replace("{l0}", l0), layer, "sae.l0_filename")
