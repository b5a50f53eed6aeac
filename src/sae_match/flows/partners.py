"""The most similar feature of either side of a pair of dictionaries, in blocks of the matrix of similarities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.similarity import Comparison, Similarity
from sae_match.matching.weight_similarities import DecoderCosine

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BestPartners:
    """The most similar feature of the other side, of every feature that is compared; the lowest index among equals.

    Attributes:
        features_a, features_b: [K_a], [K_b] the features that are compared, ascending.
        child, child_similarity: [K_a] of each of A its best feature of B.
        parent, parent_similarity: [K_b] of each of B its best feature of A.
    """

    features_a: Ints
    features_b: Ints
    child: Ints
    child_similarity: Floats
    parent: Ints
    parent_similarity: Floats

    @property
    def similarity(self) -> Float[Tensor, " K_a_plus_K_b"]:
        """Similarity of every feature of both sides with its best partner."""
        return torch.from_numpy(np.concatenate([self.child_similarity, self.parent_similarity]))


def measured_in(similarity: Comparison) -> dict[str, str]:
    """Name, label and unit of the numbers that a comparison gives pairs of features here: larger = more alike."""
    if isinstance(similarity, DecoderCosine):
        label, unit = "cosine of decoder rows", "cosine"
    elif isinstance(similarity, Similarity):
        label, unit = similarity.name.replace("_", " "), ""
    else:
        label, unit = f"minus the squared distance ({similarity.name.replace('_', ' ')})", "squared distance"
    return {"name": similarity.name, "label": label, "unit": unit}


BLOCK_ROWS = 4096
"""Features of A that are compared with all of B at a time."""


def required_bytes(width: int, block_rows: int = BLOCK_ROWS) -> int:
    """Peak of `best_partners` beside the dictionaries and the rows that are compared: of every similarity of a block,
    itself, a copy and two masks."""
    return 10 * min(block_rows, width) * width


def best_partners(similarity: Comparison, pair: FeaturePair, block_rows: int) -> BestPartners:
    """The best partners in both directions, from one pass over the matrix of similarities.

    Similarities are in float32. Of row distances they are the cosine (`DecoderCosine`) or minus the squared distance.

    Args:
        block_rows: features of A compared with all of B at a time: 4 block_rows F_b bytes; not seen in the result
            beyond the rounding of float32 products.

    Raises:
        UserError: from the similarity, one with limits to the pairs, or a side of which no feature is compared.
    """
    if similarity.rejection_cost is not None or similarity.n_pairs is not None:
        raise UserError("a flow gives every feature its best partner: matching.rejection_cost and n_pairs do not apply")
    kept_a, kept_b = (kept.numpy() for kept in pair.kept())
    child, child_similarity = np.empty(len(kept_a), np.int64), np.empty(len(kept_a), np.float32)
    parent, parent_similarity = np.zeros(len(kept_b), np.int64), np.full(len(kept_b), -np.inf, np.float32)
    low = 0
    for block in _blocks(similarity, pair, block_rows):
        SimilarityProblem(block).check()
        values = block.numpy()
        rows, columns = values.argmax(axis=1), values.argmax(axis=0)
        high = low + len(values)
        child[low:high], child_similarity[low:high] = rows, values[np.arange(len(values)), rows]
        best = values[columns, np.arange(values.shape[1])]
        better = best > parent_similarity
        parent[better], parent_similarity[better] = columns[better] + low, best[better]
        low = high
    return BestPartners(kept_a, kept_b, kept_b[child], child_similarity, kept_a[parent], parent_similarity)


def _blocks(similarity: Comparison, pair: FeaturePair, block_rows: int) -> Iterator[Float[Tensor, "rows K_b"]]:
    """Similarities of the features that are compared, some rows at a time, on the CPU."""
    kept_a, kept_b = pair.kept()
    if min(len(kept_a), len(kept_b)) == 0:
        raise UserError(f"layers {pair.layers}: no feature of {'A' if len(kept_b) else 'B'} fires, so none is compared")
    if isinstance(similarity, Similarity):
        for rows in kept_a.split(block_rows):
            left_out = torch.ones(pair.a.width, dtype=torch.bool)
            left_out[rows] = False
            yield similarity.matrix(replace(pair, excluded=(left_out, pair.excluded[1])))
        return
    problem = similarity.problem(pair)
    if isinstance(problem, MatchingProblem):
        problem.check()
        left, right = problem.left.to(pair.a.device), problem.right.to(pair.a.device)
        right_square = right.square().sum(dim=1)
        for part in left.split(block_rows):
            products = part @ right.T
            if not isinstance(similarity, DecoderCosine):
                products.mul_(2).sub_(right_square).sub_(part.square().sum(dim=1, keepdim=True))
            yield products.cpu()
    else:
        yield problem.matrix
