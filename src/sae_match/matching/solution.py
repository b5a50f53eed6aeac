"""What a solver returns, and what it must offer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Self

import psutil
from pydantic import Field

from sae_match.errors import UserError
from sae_match.files import GIB
from sae_match.keys import Keyed
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.options import option


@dataclass(frozen=True)
class Solution:
    """A matching and, where the solver gives one, the proof of its quality.

    Attributes:
        permutation: the matching.
        objective: sum of squared distances of the pairs (and of rejections' costs), float64 accumulation.
        lower_bound: no assignment costs less than this, up to `tolerance`; None = the solver claims no bound.
        tolerance: absolute uncertainty of `lower_bound` from rounding of the cost matrix.
        statistics: what the solver did: seconds per phase, counts, peak memory.
    """

    permutation: Permutation
    objective: float
    lower_bound: float | None = None
    tolerance: float = 0.0
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """Relative optimality gap, (objective - lower_bound) / objective; 0 where both are 0; None without a bound."""
        if self.lower_bound is None:
            return None
        difference = self.objective - self.lower_bound
        return difference / max(abs(self.objective), math.ulp(0.0)) if difference > 0 else 0.0


@option
class Solver(Keyed, ABC):
    """An assignment solver, or a baseline that stands in for one: the configuration's group `solver`."""

    name: str
    """Short name used in records."""
    memory_limit_gib: Annotated[float, Field(ge=0)] | None = None
    """Refuse to start above this; null = what the machine has available now."""

    limits_pairs: ClassVar[bool] = False
    """Whether it knows `matching.rejection_cost` and `matching.n_pairs`."""
    advice: ClassVar[str] = "narrower SAEs or a machine with more memory"
    """What the user can do about a problem that does not fit."""

    def on(self, device: str, progress: bool = False) -> Self:
        """The solver with its products computed on a device, and with progress bars, where it has those."""
        known = {item.name for item in fields(self)}
        changes: dict[str, Any] = {"device": device, "progress": progress}
        return replace(self, **{name: value for name, value in changes.items() if name in known})

    def key(self) -> dict[str, object]:
        """Everything about the solver that can change what it returns.

        Options that should only save memory are in it too: it costs a solve, where leaving one out wrongly costs a
        result.
        """
        return self.facts(("memory_limit_gib", "device", "progress", "product"))

    @abstractmethod
    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """The least peak memory with which n_a and n_b features of d numbers each can be matched."""

    def check_memory(self, n_a: int, n_b: int, d: int) -> None:
        """Refuse a problem that does not fit; nothing is allocated.

        Raises:
            UserError: it needs more than `memory_limit_gib`.
        """
        refuse_above(self.memory_limit_gib, self.required_bytes(n_a, n_b, d), self.name, (n_a, n_b), self.advice)

    def similarity_bytes(self, n_a: int, n_b: int) -> int:
        """The least peak memory with which a matrix of similarities can be matched, the matrix included."""
        from sae_match.matching.by_similarity import required_bytes  # loads numba

        return required_bytes(n_a, n_b)

    def check_complete(self, problem: MatchingProblem) -> None:
        """Refuse what a solver that pairs every feature of the narrower side cannot answer, or not in memory.

        Raises:
            UserError: NaN or infinity, a rejection cost or a number of pairs, or too little memory.
        """
        problem.check_complete(self.name)
        self.check_memory(*problem.shape, problem.left.shape[1])

    def warm_up(self, problem: MatchingProblem | SimilarityProblem) -> None:
        """What a process does once before it can solve a problem of this kind, such as compiling; not counted as time
        of solving."""
        return None

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The same for given similarities.

        Raises:
            UserError: this solver takes parameters only, or what `solve` raises.
        """
        raise UserError(
            f"solver={self.name} matches parameters only; for other similarities use certified, dense, greedy, "
            "nearest, mutual, soft, unbalanced or random"
        )

    @abstractmethod
    def solve(self, problem: MatchingProblem) -> Solution:
        """A matching. The exact solvers return a one-to-one matching of minimal cost in which every feature of the
        narrower SAE has a partner, unless the problem says otherwise; each baseline says what it returns.

        Raises:
            UserError: NaN or infinity, too little memory, or limits to the pairs that the solver does not know.
        """


def problem_bytes(n_a: int, n_b: int, d: int) -> int:
    """The rows of a problem, with the SAEs and their folded copies behind them."""
    return 3 * 4 * (n_a + n_b) * d


def refuse_above(limit_gib: float | None, needed: float, solver: str, shape: tuple[int, int], advice: str) -> None:
    """Refuse a problem that needs more bytes than the limit.

    Args:
        limit_gib: the limit; None = what the machine has available now.
        needed: bytes.
        advice: what to do about it, after "Use ".

    Raises:
        UserError: it needs more.
    """
    limit = psutil.virtual_memory().available / GIB if limit_gib is None else limit_gib
    if needed / GIB > limit:
        raise UserError(
            f"solver={solver} needs {needed / GIB:.1f} GiB for {shape[0]} x {shape[1]} features, but only {limit:.1f} "
            f"GiB are available. Use {advice} (or raise solver.memory_limit_gib)."
        )
