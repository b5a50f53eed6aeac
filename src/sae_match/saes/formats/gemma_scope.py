"""Gemma Scope checkpoints: layer_{L}/width_{W}/average_l0_{N}/params.npz, from a local directory or the hub."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae, l0_of_layer, local_root
from sae_match.saes.formats.reading import matrix_shape, need_names, npz_shapes, read_npz
from sae_match.saes.releases import release_named, release_names
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder

logger = logging.getLogger(__name__)

_CANONICAL = {name.lower(): name for name in PARAMETERS}
_RELEASE = re.compile(r"gemma-scope-\w+-[pi]t-(res|mlp|att|transcoders)\b")
_LAYER = re.compile(r"layer_(\d{1,4})")
_SITES = {
    "res": Site.resid_post, "mlp": Site.mlp_out, "att": Site.attn_out, "transcoders": Site.transcoder,
}  # fmt: skip
"""Sites by the release's suffix. The attention SAEs read the heads' outputs before the last projection."""
# Table 1 of the paper for gemma-scope-2b-pt-res, width 16k, layers 0..25. The paper prints 102 and 108 for layers
# 0 and 1, which no file has; the files meant are 105 and 102.
PAPER_L0S_2B_16K = (
    105, 102, 141, 59, 125, 68, 70, 69, 71, 73, 77, 80, 82, 83, 83, 78, 78, 77, 74, 73, 71, 70, 72, 75, 73, 116,
)  # fmt: skip
CANONICAL_L0 = 100
"""The L0 that the published canonical choices aim at; ties go to the choice nearest to it."""


@option
class GemmaScope(SaeFormat):
    """The Gemma Scope layout (keys of `params.npz`: W_enc, W_dec, b_enc, b_dec, threshold, in any case)."""

    dialect: ClassVar[str] = "gemma_scope"

    width: str | None = None
    """Width of the folder width_W, such as 16k."""
    l0: str | None = None
    """Sparsity: canonical (also null), paper, similar (evenest L0 over the span), or a number N of average_l0_N; in
    place of a number there may be one per layer of the span, such as 71/70."""
    l0_near: Annotated[int, Field(ge=1)] | None = None
    """With l0=similar: each layer takes the L0 nearest to this one; null = the evenest choice at any sparsity."""

    @model_validator(mode="after")
    def _l0_is_complete(self) -> GemmaScope:
        if self.l0_near is not None and self.l0 != "similar":
            raise ValueError(f"sae.l0_near={self.l0_near}: goes with sae.l0=similar only")
        if "/" in (self.l0 or "") and not all(number.isdigit() for number in (self.l0 or "").split("/")):
            raise ValueError(f"sae.l0={self.l0}: must be whole numbers, joined by /")
        return self

    @classmethod
    def detect(cls, path: Path) -> bool:
        """An .npz file."""
        return path.suffix == ".npz"

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """As `SaeFormat.check_layers`, and refuse an `l0` of other layers."""
        super().check_layers(layers)
        l0_of_layer(self.l0, layers[0], layers)

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's one file."""
        if self.repo_id is None and self.root is None:
            raise UserError("sae.repo_id is not set, and neither is sae.root: name a hub repository or a directory")
        return (f"layer_{layer}/width_{self._width}/average_l0_{self._l0(layer, span)}/params.npz",)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the archive's headers, site from the release's name, layer from the folder's."""
        shapes = {_CANONICAL.get(key.lower(), key): shape for key, shape in npz_shapes(path).items()}
        d_model, width = matrix_shape(path, shapes, "W_enc")
        found = _RELEASE.search(str(path)) or _RELEASE.search(self.repo_id or "")
        site, obstacle = _SITES[found[1]] if found else Site.unknown, None
        folder = path.parents[2].name if len(path.parents) > 2 else ""
        named = _LAYER.fullmatch(folder)
        if folder == "embedding":
            site, obstacle = Site.embedding, "it reads token embeddings, multiplied by sqrt(d_model)"
        return SaeHeader(d_model, width, site, int(named[1]) if named else None, obstacle)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one `params.npz`; never unpickles."""
        header = self.header(path, layer)
        stored = {_CANONICAL.get(key.lower(), key.lower()): array for key, array in read_npz(path).items()}
        if "scaling_factor" in stored and not bool((stored["scaling_factor"] == 1).all()):
            raise UserError(f"{path}: scaling_factor is not all ones; this variant of Gemma Scope is not supported")
        need_names(path, stored, PARAMETERS)
        return build_sae(path, layer, header, {name: stored[name] for name in PARAMETERS}, unit_norm=True)

    @property
    def _width(self) -> str:
        if not self.width:
            raise UserError("sae.width is not set: Gemma Scope needs one, such as sae.width=16k")
        return self.width.removeprefix("width_")

    def _l0(self, layer: int, span: tuple[int, ...]) -> int:
        """The N of the layer's folder; with a local root, of the folders that are there."""
        l0, width = l0_of_layer(self.l0, layer, span) or "canonical", self._width
        if l0 == "similar":
            layers = sorted({*span, layer})
            have = {n: self._l0s_on_disk(n) if self.root else published_l0s(self.repo_id, width, n) for n in layers}
            return choose_similar(have, self.l0_near)[layer]
        if self.root is None:
            return choose_l0(self.repo_id, width, layer, l0)
        found = self._l0s_on_disk(layer)
        if not l0.isdigit() and len(found) == 1:
            # The only one on disk is what the user means; a warning where the published list names another.
            try:
                expected = f"average_l0_{choose_l0(self.repo_id, width, layer, l0)}"
            except UserError:
                expected = f"a folder that sae.l0={l0} names"
            if f"average_l0_{found[0]}" != expected:
                logger.warning("layer %d: %s is not there; using the only one, average_l0_%d", layer, expected, *found)
            return found[0]
        wanted = choose_l0(self.repo_id, width, layer, l0)
        if wanted not in found:
            names = ", ".join(f"average_l0_{n}" for n in found)
            raise UserError(f"sae.l0={l0}: layer {layer} has no average_l0_{wanted} in {self.root}; found {names}")
        return wanted

    def _l0s_on_disk(self, layer: int) -> list[int]:
        root = local_root(self.root or "")
        folder = root / f"layer_{layer}" / f"width_{self._width}"
        names = [path.parent.name.removeprefix("average_l0_") for path in folder.glob("average_l0_*/params.npz")]
        if found := sorted(int(name) for name in names if name.isdigit()):
            return found
        have = ", ".join(sorted(path.name for path in root.glob("layer_*")))
        raise UserError(
            f"no SAE for layer {layer} under sae.root={root}: expected {folder}/average_l0_N/params.npz. The directory "
            + (f"holds {have}." if have else "is missing or holds no layer_*.")
        )


def choose_l0(repo_id: str | None, width: str, layer: int, l0: str) -> int:
    """The N of `average_l0_N` for one layer.

    Args:
        repo_id: hub repository, such as `google/gemma-scope-2b-pt-res`.
        width: width folder without the prefix, such as `16k`.
        l0: `canonical` (the published choice nearest 100), `paper` (Table 1), or a whole number.

    Raises:
        UserError: the release, width or layer has no such entry; the message lists what there is.
    """
    if l0.isdigit():
        return int(l0)
    if l0 == "canonical":
        return _of_layer(repo_id, width, layer, "-canonical")[0]
    if l0 != "paper":
        raise UserError(f"sae.l0={l0}: must be canonical, paper, similar, or a whole number that names average_l0_N")
    if (repo_id or "").split("/")[-1] != "gemma-scope-2b-pt-res" or width != "16k":
        raise UserError("sae.l0=paper: the paper's Table 1 covers only gemma-scope-2b-pt-res at sae.width=16k")
    if not 0 <= layer < len(PAPER_L0S_2B_16K):
        raise UserError(f"layer {layer}: the paper's Table 1 covers layers 0..{len(PAPER_L0S_2B_16K) - 1}")
    return PAPER_L0S_2B_16K[layer]


def published_l0s(repo_id: str | None, width: str, layer: int) -> list[int]:
    """Every published N of `average_l0_N` for one layer, ascending; raises as `choose_l0`."""
    return _of_layer(repo_id, width, layer, "")


def _of_layer(repo_id: str | None, width: str, layer: int, suffix: str) -> list[int]:
    """L0s of one layer in the release of a repository that has this suffix, ascending."""
    name = (repo_id or "").split("/")[-1]
    if name + suffix not in release_names():
        lists = ", ".join(one.removesuffix("-canonical") for one in release_names() if one.endswith("-canonical"))
        raise UserError(
            f"sae.repo_id={repo_id}: no canonical L0 list for this release. Known: {lists}. "
            "Name the folder yourself with sae.l0=N."
        )
    widths: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for sae in release_named(name + suffix).saes.values():
        if sae.block is not None and sae.l0 is not None:
            widths[sae.path.split("/")[1].removeprefix("width_")][sae.block].append(sae.l0)
    if width not in widths:
        raise UserError(f"sae.width={width}: {name} has canonical L0s for widths {', '.join(sorted(widths))}")
    if layer not in widths[width]:
        known = ", ".join(map(str, sorted(widths[width])))
        raise UserError(f"layer {layer}: {name} width {width} has canonical SAEs only for layers {known}")
    return sorted(widths[width][layer])


def choose_similar(available: Mapping[int, Sequence[int]], near: int | None = None) -> dict[int, int]:
    """One average L0 per layer, as even as possible: the smallest ratio of the largest to the smallest L0.

    The rule, exactly: among all windows [low, high] of L0s that hold at least one available L0 of every layer, take the
    one with the smallest high / low; of equals, the one whose geometric mean is nearest to 100 in ratio, then the
    sparser one. Within the window each layer takes the L0 nearest in ratio to the window's geometric mean, of equals
    the smaller one. Ratios are compared exactly.

    Args:
        available: average L0s of each layer; one without any is refused.
        near: each layer takes the L0 nearest in ratio to this one instead, of equals the smaller one.
    """
    empty = sorted(layer for layer, l0s in available.items() if not l0s)
    if empty or not available:
        raise UserError(f"sae.l0=similar: no SAEs to choose from at layers {empty or 'of an empty span'}")
    if near is not None:
        return {layer: min(l0s, key=lambda l0: (_ratio(l0, near), l0)) for layer, l0s in available.items()}
    windows = []
    for low in {l0 for l0s in available.values() for l0 in l0s}:
        # The narrowest window from `low` on that holds an L0 of every layer, if there is one.
        least = [min((l0 for l0 in l0s if l0 >= low), default=None) for l0s in available.values()]
        if None not in least:
            windows.append((low, max(l0 for l0 in least if l0 is not None)))
    low, high = min(windows, key=lambda w: (_ratio(*w), _ratio(w[0] * w[1], CANONICAL_L0**2), w[0]))
    return {
        layer: min((l0 for l0 in l0s if low <= l0 <= high), key=lambda l0: (_ratio(l0 * l0, low * high), l0))
        for layer, l0s in available.items()
    }


def _ratio(a: int, b: int) -> Fraction:
    """Ratio of two positive numbers, the larger on top."""
    return Fraction(max(a, b), min(a, b))
