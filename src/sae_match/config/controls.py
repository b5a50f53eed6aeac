"""`evaluation.controls`: the alternatives that are measured beside the matching, and their rules. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_match.config.schema import Config


class Control(StrEnum):
    """What the matching is compared with on the same tokens, in the same job."""

    vanilla = "vanilla"
    random = "random"
    greedy = "greedy"
    nearest = "nearest"
    mutual = "mutual"
    cosine = "cosine"
    correlation = "correlation"
    linear_map = "linear_map"
    all = "all"


def control_rules(cfg: Config) -> Iterator[str]:
    """Controls that can be computed, and text to fit them on."""
    # Asked of the objects; imported here so that composing a configuration needs no torch.
    from sae_match.experiment import configured

    evaluation, named = cfg.evaluation, list(cfg.evaluation.controls)
    controls = configured.controls(cfg)
    names = [control.name for control in controls]
    if len(set(named)) < len(named):
        yield f"evaluation.controls=[{', '.join(named)}]: each must be named once"
    unlimited = [control.name for control in controls if not control.takes_limits]
    for limit in ("n_pairs", "rejection_cost"):
        if unlimited and getattr(cfg.matching, limit) is not None:
            yield f"matching.{limit} is set, and the controls {', '.join(unlimited)} know no such limit; leave one out"
    if cfg.composition.max_distance >= 2 and Control.random not in names:
        yield "composition.max_distance compares with composed random permutations: add random to evaluation.controls"
    missing = [control.value for control in (Control.vanilla, Control.random) if control not in names]
    if missing and cfg.judging.name.value != "none":
        yield f"judging compares with the controls vanilla and random: add {' and '.join(missing)} to them"
    if evaluation.fit_documents is not None and evaluation.fit_documents < 1:
        yield f"evaluation.fit_documents={evaluation.fit_documents}: must be at least 1"
    if fitted := configured.fitted(cfg):
        yield from _fit_rules(cfg, fitted)


def _fit_rules(cfg: Config, fitted: list[str]) -> Iterator[str]:
    who = " and ".join(fitted)
    if cfg.evaluation.level.value != "full":
        yield f"the controls {who} need activations, and evaluation={cfg.evaluation.level} computes none"
    elif cfg.dataset.documents == 0 and cfg.dataset.part.value == "all":
        yield (
            f"dataset.documents=0 with dataset.part=all evaluates every document and leaves none to fit {who} on; "
            "set dataset.documents to a number, or dataset.part=evaluation"
        )
    elif cfg.dataset.documents == 0 and cfg.evaluation.fit_documents is None:
        yield f"dataset.documents=0 does not say on how many documents to fit {who}; set evaluation.fit_documents"
