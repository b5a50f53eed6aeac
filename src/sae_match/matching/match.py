"""`match` and `match_chain`: from SAEs and a solver's name to permutations, their costs and certificates."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pkgutil import resolve_name
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import ValidationError
from torch import Tensor

from sae_match.arrays import Array, as_tensor
from sae_match.errors import UserError
from sae_match.keys import arguments
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.planted import planted_between
from sae_match.matching.problem import GroupWeights, MatchingProblem, Metric, SimilarityProblem
from sae_match.matching.similarity import Comparison, weights_problem
from sae_match.matching.solution import Solution, Solver
from sae_match.options import parse, what_is_wrong
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind
from sae_match.saes.live import as_sae

SOLVERS: Mapping[str, str] = {
    "certified": "sae_match.matching.certified:CertifiedSolver",
    "dense": "sae_match.matching.dense:DenseSolver",
    "vanilla": "sae_match.matching.baselines:VanillaSolver",
    "random": "sae_match.matching.baselines:RandomSolver",
    "greedy": "sae_match.matching.baselines:GreedySolver",
    "nearest": "sae_match.matching.baselines:NearestSolver",
    "mutual": "sae_match.matching.baselines:MutualSolver",
    "cosine": "sae_match.matching.baselines:CosineSolver",
    "soft": "sae_match.matching.baselines:SoftSolver",
    "unbalanced": "sae_match.matching.baselines:UnbalancedTransport",
}
"""The package's own solvers by name: two exact ones, then baselines. Any other `Solver` object does as well. They are
imported on first use: numba and scipy take a second."""


@dataclass(frozen=True, kw_only=True)
class Matching(Solution):
    """A solution between the features of two whole SAEs, in the units in which they were matched: `permutation` with
    its provenance, and `objective`, `lower_bound`, `gap`, `tolerance` and `statistics` as the solver gave them.

    Attributes:
        seconds: wall time of building and solving the problem.
        confidence: [F_a] by what the matcher itself orders its pairs, larger = surer: the similarity of the pair, or
            minus its squared distance; NaN where a feature has no partner.
    """

    seconds: float
    confidence: Float[Tensor, " F_a"] = field(default_factory=lambda: torch.zeros(0))

    def pair(self, feature: int, a: SparseAutoencoder, b: SparseAutoencoder) -> dict[str, float | int | None]:
        """A feature of A beside its partner: `feature`, `partner`, `decoder_cosine`, and in folded units the mean
        squared differences `W_enc`, `b_enc` and `W_dec` (`weight_distances`). Without a partner, that is None and the
        rest is left out.

        Args:
            a, b: the SAEs that were matched, as loaded.

        Raises:
            UserError: no such feature, or SAEs that cannot be folded.
        """
        from sae_match.metrics.weight_distance import weight_distances  # it builds on this package

        found = self.permutation
        if not 0 <= feature < found.n_a:
            raise UserError(f"feature {feature} is outside 0..{found.n_a - 1}")
        partner = int(found.indices[feature])
        if partner == UNMATCHED:
            return {"feature": feature, "partner": None}
        alone = torch.full_like(found.indices, UNMATCHED)
        alone[feature] = partner
        alike = weight_distances(a, b, replace(found, indices=alone))
        mse = {group: float(values[0]) for group, values in alike.mse.items()}
        return {"feature": feature, "partner": partner, "decoder_cosine": float(alike.decoder_cosine[0]), **mse}

    def __repr__(self) -> str:
        gap = "no bound" if self.gap is None else f"gap {self.gap:.1e}"
        return f"Matching({self.permutation!r}, objective {self.objective:.6g}, {gap}, {self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        proof = "no bound" if self.gap is None else "0: proved optimal" if self.gap == 0 else f"{self.gap:.2e}"
        found = self.permutation
        rows = {
            "features": f"{found.n_a:,} and {found.n_b:,}, {len(found.matched):,} matched",
            "objective": f"{self.objective:.6g}",
            "lower bound": "" if self.lower_bound is None else f"{self.lower_bound:.6g}",
            "gap": proof,
            "seconds": f"{self.seconds:.2f}",
        }
        return (
            "<table>"
            + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
            + "</table>"
        )


def make_solver(name: str = "certified", **options: Any) -> Solver:
    """The solver of that name.

    Args:
        options: fields of its class.

    Raises:
        UserError: unknown name (the message lists the valid ones), or options that it does not take.
    """
    if name not in SOLVERS:
        raise UserError(f"solver={name}: must be one of {', '.join(SOLVERS)}")
    try:
        solver: Solver = resolve_name(SOLVERS[name])(**options)
        return solver
    except ValidationError as error:
        raise UserError(f"solver={name}: {what_is_wrong(error)}") from error


def match(
    a: SparseAutoencoder | object,
    b: SparseAutoencoder | object,
    metric: Metric | str = "both",
    folding: FoldingKind | str = "theta",
    solver: Solver | str = "certified",
    *,
    include_bias: bool = True,
    weights: GroupWeights | None = None,
    rejection_cost: float | None = None,
    n_pairs: int | None = None,
    exclude_a: Bool[Array, " F_a"] | None = None,
    exclude_b: Bool[Array, " F_b"] | None = None,
    similarity: Comparison | None = None,
    layers: tuple[int, int] | None = None,
) -> Matching:
    """Match the features of `a` to those of `b` one-to-one at the least total squared distance (Eq. 3).

    A `UserWarning` says so where feature i resembles feature i: SAEs trained from one initialization match by that.

    Args:
        a, b: SAEs over residual streams of the same d_model; widths may differ (every feature of the narrower
            one is matched). Live objects of SAELens, sparsify or dictionary_learning do as well (`load_sae`).
        metric: `both` (the paper's main scheme), `decoder` or `encoder`.
        folding: `theta` (fold thresholds first, Eq. 4) or `none`.
        solver: a name (`certified` is exact at any width; see `SOLVERS`), or a solver object with its options.
        include_bias: whether b_enc enters where the metric covers the encoder.
        weights: weights of the parameter groups; all 1 if None.
        rejection_cost: a feature of the narrower SAE may stay unmatched at this cost.
        n_pairs: match exactly this many pairs.
        exclude_a, exclude_b: features to set aside (dead ones, or those with threshold 0); they stay unmatched.
        similarity: what features are compared by, in place of `metric` and the keyword arguments up to `n_pairs`.
        layers: of `a` and `b`, for a similarity that knows features by their layer.

    Raises:
        UserError: objects that are no SAEs, incompatible SAEs, unknown names, layers that are needed and not given,
            thresholds that cannot be folded, masks of another shape, limits that the solver does not know, or too
            little memory.
    """
    a, b = as_sae(a), as_sae(b)
    chosen = make_solver(solver) if isinstance(solver, str) else solver
    if (planted := planted_between(a, b)) is not None:
        warnings.warn(planted, UserWarning, stacklevel=2)
    started = time.perf_counter()  # without the import of a solver
    if layers is None and similarity is not None and similarity.by_layer:
        raise UserError(f"{similarity.name} knows features by their layer: say which, as layers=(t, t + 1)")
    excluded = [None if mask is None else as_tensor(mask) for mask in (exclude_a, exclude_b)]
    pair = FeaturePair(
        a, b, parse(FoldingKind, folding, "folding"), (excluded[0], excluded[1]), layers=layers or (0, 1)
    )
    if similarity is None:
        problem = weights_problem(
            pair, metric=metric, include_bias=include_bias, weights=weights,
            rejection_cost=rejection_cost, n_pairs=n_pairs,
        )  # fmt: skip
        compared: dict[str, object] = {
            "metric": Metric(metric).value,
            "include_bias": include_bias,
            "weights": asdict(weights or GroupWeights()),
            "rejection_cost": rejection_cost,
            "n_pairs": n_pairs,
        }
        return _matched(pair, problem, chosen, compared, started)
    return match_features(similarity, chosen, pair)


class Problems:
    """Poses problems and keeps the last one, for several solvers in turn: the next may be gigabytes, too."""

    def __init__(self) -> None:
        self._last: tuple[object, MatchingProblem | SimilarityProblem, float] | None = None

    def pose(self, similarity: Comparison, pair: FeaturePair) -> tuple[MatchingProblem | SimilarityProblem, float]:
        """The problem of a pair, and the seconds that it took."""
        key = similarity.pair_key(pair)
        if self._last is None or self._last[0] != key:
            self._last = None
            started = time.perf_counter()
            problem = similarity.problem(pair)
            self._last = key, problem, time.perf_counter() - started
        return self._last[1:]


def match_features(
    similarity: Comparison, solver: Solver, pair: FeaturePair, problems: Problems | None = None
) -> Matching:
    """Match the features of a pair of SAEs as a similarity compares them and a solver assigns them.

    Args:
        problems: where the problem may be known from.

    Raises:
        UserError: from either.
    """
    problem, seconds = (problems or Problems()).pose(similarity, pair)
    return _matched(pair, problem, solver, arguments(similarity), time.perf_counter() - seconds)


def _matched(
    pair: FeaturePair,
    problem: MatchingProblem | SimilarityProblem,
    solver: Solver,
    compared: dict[str, object],
    started: float,
) -> Matching:
    """Solve the problem of the features that are matched; the answer is in the numbers of the whole SAEs."""
    problem.check()
    kept_a, kept_b = pair.kept()
    n_a, n_b = pair.a.width, pair.b.width
    warming = time.perf_counter()
    solver.warm_up(problem)
    started += time.perf_counter() - warming
    solution = solver.solve(problem) if isinstance(problem, MatchingProblem) else solver.solve_similarity(problem)
    whole = solution.permutation
    confidence = torch.full((n_a,), torch.nan)
    confidence[kept_a[whole.matched]] = problem.confidence(whole)
    if (len(kept_a), len(kept_b)) != (n_a, n_b):
        whole = whole.embedded(kept_a, kept_b, n_a, n_b)
    seconds = time.perf_counter() - started
    provenance = {
        "sae_a": pair.a.content_hash,
        "sae_b": pair.b.content_hash,
        **compared,
        "folding": pair.folding.value,
        "solver": solver.name,
        "excluded_a": n_a - len(kept_a),
        "excluded_b": n_b - len(kept_b),
        "objective": solution.objective,
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "seconds": round(seconds, 3),
    }
    statistics = solution.statistics
    if isinstance(problem, SimilarityProblem) and len(solution.permutation.matched):
        mean = 1 - solution.objective / 2 / len(solution.permutation.matched)
        statistics = {**statistics, "mean_similarity": mean}
    return Matching(
        replace(whole, provenance=provenance), solution.objective, solution.lower_bound, solution.tolerance, statistics,
        seconds=seconds, confidence=confidence,
    )  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """Matchings of consecutive SAEs.

    Attributes:
        matchings: matching t leads from SAE t to SAE t + 1.
        layers: the layer of every SAE, by which `between` and `path` know it; None = its position, 0, 1, ...
    """

    matchings: list[Matching]
    layers: Sequence[int] | None = None

    def __len__(self) -> int:
        """Number of SAEs."""
        return len(self.matchings) + 1

    def between(self, start: int, stop: int) -> Permutation:
        """Features of the SAE of layer `start` -> features of that of `stop` (either may come first), composed step by
        step.

        A feature that is unmatched at any step has no partner. start == stop gives the identity.

        Raises:
            UserError: a layer (or position) outside the chain.
        """
        first, last = self._position(start), self._position(stop)
        if last < first:
            return self.between(stop, start).inverse()
        if first == last:
            return Permutation.identity(self._width(first))
        composed = self.matchings[first].permutation
        for matching in self.matchings[first + 1 : last]:
            composed = composed.compose(matching.permutation)
        return composed

    def path(self, feature: int, start: int | None = None) -> list[int]:
        """The feature of layer `start` (None = the first) followed to the end of the chain: one index per SAE, as far
        as it has a partner.

        Raises:
            UserError: no such feature or layer.
        """
        first = 0 if start is None else self._position(start)
        if not 0 <= feature < self._width(first):
            raise UserError(f"feature {feature} is outside 0..{self._width(first) - 1}")
        path = [feature]
        for matching in self.matchings[first:]:
            partner = int(matching.permutation.indices[path[-1]])
            if partner == UNMATCHED:
                break
            path.append(partner)
        return path

    def _position(self, layer: int) -> int:
        """Where in the chain the SAE of a layer is."""
        layers = range(len(self)) if self.layers is None else self.layers
        if layer not in layers:
            what = "position" if self.layers is None else "layer"
            raise UserError(f"{what} {layer} is outside the chain of {len(self)} SAEs ({layers[0]}..{layers[-1]})")
        return layers.index(layer)

    def _width(self, position: int) -> int:
        if position < len(self.matchings):
            return self.matchings[position].permutation.n_a
        return self.matchings[-1].permutation.n_b


def match_chain(
    saes: Iterable[SparseAutoencoder | object], layers: Iterable[int] | None = None, **options: Any
) -> Chain:  # fmt: skip
    """Match every SAE with the next one; `options` are those of `match`.

    Args:
        saes: SAEs in order; an iterator is read one at a time, and only two are held.
        layers: the layer of each, for `Chain.between` and `Chain.path`; None = they are known by their positions.

    Raises:
        UserError: fewer than two SAEs, not one layer each, or what `match` raises.
    """
    known = None if layers is None else list(layers)
    if known is not None and len(set(known)) < len(known):
        raise UserError(f"layers={known}: each layer once")
    if isinstance(saes, Sized):
        _check_layers(known, len(saes))
    matchings: list[Matching] = []
    previous: object = None
    for sae in saes:
        if previous is not None:
            matchings.append(match(previous, sae, **options))
        previous = sae
    if not matchings:
        raise UserError("a chain needs at least two SAEs")
    _check_layers(known, len(matchings) + 1)
    return Chain(matchings, known)


def _check_layers(layers: list[int] | None, n_saes: int) -> None:
    if layers is not None and len(layers) != n_saes:
        raise UserError(f"layers={layers}: name one layer for each of the {n_saes} SAEs")
