"""What the partners of a sample of features do in the model: metrics of the functional tests.

Intervals resample documents (and with them the contexts in which a feature is tested), and features within them. All
matchers of a pair share the resamples, so that their differences are paired. In a mean over features each counts as
often as its contexts are drawn, with the number that it has on all of them: a ratio on few contexts is a biased one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from pydantic import Field

from sae_match.metrics.bootstrap import MIN_DOCUMENTS, Bootstrap, Estimate, Floats
from sae_match.metrics.description import Description
from sae_match.metrics.metric import Measured, Metric
from sae_match.options import option

NONE = -1
_CHUNK = 2**22
"""Numbers of a resampled array that are in memory at once, 32 MB."""


@dataclass(frozen=True)
class PartnerEffects:
    """What one matcher's partners of the n tested features do. None where a test was not run.

    Attributes:
        partner: [n] feature of B; -1 = none.
        quartile: [n] of the firing rate among the features that fire, 1 = rarest.
        matched, width: how many of all features of A have a partner, and how many there are; None for what is no
            matcher.
        context: [C] position of each context's feature, ascending; every feature has at least one.
        document: [C] 0-based document of each context.
        clean, ablated: [C] the partner's activation with and without the feature, summed over the tokens on which the
            feature fires.
        rank: [n] of the partner among all of B by lost activation, 1 = most; 0 = no partner.
        kl_ablated, kl_substituted: [C] nats, 0 without a partner.
        fingerprint, fingerprint_rank: [n] correlation of the effects on the loss, and its rank among all of B.
        confidence: [n] by which the matcher orders its pairs; NaN without a partner.
    """

    partner: Int[np.ndarray, " n"]
    quartile: Int[np.ndarray, " n"]
    context: Int[np.ndarray, " C"]
    document: Int[np.ndarray, " C"]
    matched: int | None = None
    width: int | None = None
    clean: Float[np.ndarray, " C"] | None = None
    ablated: Float[np.ndarray, " C"] | None = None
    rank: Int[np.ndarray, " n"] | None = None
    kl_ablated: Float[np.ndarray, " C"] | None = None
    kl_substituted: Float[np.ndarray, " C"] | None = None
    fingerprint: Float[np.ndarray, " n"] | None = None
    fingerprint_rank: Int[np.ndarray, " n"] | None = None
    confidence: Float[np.ndarray, " n"] | None = None

    def per_feature(self, weights: Floats, values: Float[np.ndarray, " C"]) -> Floats:
        """[r, n] sums over each feature's contexts, weighted; weights are [r, C]."""
        starts = np.flatnonzero(np.diff(self.context, prepend=-1))
        return np.asarray(np.add.reduceat(weights * values, starts, axis=1))

    @property
    def drops(self) -> Floats:
        """[n] lost share of each partner's activation, in -1..1; 0 without a partner or where it is silent."""
        assert self.clean is not None and self.ablated is not None
        once = np.ones((1, len(self.context)))
        clean, ablated = self.per_feature(once, self.clean)[0], self.per_feature(once, self.ablated)[0]
        return np.where(clean > 0, np.clip(1 - ablated / np.where(clean > 0, clean, 1), -1, 1), 0.0)

    def drawn(self, weights: Floats) -> Floats:
        """[r, n] mean weight of each feature's contexts."""
        return self.per_feature(weights, 1 / np.bincount(self.context)[self.context])

    @property
    def silent(self) -> npt.NDArray[np.bool_]:
        """[n] which partners are active nowhere where their feature is."""
        assert self.clean is not None
        total = self.per_feature(np.ones((1, len(self.context))), self.clean)[0]
        return np.asarray((total == 0) & (self.partner != NONE))


Statistic = Callable[[Floats, Floats], Floats]
"""From weights of contexts [r, C] and of features [r, n] to a number each, [r]."""


class FunctionalMetric(Metric):
    """A metric of what partners do in the model: a function of the effects, resampled over documents and features."""

    takes = PartnerEffects

    @abstractmethod
    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """How the number follows from weights of contexts and features; None where its test was not run."""

    def measured(self, subject: PartnerEffects, bootstrap: Bootstrap) -> Measured | None:
        """The number on all contexts and features, with resamples of both."""
        statistic = self.statistic(subject)
        if statistic is None:
            return None
        n, contexts = len(subject.partner), len(subject.context)
        draws = bootstrap.draws(n)
        pieces = max(1, len(draws) * contexts // _CHUNK)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(statistic(np.ones((1, contexts)), np.ones((1, n)))[0])
            resampled = [
                statistic(documents[:, subject.document], features)
                for documents, features in zip(
                    np.array_split(bootstrap.counts, pieces), np.array_split(draws, pieces), strict=True
                )
            ]
        replicates = np.concatenate(resampled)
        replicates[~np.isfinite(replicates)] = np.nan  # a resample in which nothing was removed
        if bootstrap.n_documents < MIN_DOCUMENTS:
            replicates = np.full_like(replicates, np.nan)
        return Measured(value, n, Estimate(value, replicates))


Quartile = Annotated[int, Field(ge=1, le=4)] | None


def _mean(values: Floats, weights: Floats) -> Floats:
    """[r] weighted means of values [r or 1, n], those that are NaN left out."""
    known = np.isfinite(values)
    return np.asarray((weights * np.where(known, values, 0)).sum(axis=1) / (weights * known).sum(axis=1))


def mean_over_features(effects: PartnerEffects, values: npt.NDArray[np.generic]) -> Statistic:
    """The mean over features of [n] values, each as often as its contexts are drawn; NaN is left out."""
    row = values.astype(np.float64)[None]
    return lambda contexts, features: _mean(row, features * effects.drawn(contexts))


@option
class _ByQuartile(FunctionalMetric):
    """One over all tested features, or over those of one quartile of firing rate."""

    quartile: Quartile = None

    def kept(self, effects: PartnerEffects) -> npt.NDArray[np.bool_]:
        """[n] which features count."""
        return np.asarray(effects.quartile == self.quartile if self.quartile else effects.quartile > 0)

    def described(self, name: str, label: str, unit: str = "", headline: bool = True) -> Description:
        """The description, with the quartile in the name."""
        if self.quartile is None:
            return Description(
                name=name, label=label, unit=unit, better="higher", headline=headline, tracked=True, compared=True,
                difference=True,
            )  # fmt: skip
        end = "rarest" if self.quartile == 1 else "most frequent" if self.quartile == 4 else f"{self.quartile} of 4"
        label = f"{label}, {end}"
        return Description(name=f"{name}/q{self.quartile}", label=label, unit=unit, better="higher", figure="none")


@option
class Deactivation(_ByQuartile):
    """Lost share of the partner's activation when the feature is removed, mean over features.

    drop_j = 1 - sum f_j(without i) / sum f_j over the tokens on which i fires, clipped to [-1, 1]; no partner, or one
    that is silent there, counts 0.
    """

    @property
    def about(self) -> Description:
        """One description per quartile."""
        return self.described("deactivation", "partner's drop without the feature", unit="share")

    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """Mean of the drops."""
        if effects.clean is None:
            return None
        return mean_over_features(effects, np.where(self.kept(effects), effects.drops, np.nan))


@option
class Substitution(_ByQuartile):
    """How far the feature can stand in for its partner: R = 1 - sum D_sub / sum D_abl over the pairs.

    D_abl and D_sub are the KL divergences of the predictions without the partner, and with the feature in its place. 1
    = interchangeable, 0 = no better than removing it, below 0 = harmful.
    """

    @property
    def about(self) -> Description:
        """One description per quartile."""
        return self.described("substitution", "substitution R")

    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """Ratio of sums over the features that have a partner."""
        removed, replaced = effects.kl_ablated, effects.kl_substituted
        if removed is None or replaced is None:
            return None
        kept = self.kept(effects)

        def ratio(contexts: Floats, features: Floats) -> Floats:
            sums = [(features * effects.per_feature(contexts, kl))[:, kept].sum(axis=1) for kl in (removed, replaced)]
            return np.asarray(1 - sums[1] / sums[0])

        return ratio


@option
class Fingerprint(_ByQuartile):
    """Correlation over tokens of the first-order effects of feature and partner on the loss, mean over features.

    e_i(tau) = -f_i(tau) d_i . dL/dx(tau). No partner counts 0.
    """

    @property
    def about(self) -> Description:
        """One description per quartile."""
        return self.described("fingerprint", "correlation of effects on the loss", headline=False)

    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """Mean of the correlations."""
        if effects.fingerprint is None:
            return None
        return mean_over_features(effects, np.where(self.kept(effects), effects.fingerprint, np.nan))


def quality_area(removed: Floats, replaced: Floats, weights: Floats) -> Floats:
    """[r] weighted mean over n of R = 1 - sum D_sub / sum D_abl of the first n pairs.

    Args:
        removed, replaced: [r, N] D_abl and D_sub of every pair, the surest first.
        weights: [r, N] of the points; those before anything has been removed are left out.
    """
    below, above = np.cumsum(removed, axis=1), np.cumsum(replaced, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(np.where(below > 0, 1 - above / below, np.nan), weights)


class AUSQC(FunctionalMetric):
    """Area under the substitution quality curve: R of the matcher's n surest pairs, averaged over n.

    Pairs with equal confidence are in the order of their features. A matcher without confidence has none.
    """

    about = Description(name="ausqc", label="AUSQC", better="higher", tracked=True, compared=True, difference=True)

    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """Mean of the curve; points at which nothing has been removed yet are left out."""
        removed, replaced, confidence = effects.kl_ablated, effects.kl_substituted, effects.confidence
        if removed is None or replaced is None or confidence is None:
            return None
        known = np.flatnonzero(np.isfinite(confidence))
        order = known[np.argsort(-confidence[known], kind="stable")]

        def area(contexts: Floats, features: Floats) -> Floats:
            below, above = (features * effects.per_feature(contexts, kl) for kl in (removed, replaced))
            return quality_area(below[:, order], above[:, order], features[:, order])

        return area


Share = Literal["coverage", "deactivation_top1", "deactivation_mrr", "deactivation_silent", "fingerprint_mrr"]
_SHARES: dict[Share, tuple[str, str]] = {
    "coverage": ("features with a partner", "higher"),
    "deactivation_top1": ("partner loses most activation", "higher"),
    "deactivation_mrr": ("reciprocal rank by lost activation", "higher"),
    "deactivation_silent": ("features with a silent partner", "lower"),
    "fingerprint_mrr": ("reciprocal rank by effects on the loss", "higher"),
}


@option
class FunctionalShare(FunctionalMetric):
    """A share of features, or a mean reciprocal rank.

    `coverage`: features of all of A that have a partner. `deactivation_top1`: the partner is the feature of B that
    loses most activation. `deactivation_mrr`, `fingerprint_mrr`: mean of 1 / rank of the partner among all of B, 0
    without one. `deactivation_silent`: partners that are active on no token on which the feature is.
    """

    share: Share

    @property
    def about(self) -> Description:
        """One description per share."""
        label, better = _SHARES[self.share]
        return Description(
            name=self.share, label=label, unit="share", better=better, figure="none",  # type: ignore[arg-type]
            tracked=self.share == "deactivation_top1", difference=self.share != "coverage",
        )  # fmt: skip

    def measured(self, subject: PartnerEffects, bootstrap: Bootstrap) -> Measured | None:
        """Coverage is exact; the others are resampled."""
        if self.share != "coverage":
            return super().measured(subject, bootstrap)
        if subject.matched is None or subject.width is None:
            return None
        return Measured(subject.matched / subject.width, subject.width)

    def statistic(self, effects: PartnerEffects) -> Statistic | None:
        """Mean over the tested features."""
        if self.share == "deactivation_silent":
            return None if effects.clean is None else mean_over_features(effects, effects.silent)
        rank = effects.fingerprint_rank if self.share == "fingerprint_mrr" else effects.rank
        if rank is None:
            return None
        if self.share == "deactivation_top1":
            return mean_over_features(effects, rank == 1)
        return mean_over_features(effects, np.where(rank > 0, 1 / np.maximum(rank, 1), 0.0))


FUNCTIONAL: tuple[FunctionalMetric, ...] = (
    *(kind(quartile=q) for kind in (Deactivation, Substitution, Fingerprint) for q in (None, 1, 2, 3, 4)),
    AUSQC(),
    *(FunctionalShare(share=name) for name in _SHARES),
)
"""In the order of a table's columns."""
