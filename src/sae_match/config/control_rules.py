"""Rules of controls that concern other groups: text to fit them on, limits to the pairs, who compares with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_match.config.schema import Config


def control_rules(cfg: Config) -> Iterator[str]:
    """Controls that can be computed, and text to fit them on."""
    from sae_match.evaluation.controls import Matcher

    controls = cfg.evaluation.controls.values()
    names = [control.name for control in controls]
    matchers = [control for control in controls if isinstance(control, Matcher)]
    unlimited = [control.name for control in matchers if not control.solver.limits_pairs]
    for limit in ("n_pairs", "rejection_cost"):
        if unlimited and getattr(cfg.matching, limit) is not None:
            yield f"matching.{limit} is set, and the controls {', '.join(unlimited)} know no such limit; leave one out"
    if cfg.composition.max_distance >= 2 and "random" not in names:
        yield "composition.max_distance compares with composed random permutations: add random to evaluation/controls"
    missing = [name for name in ("vanilla", "random") if name not in names]
    if missing and cfg.judging.enabled:
        yield f"judging compares with the controls vanilla and random: add {' and '.join(missing)} to them"
    if cfg.fitted:
        yield from _fit_rules(cfg, cfg.fitted)


def _fit_rules(cfg: Config, fitted: list[str]) -> Iterator[str]:
    who = " and ".join(fitted)
    if not cfg.evaluation.full:
        yield f"{who} need activations, and evaluation={cfg.evaluation.level} computes none"
    elif cfg.dataset.documents == 0 and cfg.dataset.part == "all":
        yield (
            f"dataset.documents=0 with dataset.part=all evaluates every document and leaves none to fit {who} on; "
            "set dataset.documents to a number, or dataset.part=evaluation"
        )
    elif cfg.dataset.documents == 0 and cfg.evaluation.fit_documents is None:
        yield f"dataset.documents=0 does not say on how many documents to fit {who}; set evaluation.fit_documents"
