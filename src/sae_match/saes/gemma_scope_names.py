"""Which average_l0 folder of a Gemma Scope release is meant by `canonical`, `paper` or a number."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from sae_match.errors import UserError

# Table 1 of the paper for gemma-scope-2b-pt-res, width 16k, layers 0..25. The paper prints 102 and 108 for layers
# 0 and 1, which no file has; the files meant are 105 and 102.
PAPER_L0S_2B_16K = (
    105, 102, 141, 59, 125, 68, 70, 69, 71, 73, 77, 80, 82, 83, 83, 78, 78, 77, 74, 73, 71, 70, 72, 75, 73, 116,
)  # fmt: skip


@cache
def _releases() -> dict[str, Any]:
    text = resources.files("sae_match").joinpath("assets/gemma_scope_l0s.json").read_text(encoding="utf-8")
    releases: dict[str, Any] = json.loads(text)["releases"]
    return releases


def choose_l0(repo_id: str | None, width: str, layer: int, l0: str) -> int:
    """The N of `average_l0_N` for one layer.

    Args:
        repo_id: hub repository, such as `google/gemma-scope-2b-pt-res`.
        width: width folder without the prefix, such as `16k`.
        layer: 0-based layer.
        l0: `canonical` (the published choice nearest 100), `paper` (Table 1), or a whole number.

    Raises:
        UserError: where the release, width or layer has no such entry; the message lists what there is.
    """
    if l0.isdigit():
        return int(l0)
    if l0 == "paper":
        return _paper_l0(repo_id, width, layer)
    if l0 != "canonical":
        raise UserError(f"sae.l0={l0}: must be canonical, paper, similar, or a whole number that names average_l0_N")
    return int(_of_layer(repo_id, width, layer, "canonical"))


def published_l0s(repo_id: str | None, width: str, layer: int) -> list[int]:
    """Every published N of `average_l0_N` for one layer, ascending.

    Raises:
        UserError: where the release, width or layer has no such entry; the message lists what there is.
    """
    return sorted(_of_layer(repo_id, width, layer, "l0s"))


def _of_layer(repo_id: str | None, width: str, layer: int, which: str) -> Any:
    name = (repo_id or "").split("/")[-1]
    if name not in _releases():
        raise UserError(
            f"sae.repo_id={repo_id}: no canonical L0 list for this release. Known: {', '.join(sorted(_releases()))}. "
            "Name the folder yourself with sae.l0=N."
        )
    widths = _releases()[name][which]
    if width not in widths:
        raise UserError(f"sae.width={width}: {name} has canonical L0s for widths {', '.join(sorted(widths))}")
    per_layer = widths[width]
    if str(layer) not in per_layer:
        known = ", ".join(sorted(per_layer, key=lambda key: (len(key), key)))
        raise UserError(f"layer {layer}: {name} width {width} has canonical SAEs only for layers {known}")
    return per_layer[str(layer)]


def _paper_l0(repo_id: str | None, width: str, layer: int) -> int:
    if (repo_id or "").split("/")[-1] != "gemma-scope-2b-pt-res" or width != "16k":
        raise UserError("sae.l0=paper: the paper's Table 1 covers only gemma-scope-2b-pt-res at sae.width=16k")
    if not 0 <= layer < len(PAPER_L0S_2B_16K):
        raise UserError(f"layer {layer}: the paper's Table 1 covers layers 0..{len(PAPER_L0S_2B_16K) - 1}")
    return PAPER_L0S_2B_16K[layer]
