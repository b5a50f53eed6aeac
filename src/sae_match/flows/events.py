"""From best partners to edges and events: persist, split, merge, birth, death (counted by features)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae_match.flows.partners import BestPartners, Ints

EVENTS = ("persist", "split", "merge", "birth", "death")


@dataclass(frozen=True)
class Step:
    """What happens between two dictionaries A and B.

    Attributes:
        features, features_to: how many features of A and of B are compared.
        edges: one row per edge, by parent, then child. Columns: feature (of A), feature_to (of B), similarity,
            best_child: the child is its parent's most similar feature of B, best_parent: the same the other way round.
        happened: the features of each event: persist, split and death of A, merge and birth of B.
        reached: share of the features of both sides that have an edge.
    """

    features: int
    features_to: int
    edges: pd.DataFrame
    happened: dict[str, Ints]
    reached: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of features of each event."""
        return {name: len(self.happened[name]) for name in EVENTS}


def step(best: BestPartners, threshold: float) -> Step:
    """Edges i -> j with a similarity above the threshold where j is i's best child or i is j's best parent, and what
    follows from them.

    persist: the parent and child of an edge are each other's best; split: best parent of two or more children; merge:
    best child of two or more parents; birth: a feature of B without a parent; death: one of A without a child.
    """
    down, up = best.child_similarity > threshold, best.parent_similarity > threshold
    forward = pd.DataFrame(
        {"feature": best.features_a[down], "feature_to": best.child[down], "similarity": best.child_similarity[down]}
    )
    backward = pd.DataFrame(
        {"feature": best.parent[up], "feature_to": best.features_b[up], "similarity": best.parent_similarity[up]}
    )
    both = pd.concat([forward.assign(best_child=True, best_parent=False),
                      backward.assign(best_child=False, best_parent=True)], ignore_index=True)  # fmt: skip
    edges = both.groupby(["feature", "feature_to"], as_index=False).max()
    happened = {
        "persist": edges.loc[edges["best_child"] & edges["best_parent"], "feature"].to_numpy(),
        "split": _repeated(backward["feature"].to_numpy()),
        "merge": _repeated(forward["feature_to"].to_numpy()),
        "birth": best.features_b[~up],
        "death": best.features_a[~down],
    }
    reached = (int(down.sum()) + int(up.sum())) / (len(down) + len(up))
    return Step(len(down), len(up), edges, happened, reached)


def _repeated(features: Ints) -> Ints:
    """Features that are there twice or more, ascending."""
    found, times = np.unique(features, return_counts=True)
    return found[times > 1]
