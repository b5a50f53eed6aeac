"""What a job keeps per document, so that a metric and its bootstrap can be computed again, in pairs with another job's.

Two statistics cover every metric averaged over documents: a ratio of sums (matching_score, matching_iou, l0,
delta_loss), and explained variance or r2, whose variances need the sum vectors of error and target as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums of one metric over the tokens of each document, float64.

    A ratio: `numerator` and `denominator`, the rest None. A reconstruction: the squared lengths of error and target,
    their sum vectors (rotated, see `rotated`), and the number of tokens.

    Attributes:
        numerator, denominator: [documents].
        tokens: [documents].
        numerator_vector, denominator_vector: [documents, K].
    """

    numerator: Floats
    denominator: Floats
    tokens: Floats | None = None
    numerator_vector: Floats | None = None
    denominator_vector: Floats | None = None

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.numerator)


def rotated(vectors: Floats) -> Floats:
    """The rows of a [documents, d] matrix in at most as many dimensions as there are documents.

    An orthonormal change of basis: lengths of sums of rows, all that a variance needs, stay what they are.
    """
    documents, d = vectors.shape
    if d <= documents:
        return np.ascontiguousarray(vectors, dtype=np.float64)
    triangle: Floats = np.asarray(np.linalg.qr(vectors.T.astype(np.float64), mode="r"))
    return np.ascontiguousarray(triangle.T)


def spread(tokens: Floats, total: Floats, squared: Floats) -> Floats:
    """Sum over tokens and dimensions of the squared deviation from the per-dimension mean.

    Args:
        tokens, squared: [..., 1]; total: [..., d].
    """
    return np.asarray(squared[..., 0] - np.square(total).sum(axis=-1) / tokens[..., 0])
