"""Similarities that follow from the weights of two SAEs, beside the paper's squared distance."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.problem import MatchingProblem, check_same_stream, unit_rows
from sae_match.matching.similarity import RowDistance, Similarity, weights_read
from sae_match.options import option
from sae_match.saes import fold
from sae_match.saes.folding import FoldingKind


@option
class DecoderCosine(RowDistance):
    """Cosine of decoder rows, as the squared distance 2 - 2 cos of rows of unit norm; no folding enters.

    A row of zeros has no direction and stays zero: at squared distance 1 from every unit row, 0 from another zero row.
    """

    reads_folding: ClassVar[bool] = False
    name: str = "decoder_cosine"

    def problem(self, pair: FeaturePair) -> MatchingProblem:
        """Decoder rows of unit norm."""
        check_same_stream(*pair.weights)
        left, right = (unit_rows(sae.W_dec.cpu()) for sae in pair.weights)
        return MatchingProblem(left, right, self.rejection_cost, self.n_pairs).part(*pair.kept())

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """The SAEs."""
        return {"saes": [sae.content_hash for sae in pair.weights]}

    def numbers_per_feature(self, d_model: int) -> int:
        """One decoder row."""
        return d_model


@option
class VirtualWeights(Similarity):
    """What the encoder of B reads of the write of A: S_ij = d_i . e_j of decoder row i of A and encoder column j of B.

    Folded (Eq. 4) theta_i d_i . e_j / theta_j: the pre-activation of j, in units of its threshold, that i gives it when
    i is active at its own. What the blocks between the layers do is not in it.
    """

    name: str = "virtual_weights"

    def matrix(self, pair: FeaturePair) -> Float[Tensor, "K_a K_b"]:
        """Products of the features that are matched."""
        check_same_stream(*pair.weights)
        a, b = pair.to_fold()
        if pair.folding is FoldingKind.theta:
            a, b = fold(a), fold(b)
        kept_a, kept_b = pair.kept()
        return (a.W_dec[kept_a.to(a.device)] @ b.W_enc[:, kept_b.to(b.device)]).cpu()

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """The SAEs, and their folding scales where they are folded."""
        return weights_read(pair)
