"""Baselines on a matrix of given similarities; the lowest index first among equals."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.permutation import UNMATCHED, Permutation

Ints = npt.NDArray[np.int64]


def nearest_of(matrix: Float[Tensor, "n m"]) -> Permutation:
    """Every row to its most similar column; many-to-one."""
    return Permutation(torch.from_numpy(_best(matrix.numpy(), 1)), matrix.shape[1], many_to_one=True)


def mutual_of(matrix: Float[Tensor, "n m"]) -> Permutation:
    """Rows and columns that are each other's most similar one; the rest stay unmatched."""
    there, back = _best(matrix.numpy(), 1), _best(matrix.numpy(), 0)
    mutual = back[there] == np.arange(len(there))
    return Permutation(torch.from_numpy(np.where(mutual, there, UNMATCHED)), matrix.shape[1])


def greedy_of(matrix: Float[Tensor, "n m"]) -> Permutation:
    """The most similar pair that is free, again and again, until the narrower side is matched."""
    values = matrix.numpy()
    n, m = values.shape
    partner, free = np.full(n, UNMATCHED, np.int64), np.ones(m, dtype=bool)
    heap = [(-float(values[i, j]), i, int(j)) for i, j in enumerate(_best(values, 1))]
    heapq.heapify(heap)
    for _ in range(min(n, m)):
        while True:
            _, i, j = heapq.heappop(heap)
            if free[j]:
                break
            j = int(np.where(free, values[i], -np.inf).argmax())
            heapq.heappush(heap, (-float(values[i, j]), i, j))
        partner[i], free[j] = j, False
    return Permutation(torch.from_numpy(partner), m)


def _best(values: npt.NDArray[np.float32], axis: int) -> Ints:
    return values.argmax(axis=axis).astype(np.int64)
