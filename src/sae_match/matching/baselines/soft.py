"""Soft matching: entropic optimal transport between the features, and its hard rounding."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from enum import StrEnum
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match.errors import UserError
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution, Solver, problem_bytes
from sae_match.options import option

logger = logging.getLogger(__name__)

BYTES_PER_PAIR = 32
"""Seven float32 matrices at the widest point (29 bytes, measured at 4,096 x 4,096), and some room."""
SLACK = 1.05
"""The library sums the columns in another order than this file: a converged plan may look a little worse here."""


class SoftRounding(StrEnum):
    """How a soft matching becomes a hard one: the one-to-one matching with the largest sum over its pairs."""

    plan = "plan"
    log_plan = "log_plan"


class TransportPlan(NamedTuple):
    """An entropic transport plan between uniform marginals.

    Attributes:
        log_plan: [n, m] logarithm of the mass that goes from i to j; the masses add up to 1.
        cost: [n, m] cost of every pair.
        marginal_error: how far the column sums are from uniform (relative, Euclidean); row sums are exact.
        iterations: Sinkhorn iterations.
    """

    log_plan: Float[Tensor, "n m"]
    cost: Float[Tensor, "n m"]
    marginal_error: float
    iterations: int


@option
class TransportSolver(Solver):
    """A solver that holds dense costs, squared distances or 2 - 2 S_ij, and transports mass between the features."""

    bytes_per_pair: ClassVar[int]
    """Peak memory beside the problem."""
    device: str = "cpu"
    """Where the iterations run; set by the job."""

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem and the dense matrices."""
        return problem_bytes(n_a, n_b, d) + self.bytes_per_pair * n_a * n_b

    def similarity_bytes(self, n_a: int, n_b: int) -> int:
        """The matrix and those beside it."""
        return (4 + self.bytes_per_pair) * n_a * n_b

    def solve(self, problem: MatchingProblem) -> Solution:
        """The matching that follows from the plan.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        self.check_complete(problem)
        return self.from_plan(problem)

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The same, of pairs that cost 2 - 2 S_ij.

        Raises:
            UserError: NaN or infinity.
        """
        problem.check()
        return self.from_plan(problem)

    @abstractmethod
    def from_plan(self, problem: MatchingProblem | SimilarityProblem) -> Solution:
        """Transport, and what follows for single features, of a problem that was checked."""


@option
class SoftSolver(TransportSolver):
    """Entropic optimal transport with uniform marginals (Cuturi 2013), rounded to a one-to-one matching.

    The transport cost of the soft plan, times the number of features of the narrower SAE so that it compares with
    objectives, is the statistic `transport_cost`: for SAEs of one width it is at least the optimal objective, and
    tends to it as the entropy vanishes.
    """

    name: str = "soft"
    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    """Strength of the entropy, in units of the median cost."""
    max_iterations: Annotated[int, Field(ge=1)] = 1000
    """Most Sinkhorn iterations; a warning says if they did not suffice."""
    marginal_error: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Sinkhorn stops when the plan's column sums are this close to uniform (relative, Euclidean)."""
    rounding: SoftRounding = SoftRounding.plan
    """plan: the matching with the most mass of the plan on its pairs. log_plan: with the largest sum of log masses; as
    each log mass is minus a cost plus one number per row and one per column, that is the exact matching whatever the
    entropy, where every row and column gets a partner (SAEs of one width)."""
    bytes_per_pair: ClassVar[int] = BYTES_PER_PAIR
    advice: ClassVar[str] = "solver=certified, narrower SAEs or a machine with more memory"

    def from_plan(self, problem: MatchingProblem | SimilarityProblem) -> Solution:
        """The rounded plan, with the plan's own cost among the statistics."""
        started = time.monotonic()
        found = self.transport(problem)
        transported = time.monotonic()
        narrower = min(problem.shape)
        mass = found.log_plan.exp()
        transport_cost = narrower * float((mass * found.cost).sum(dtype=torch.float64))
        values = mass if self.rounding is SoftRounding.plan else found.log_plan
        rows, columns = linear_sum_assignment(values.cpu().numpy(), maximize=True)
        permutation = Permutation.of_pairs(rows, columns, *problem.shape)
        statistics = {
            "transport_cost": transport_cost,
            "mass_on_pairs": float(mass.cpu()[rows, columns].sum(dtype=torch.float64)) * max(problem.shape) / narrower,
            "marginal_error": found.marginal_error,
            "iterations": float(found.iterations),
            "seconds/transport": transported - started,
            "seconds/rounding": time.monotonic() - transported,
        }
        return Solution(permutation, problem.objective(permutation), statistics=statistics)

    def transport(self, problem: MatchingProblem | SimilarityProblem) -> TransportPlan:
        """The entropic plan, by Sinkhorn's iterations in the log domain (library POT, float32)."""
        try:
            import ot  # takes seconds
        except ImportError as missing:
            raise UserError("solver=soft needs the POT package: `pip install 'sae-match[transport]'`.") from missing

        cost = costs_of(problem).to(self.device)
        n, m = cost.shape
        rows, columns = (torch.full((k,), 1.0 / k, device=cost.device) for k in (n, m))
        scaled = cost / (self.regularization * unit_of(cost))
        stop = self.marginal_error / math.sqrt(m)
        _, log = ot.sinkhorn(
            rows, columns, scaled, 1.0, method="sinkhorn_log",
            numItermax=self.max_iterations, stopThr=stop, log=True, warn=False,
        )  # fmt: skip
        log_plan = log["log_u"][:, None] + log["log_v"][None, :] - scaled
        error = float((log_plan.exp().sum(dim=0) - columns).norm()) * math.sqrt(m)
        if not error <= SLACK * self.marginal_error:
            logger.warning(
                "soft matching: column sums are off by %.1e after %d iterations (solver.marginal_error=%.1e); raise "
                "solver.max_iterations or solver.regularization",
                error, self.max_iterations, self.marginal_error,
            )  # fmt: skip
        return TransportPlan(log_plan, cost, error, int(log["niter"]) + 1)


def costs_of(problem: MatchingProblem | SimilarityProblem) -> Float[Tensor, "n m"]:
    """Cost of every pair: its squared distance, or 2 - 2 S_ij."""
    if isinstance(problem, SimilarityProblem):
        return 2.0 - 2.0 * problem.matrix
    return squared_distances(problem.left, problem.right)


def squared_distances(left: Float[Tensor, "n D"], right: Float[Tensor, "m D"]) -> Float[Tensor, "n m"]:
    """Squared distances of all pairs, computed in float64 blocks and kept in float32."""
    b = right.to(torch.float64)
    norms = b.square().sum(dim=1)
    out = torch.empty(len(left), len(right), dtype=torch.float32)
    for start in range(0, len(left), 1024):
        a = left[start : start + 1024].to(torch.float64)
        block = torch.addmm(norms[None, :] + a.square().sum(dim=1)[:, None], a, b.T, alpha=-2.0)
        out[start : start + 1024] = block.clamp_min_(0.0)
    return out


def unit_of(cost: Float[Tensor, "n m"]) -> float:
    """The median magnitude; the mean where more than half of the pairs cost nothing, and 1 where all do."""
    magnitude = cost.abs()  # of given similarities above 1, costs are negative
    median = float(magnitude.median())
    return median or float(magnitude.mean(dtype=torch.float64)) or 1.0
