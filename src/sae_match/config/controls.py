"""`evaluation.controls`: the alternatives that are measured beside the matching, and their rules. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_match.config.schema import Config, EvaluationConfig


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


SOLVED = (Control.greedy, Control.nearest, Control.mutual, Control.cosine)
"""Found by a baseline solver from the same parameters as the matching."""
FITTED = (Control.correlation, Control.linear_map)
"""Fitted on activations of other text than is evaluated."""


def chosen(controls: Sequence[Control]) -> tuple[Control, ...]:
    """The controls that a configuration names, in the order of `Control`; `all` stands for every one."""
    every = tuple(control for control in Control if control is not Control.all)
    return every if Control.all in controls else tuple(control for control in every if control in controls)


def fits(evaluation: EvaluationConfig) -> bool:
    """Whether a control needs text to be fitted on."""
    return bool(set(FITTED) & set(chosen(evaluation.controls)))


def control_rules(cfg: Config) -> Iterator[str]:
    """Controls that can be computed, and text to fit them on."""
    evaluation, named = cfg.evaluation, list(cfg.evaluation.controls)
    controls = chosen(named)
    if len(set(named)) < len(named):
        yield f"evaluation.controls=[{', '.join(named)}]: each must be named once"
    solved = [control.value for control in controls if control in SOLVED]
    for limit in ("n_pairs", "rejection_cost"):
        if solved and getattr(cfg.matching, limit) is not None:
            yield f"matching.{limit} is set, and the controls {', '.join(solved)} know no such limit; leave one out"
    if cfg.composition.max_distance >= 2 and Control.random not in controls:
        yield "composition.max_distance compares with composed random permutations: add random to evaluation.controls"
    missing = [control.value for control in (Control.vanilla, Control.random) if control not in controls]
    if missing and cfg.judging.enabled:
        yield f"judging compares with the controls vanilla and random: add {' and '.join(missing)} to them"
    if evaluation.fit_documents is not None and evaluation.fit_documents < 1:
        yield f"evaluation.fit_documents={evaluation.fit_documents}: must be at least 1"
    if fits(evaluation):
        yield from _fit_rules(cfg, [control.value for control in controls if control in FITTED])


def _fit_rules(cfg: Config, fitted: list[str]) -> Iterator[str]:
    who = " and ".join(fitted)
    if cfg.evaluation.level.value != "full":
        yield f"the controls {who} need activations, and evaluation={cfg.evaluation.level} computes none"
    elif cfg.dataset.documents == 0 and cfg.dataset.part == "all":
        yield (
            f"dataset.documents=0 with dataset.part=all evaluates every document and leaves none to fit {who} on; "
            "set dataset.documents to a number, or dataset.part=evaluation"
        )
    elif cfg.dataset.documents == 0 and cfg.evaluation.fit_documents is None:
        yield f"dataset.documents=0 does not say on how many documents to fit {who}; set evaluation.fit_documents"
