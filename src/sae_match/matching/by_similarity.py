"""The one-to-one matching with the largest sum of given similarities, exact and with its proof.

The certified solver on a matrix S in memory. The cost of a pair is 2 c - 2 S_ij with a power of two c above all of
them; with c = 1, the squared distance of two unit vectors with that inner product. S itself is read wherever a product
of factors would be computed, and nothing of its size is made beside it: rows are quantized whenever they are needed.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.assignment.given import solve_given
from sae_match.assignment.workspace import lists_bytes, most_slots
from sae_match.errors import UserError
from sae_match.files import GIB
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import SimilarityProblem

logger = logging.getLogger(__name__)

BLOCK_ROWS = 1024
"""Rows that are quantized at a time."""


class SimilarityMatching(NamedTuple):
    """A matching, its mean similarity, and how far (at most) that of another one could be above it."""

    permutation: Permutation
    mean: float
    gap: float


def required_bytes(n_a: int, n_b: int) -> int:
    """Peak memory: the similarities in float32, twice where A is the wider side; candidate lists; blocks of rows."""
    n, m = sorted((n_a, n_b))
    return (4 if n_a <= n_b else 8) * n * m + lists_bytes(n, m, False) + 8 * min(BLOCK_ROWS, n) * m


def match_by_similarity(
    similarity: Float[Tensor, "F_a F_b"],
    *,
    memory_limit_gib: float | None = None,
    block_rows: int = BLOCK_ROWS,
) -> SimilarityMatching:
    """Every feature of the narrower side gets a partner so that the sum of similarities is largest.

    Among equal optima it returns the one that is lexicographically least for the narrower side (A's, if both are
    equally wide). The matrix is not changed; it is copied once where A is the wider side.

    Args:
        similarity: float32, of any finite magnitude.
        memory_limit_gib: what the search may use, the matrix included; None = what the machine has available.
        block_rows: rows quantized at a time; changes memory use, not the result.

    Raises:
        UserError: another type, an empty side, NaN or infinity.
    """
    n_a, n_b = similarity.shape
    if similarity.dtype != torch.float32:
        raise UserError(f"similarities are float32, got {similarity.dtype}: convert them first")
    SimilarityProblem(similarity).check()
    rows = similarity.detach().cpu()
    matrix = (rows if n_a <= n_b else rows.T).contiguous().numpy()
    n, m = matrix.shape
    # The matrix exists already: of what is available it takes nothing more.
    limit = psutil.virtual_memory().available + 4 * n * m if memory_limit_gib is None else memory_limit_gib * GIB
    slots = most_slots(n, m, False, limit - required_bytes(n, m))
    solution = solve_given(matrix, block_rows, torch.get_num_threads(), slots)
    if solution.stopped:
        logger.warning("the search stopped early (%s): the matching may not be the best", solution.stopped)
    found = matrix[np.arange(n), solution.partner]
    total = float(found.sum(dtype=np.float64))
    deficit = solution.deficit
    if deficit is None:  # no matching can have more than every row's largest similarity
        deficit = float(matrix.max(axis=1).sum(dtype=np.float64)) - total
    return SimilarityMatching(Permutation.of_narrower(solution.partner, n_a, n_b), total / n, deficit / n)
