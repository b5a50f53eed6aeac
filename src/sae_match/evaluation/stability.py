"""How much of a dictionary comes back when it is trained again: any number of seeds of one layer, pair by pair."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.nulls import MatchFeatures, rotated
from sae_match.matching import Permutation, make_solver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import match_features
from sae_match.matching.planted import decoder_cosines, planted_between
from sae_match.matching.problem import unit_rows
from sae_match.matching.similarity import Similarity
from sae_match.options import option
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind
from sae_match.saes.site import Site

SEEDS, ROTATED, RANDOM = "seeds", "rotated", "random"
"""Partners of a pair: the exact matching, the one where the second dictionary is rotated, and random ones."""
REAPPEARS = 0.7
"""A feature reappears where the |cosine| of its partner is above this, as in Paulo and Belrose (2025)."""
VARIANCE = 0.9
"""Share of the unstable rows' sum of squares that the directions of their subspace hold."""


@option
class AbsoluteDecoderCosine(Similarity):
    """|cosine| of the decoder rows: a feature and its mirror image count as one."""

    name: str = "absolute_decoder_cosine"

    def matrix(self, pair: FeaturePair) -> Float[Tensor, "K_a K_b"]:
        """|cosine| of every pair of features that are matched; 0 where a row is zero."""
        kept_a, kept_b = pair.kept()
        rows, others = (unit_rows(sae.W_dec[kept.to(sae.device)]) for sae, kept in ((pair.a, kept_a), (pair.b, kept_b)))
        return (rows @ others.T).abs_().clamp_(max=1.0).cpu()

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """Both SAEs; nothing is folded or read from text."""
        return {"saes": [sae.content_hash for sae in (pair.a, pair.b)]}


@dataclass(frozen=True)
class Subspace:
    """How much of some rows lies in the span of others.

    Attributes:
        rank: dimensions of that span.
        share: share of the rows' sum of squares in it; NaN where there are no rows on a side.
        random: what a random subspace of that rank holds on average: rank / d, whatever the rows are.
    """

    rank: float
    share: float
    random: float


@dataclass(frozen=True)
class Partners:
    """One-to-one partners of two dictionaries a and b, found in one of three ways.

    Attributes:
        a, b: positions of the dictionaries in the list that was compared.
        variant: `seeds`, `rotated` or `random`.
        permutation: feature of a -> feature of b; of two widths the wider one has features without a partner.
        cosine: [F_a] |cosine| of each feature's decoder row and its partner's (b's rotated one for `rotated`); NaN
            where there is none.
        subspace: the unstable rows of either side in the span of the other's unstable rows, mean of both directions.
    """

    a: int
    b: int
    variant: str
    permutation: Permutation
    cosine: Float[Tensor, " F_a"]
    subspace: Subspace

    def of(self, sae: int) -> tuple[Tensor, Float[Tensor, " F"]]:
        """Partner (-1 = none) and |cosine| of every feature of `a`, or of `b`."""
        if sae == self.a:
            return self.permutation.indices, self.cosine
        return self.permutation.inverse().indices, _of_partners(self.permutation, self.cosine)


@dataclass(frozen=True)
class Stability:
    """What `stability` found.

    Attributes:
        widths: number of features of every SAE.
        partners: of every unordered pair and every variant.
        threshold: |cosine| above which a feature reappears.
        warnings: pairs that were trained from one initialization.
    """

    widths: tuple[int, ...]
    partners: list[Partners]
    threshold: float
    warnings: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per unordered pair and variant.

        Columns: a, b, variant; pw_mcc: mean |cosine| over the matched pairs; shared_fraction: share of these above the
        threshold; unstable: features of a that do not reappear in b; subspace_rank, subspace_share,
        subspace_share_random: as in `Subspace`.
        """
        rows = []
        for found in self.partners:
            matched = found.cosine[~found.cosine.isnan()]
            reappears = matched > self.threshold
            rows.append(
                {
                    "a": found.a,
                    "b": found.b,
                    "variant": found.variant,
                    "pw_mcc": float(matched.mean(dtype=torch.float64)),
                    "shared_fraction": float(reappears.double().mean()),
                    "unstable": len(found.cosine) - int(reappears.sum()),
                    "subspace_rank": found.subspace.rank,
                    "subspace_share": found.subspace.share,
                    "subspace_share_random": found.subspace.random,
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """The table of pairs."""
        return self.to_frame().to_string(index=False)

    def reappearing(self, sae: int = 0) -> Float[Tensor, " F"]:
        """For every feature of one SAE: share of the other SAEs in which its partner's |cosine| is above the threshold.

        Raises:
            UserError: no such SAE.
        """
        every = [cosine > self.threshold for _, _, cosine in self._others(sae, SEEDS)]
        return torch.stack(every).double().mean(dim=0).float()

    def features(self, sae: int = 0) -> pd.DataFrame:
        """One row per feature of one SAE and other SAE.

        Columns: feature; other: position of the other SAE; partner: its feature there, -1 = none; cosine,
        cosine_rotated, cosine_random: |cosine| with the partner, with that in the rotated dictionary, and with a random
        one (NaN without one); reappearing: as in `reappearing`, the same in every row of a feature.

        Raises:
            UserError: no such SAE.
        """
        share = self.reappearing(sae).numpy()
        nulls = [{other: cosine for other, _, cosine in self._others(sae, name)} for name in (ROTATED, RANDOM)]
        tables = [
            pd.DataFrame(
                {
                    "feature": np.arange(self.widths[sae]),
                    "other": other,
                    "partner": partner.numpy(),
                    "cosine": cosine.numpy(),
                    "cosine_rotated": nulls[0][other].numpy(),
                    "cosine_random": nulls[1][other].numpy(),
                    "reappearing": share,
                }
            )
            for other, partner, cosine in self._others(sae, SEEDS)
        ]
        return pd.concat(tables, ignore_index=True)

    def _others(self, sae: int, variant: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Position of every other SAE, and the features' partners there with their |cosine|."""
        if not 0 <= sae < len(self.widths):
            raise UserError(f"SAE {sae} is outside the list of {len(self.widths)} (0..{len(self.widths) - 1})")
        for found in self.partners:
            if found.variant == variant and sae in (found.a, found.b):
                yield found.a + found.b - sae, *found.of(sae)


def stability(
    saes: Sequence[SparseAutoencoder],
    *,
    threshold: float = REAPPEARS,
    variance: float = VARIANCE,
    seed: int = 0,
    match: MatchFeatures = match_features,
) -> Stability:
    """Compare every two of several dictionaries of one layer and site, such as seeds of one training.

    Features are paired one-to-one so that the sum of |decoder cosine| is largest (exact); the mean over the pairs is
    PW-MCC (Song et al., 2025). Beside each pair stand two nulls: the same matching where the second dictionary is
    rotated, and a random permutation. Folding and activations play no part. A `UserWarning` says where two were trained
    from one initialization. Memory per pair: 4 F_a F_b bytes and the assignment's lists.

    Args:
        saes: at least two, of one d_model; their widths may differ.
        threshold: a feature reappears where the |cosine| of its partner is above it, in [0, 1).
        variance: in (0, 1], for `subspace_share`.
        seed: of the rotation and of the random permutations.
        match: matches a pair by a similarity and a solver; `match_features`, or one that knows earlier answers.

    Raises:
        UserError: fewer than two SAEs, different d_model or sites, a threshold or share out of range, too little
            memory.
    """
    _check(saes, threshold, variance)
    partners: list[Partners] = []
    found: list[str] = []
    for i, j in combinations(range(len(saes)), 2):
        a, b = saes[i], saes[j]
        if (planted := planted_between(a, b)) is not None:
            found.append(f"SAEs {i} and {j}: {planted}")
            warnings.warn(found[-1], UserWarning, stacklevel=2)
        for variant, other in ((SEEDS, b), (ROTATED, rotated(b, seed)), (RANDOM, b)):
            if variant == RANDOM:
                permutation = Permutation.random(a.width, b.width, seed=seed)
            else:
                pair = FeaturePair(a, other, FoldingKind.none)
                permutation = match(AbsoluteDecoderCosine(), make_solver("certified"), pair).permutation
            cosine = torch.full((a.width,), torch.nan, dtype=torch.float64)
            cosine[permutation.matched] = decoder_cosines(a, other, permutation).abs().clamp(max=1.0)
            left, right = (
                unit_rows(sae.W_dec)[~(one > threshold).to(sae.device)]
                for sae, one in ((a, cosine), (other, _of_partners(permutation, cosine)))
            )
            subspace = shared_subspace(left, right, variance)
            partners.append(Partners(i, j, variant, permutation, cosine, subspace))
    return Stability(tuple(sae.width for sae in saes), partners, threshold, tuple(found))


def _of_partners(permutation: Permutation, cosine: Float[Tensor, " F_a"]) -> Float[Tensor, " F_b"]:
    """The |cosine| of every feature of b with its partner in a; NaN where there is none."""
    theirs = torch.full((permutation.n_b,), torch.nan, dtype=cosine.dtype)
    theirs[permutation.indices[permutation.matched]] = cosine[permutation.matched]
    return theirs


def shared_subspace(
    rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"], variance: float = VARIANCE
) -> Subspace:  # fmt: skip
    """How much of either side's rows lies in the leading directions of the other side's; mean of both directions.

    More rows than d span everything, so that a share of 1 in their span would mean nothing. Therefore the span is that
    of the fewest principal directions (uncentered) that hold `variance` of the rows' sum of squares. A random subspace
    of that rank holds rank / d on average; rows of one model are not spread evenly over R^d, so that a share above that
    may also come from directions that all its features prefer: compare with the share of the variant `random`, where
    nearly all features count as unstable.
    """
    d = rows.shape[1]
    if min(len(rows), len(others)) == 0:
        return Subspace(0.0, float("nan"), float("nan"))
    both = [_share_in(one, _directions(other, variance)) for one, other in ((rows, others), (others, rows))]
    rank = sum(rank for rank, _ in both) / 2
    return Subspace(rank, sum(share for _, share in both) / 2, rank / d)


def _directions(rows: Float[Tensor, "m d"], variance: float) -> Float[Tensor, "d r"]:
    """The fewest principal directions that hold a share of the rows' sum of squares."""
    x = rows.double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    held = values.flip(0).clamp(min=0).cumsum(0)
    rank = int((held < variance * held[-1] * (1 - 1e-12)).sum()) + 1
    return vectors.flip(1)[:, :rank]


def _share_in(rows: Float[Tensor, "n d"], directions: Float[Tensor, "d r"]) -> tuple[int, float]:
    x = rows.double()
    total = float(x.square().sum())
    return directions.shape[1], float((x @ directions).square().sum()) / total if total else float("nan")


def _check(saes: Sequence[SparseAutoencoder], threshold: float, variance: float) -> None:
    if len(saes) < 2:
        raise UserError(f"stability compares at least two SAEs of one layer, got {len(saes)}")
    for sae in saes:
        if not isinstance(sae, SparseAutoencoder):
            raise UserError(f"stability compares SparseAutoencoders, got a {type(sae).__name__}: load_sae reads one")
    first = saes[0]
    for place, sae in enumerate(saes):
        if sae.d_model != first.d_model or len({first.site, sae.site} - {Site.unknown}) > 1:
            raise UserError(
                f"SAE {place} ({sae.source}) reads {sae.site.value} with d_model {sae.d_model}, SAE 0 "
                f"{first.site.value} with {first.d_model}: dictionaries of different sites are not compared"
            )
    if not 0 <= threshold < 1:
        raise UserError(f"threshold={threshold}: a |cosine| in [0, 1)")
    if not 0 < variance <= 1:
        raise UserError(f"variance={variance}: a share in (0, 1]")
