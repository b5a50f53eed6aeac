"""The configuration's group `evaluation`: what is measured, on how much, against which controls and splices."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from sae_match.evaluation.controls import Control, Matcher, MatchingControl
from sae_match.evaluation.functional.contexts import FunctionalTests, Steering
from sae_match.evaluation.splices import Splice, SpliceUnits
from sae_match.evaluation.standard_splices import STANDARD, Quantiles
from sae_match.matching.similarity import Comparison
from sae_match.options import option
from sae_match.saes.folding import FoldingKind

PARTNERS = ("random_partner", "coactive_partner", "hard_negative", "most_affected")
"""Variants of functional tests beside the matchers."""
RESERVED = frozenset(
    ("matched", "unmapped", "ceiling", "composed", "exact", "sae", "model", "seeds", "rotated", *PARTNERS)
)
"""Variants that are neither a control nor an added splice."""
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class EvaluationLevel(StrEnum):
    """How much is evaluated."""

    weights_only = "weights_only"
    full = "full"


@option
class Evaluation:
    """What is measured beside the permutation itself."""

    level: EvaluationLevel
    """weights_only needs no model and no text; full = activations, reconstructions and token losses on text."""
    splice_documents: Count = 0
    """Delta loss, which needs a forward pass per splice, uses the first n documents; 0 = all. The other metrics
    always use all."""
    splice_windows_per_document: Count = 0
    """Delta loss uses the first n windows of each of those documents; 0 = all."""
    splice_units: SpliceUnits = SpliceUnits.as_folding
    """Units of the activations carried along the permutation: as_folding | theta | raw."""
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=list)
    """Eq. 6: one more splice per q in 0..1, which carries only the q share of pairs with the lowest decoder MSE."""
    fit_documents: Positive | None = None
    """On how many documents fitted controls and splices are fitted, none of them evaluated: the other part of the
    source (dataset.part), or the documents drawn next (part=all); null = as many as are evaluated."""
    batch_windows: Positive = 8
    """Windows per forward pass; changes memory use, not the result."""
    min_count: Positive = 10
    """Per-feature matching scores average over features that fire at least this often."""
    bootstrap_samples: Positive = 1000
    """Resamples over documents for the 95 % intervals."""
    null_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Match every pair once more with the second SAE's rows turned by a random rotation, for the matching and each
    control that is a matcher: null_threshold is the confidence that at most this share of features exceeds there,
    above_null the share that exceeds it in the pair itself. null = not asked. Solves each pair twice."""
    flow_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Find the flow graph of the span by the job's similarity (folder flow/): which feature continues which, and where
    features split, merge, begin and end. At most this share of features would have an edge if the next layer's
    dictionary were turned by a random rotation. null = not asked."""
    stability_seeds: list[str] | None = None
    """Compare all seeds of each layer's SAE (PW-MCC, shared fraction, features that reappear): the job's own, its
    second seed (sae.ceiling_filename), and these files or folders, absolute or below sae.root, with {layer}; [] =
    those two alone, null = not asked. With evaluation=weights_only the span may be a single layer."""
    controls: dict[str, Control] = Field(default_factory=dict)
    """Measured beside the matching on the same tokens, by any key: 'evaluation/controls=[random,greedy]'."""
    splices: dict[str, Splice] = Field(default_factory=dict)
    """Further splices beside the standard ones, by any key: +evaluation.splices.mine._target_=my_package.MySplice."""

    functional: FunctionalTests | None = None
    """Tests of what partners do in the model, of every matcher: evaluation/functional=all; null = none."""
    steering: Steering | None = None
    """Interventions along flows of matched features: evaluation/steering=flows; null = none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.functional is not None and not self.full:
            raise ValueError("evaluation.functional runs the model, and needs evaluation=full")
        if self.steering is not None and not self.full:
            raise ValueError("evaluation.steering runs the model, and needs evaluation=full")
        if self.quantiles and not self.full:
            raise ValueError("evaluation.quantiles are splices of the residual stream, and need evaluation=full")
        # The splices are named quantile_{q:g}.
        if len({f"{q:g}" for q in self.quantiles}) < len(self.quantiles):
            raise ValueError(
                f"evaluation.quantiles={self.quantiles}: each must be named once (six digits tell them apart)"
            )
        for kind in (self.controls, self.splices):
            names = [entry.name for entry in kind.values()]
            if taken := RESERVED.intersection(names):
                raise ValueError(f"{', '.join(sorted(taken))}: a name of the job's own rows; give another one")
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two controls or splices are called {', '.join(sorted(twice))}: rename one of them")
        return self

    @property
    def full(self) -> bool:
        """Whether text is read."""
        return self.level is EvaluationLevel.full

    def units(self, folding: FoldingKind) -> SpliceUnits:
        """Units of activations that splices carry: `as_folding` is theta for a folded matching and raw for an unfolded
        one (the paper's comparison). Without text nothing is carried, and they are raw."""
        if self.full and self.splice_units is not SpliceUnits.as_folding:
            return self.splice_units
        return SpliceUnits.theta if self.full and folding is FoldingKind.theta else SpliceUnits.raw

    @property
    def matchers(self) -> tuple[MatchingControl, ...]:
        """The controls that pair features."""
        return tuple(control for control in self.controls.values() if isinstance(control, MatchingControl))

    @property
    def similarities(self) -> tuple[Comparison, ...]:
        """What the controls that are matchers compare features by."""
        return tuple(control.similarity for control in self.matchers if isinstance(control, Matcher))

    @property
    def all_splices(self) -> tuple[Splice, ...]:
        """Every splice of an adjacent pair: the standard ones, quantiles, added ones and those of controls."""
        quantiles = (Quantiles(quantiles=tuple(self.quantiles)),) if self.quantiles else ()
        own = (splice for control in self.controls.values() for splice in control.splices())
        return (*STANDARD, *quantiles, *self.splices.values(), *own)

    @property
    def fitted(self) -> list[str]:
        """Names of the controls and splices that need text to be fitted on."""
        from_controls = [control.name for control in self.controls.values() if control.fitted]
        return list(dict.fromkeys(from_controls + [splice.name for splice in self.all_splices if splice.fitted]))
