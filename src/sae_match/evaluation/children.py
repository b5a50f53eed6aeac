"""One to few: the features of a wide SAE that a feature of a narrow one has become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.evaluation.nulls import MatchFeatures, exceeded_by, rotated
from sae_match.matching import UNMATCHED
from sae_match.matching.baselines import NearestSolver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import match_features
from sae_match.matching.weight_similarities import DecoderCosine
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
"""Share of wide features that may have a parent by chance."""


@dataclass(frozen=True)
class Children:
    """Which narrow feature each wide feature belongs to.

    Attributes:
        parent: [F_wide] the narrow feature whose decoder row is most similar; -1 where the similarity is one that a
            rotated SAE reaches.
        cosine: [F_wide] decoder cosine with the most similar narrow feature.
        threshold: the cosine that a parent has to exceed.
        width: features of the narrow SAE.
    """

    parent: Int[Tensor, " F_wide"]
    cosine: Float[Tensor, " F_wide"]
    threshold: float
    width: int

    @property
    def counts(self) -> Int[Tensor, " F_narrow"]:
        """How many children each narrow feature has."""
        return torch.bincount(self.parent[self.parent != UNMATCHED], minlength=self.width)

    def numbers(self) -> dict[str, float]:
        """Metrics: children per narrow feature, the share of narrow features that have several, and the share of wide
        features without a parent."""
        return {
            "children_per_feature": float(self.counts.double().mean()),
            "split_features": float((self.counts > 1).double().mean()),
            "without_parent": float((self.parent == UNMATCHED).double().mean()),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per wide feature with a parent: `feature` (narrow), `child` (wide), `decoder_cosine`; by feature, the
        most similar child first."""
        import pandas as pd

        child = torch.nonzero(self.parent != UNMATCHED).flatten()
        columns = {"feature": self.parent[child], "child": child, "decoder_cosine": self.cosine[child]}
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return table.sort_values(["feature", "decoder_cosine"], ascending=[True, False], ignore_index=True)


def find_children(
    narrow: SparseAutoencoder,
    wide: SparseAutoencoder,
    alpha: float = ALPHA,
    seed: int = 0,
    match: MatchFeatures = match_features,
) -> Children:
    """The children of every feature of a narrow SAE in a wide one.

    Each wide feature has one parent, the narrow feature with the largest decoder cosine, if that exceeds what at most a
    share `alpha` of wide features reach with a narrow SAE that is turned at random (`evaluation.nulls`).

    Args:
        seed: of the rotation.
        match: matches a pair by a similarity and a solver.

    Raises:
        UserError: SAEs over residual streams of different widths, or too little memory.
    """
    how = DecoderCosine(), NearestSolver()
    found = match(*how, FeaturePair(wide, narrow, FoldingKind.none))
    null = match(*how, FeaturePair(wide, rotated(narrow, seed), FoldingKind.none))
    # The confidence is minus the squared distance of unit rows, 2 - 2 cos.
    cosine, threshold = 1 + found.confidence / 2, 1 + exceeded_by(null.confidence, alpha) / 2
    parent = found.permutation.indices.masked_fill(cosine <= threshold, UNMATCHED)
    return Children(parent, cosine, threshold, narrow.width)
