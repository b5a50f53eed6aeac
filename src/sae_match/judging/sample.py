"""Which pairs are judged."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

UNMATCHED = -1


def sample_pairs(indices: Int[Tensor, " F_a"], n: int, seed: int) -> list[tuple[int, int]]:
    """n pairs (feature, partner) of a matching, in ascending order of the feature; all where there are fewer.

    The features of A are put into one random order that depends on the seed and their number alone, and the first n
    with a partner are taken: matchings of the same SAEs are judged on the same features wherever these are matched.

    Args:
        indices: partner of each feature, -1 where it has none.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    matched = order[indices[order] != UNMATCHED][:n].sort().values
    return list(zip(matched.tolist(), indices[matched].tolist(), strict=True))
