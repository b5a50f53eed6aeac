"""Unbalanced transport: entropic optimal transport in which a feature may keep its mass to itself."""

from __future__ import annotations

import logging
import math
import time
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_match.matching.baselines.soft import TransportSolver, costs_of, unit_of
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution
from sae_match.options import option

logger = logging.getLogger(__name__)

BYTES_PER_PAIR = 12
"""The costs, and two copies while their median is found."""
BLOCK_ROWS = 512
"""Rows of the plan computed at a time."""
KEPT = 0.5
"""Share of its mass that a feature must send to have a partner."""


class UnbalancedPlan(NamedTuple):
    """A plan as potentials: the mass that goes from i to j is exp(f_i + g_j - cost_ij) / (n m).

    Attributes:
        cost: [n, m] in units of the entropy's strength.
        f, g: [n], [m] potentials.
        iterations: Sinkhorn iterations.
    """

    cost: Float[Tensor, "n m"]
    f: Float[Tensor, " n"]
    g: Float[Tensor, " m"]
    iterations: int

    def mass(self) -> Float[Tensor, " n"]:
        """What each feature of A sends, as a share of 1 / n."""
        return (self.f + row_sums(self.cost, self.g) - math.log(len(self.g))).exp()

    def largest(self) -> Tensor:
        """[n] the feature of B that gets most of it, the first among equals."""
        return torch.cat([(self.g - part).argmax(dim=1) for part in self.cost.split(BLOCK_ROWS)])


@option
class UnbalancedTransport(TransportSolver):
    """Entropic optimal transport whose marginals may deviate from uniform at a cost (Chizat et al. 2018); many-to-one.

        min_P  <P, C> + eps KL(P | a b^T) + rho KL(P 1 | a) + rho KL(P^T 1 | b),   a_i = 1/n, b_j = 1/m

    A feature of A that sends at least half of its share goes to the feature of B that gets most of it; the others have
    no partner. Several may go to one: where a feature has split or several have merged, that is what the plan says, and
    a one-to-one rounding would undo it. One pair far from all others, at cost c, keeps the share
    exp(-(c + eps log n) / (2 rho + eps)) where n = m.
    """

    name: str = "unbalanced"
    marginal_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """rho, in units of the median cost: pairs that cost much more than 1.4 of it are left out."""
    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    """eps, the strength of the entropy, in units of the median cost."""
    max_iterations: Annotated[int, Field(ge=1)] = 2000
    """Most Sinkhorn iterations; a warning says if they did not suffice."""
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Sinkhorn stops when no feature's mass changes by more than this share of it in an iteration."""
    bytes_per_pair: ClassVar[int] = BYTES_PER_PAIR
    advice: ClassVar[str] = "solver=mutual, narrower SAEs or a machine with more memory"

    def from_plan(self, problem: MatchingProblem | SimilarityProblem) -> Solution:
        """The largest partner of every feature that keeps its mass."""
        started = time.monotonic()
        plan = self.transport(problem)
        mass = plan.mass().cpu()
        partner = torch.where(mass >= KEPT, plan.largest().cpu(), UNMATCHED)
        permutation = Permutation(partner, problem.shape[1], many_to_one=True)
        used = partner[permutation.matched]
        statistics = {
            "mass_sent": float(mass.clamp(max=1.0).mean(dtype=torch.float64)),
            "without_partner": float(len(mass) - len(used)),
            "distinct_partners": float(len(used.unique())),
            "iterations": float(plan.iterations),
            "seconds/total": time.monotonic() - started,
        }
        return Solution(permutation, problem.objective(permutation), statistics=statistics)

    def transport(self, problem: MatchingProblem | SimilarityProblem) -> UnbalancedPlan:
        """The plan, by Sinkhorn's iterations in the log domain.

        POT's unbalanced solvers iterate on exp(-C / eps) itself, which is 0 in all of a row that is far from every
        column: the very features that unbalanced transport is to leave out.
        """
        cost = costs_of(problem).to(self.device)
        cost /= self.regularization * unit_of(cost)
        n, m = cost.shape
        ratio = self.regularization / self.marginal_penalty
        damping = 1.0 / (1.0 + ratio)
        f, g = cost.new_zeros(n), cost.new_zeros(m)
        for iteration in range(1, self.max_iterations + 1):
            before = f
            f = -damping * (row_sums(cost, g) - math.log(m))
            g = -damping * (column_sums(cost, f) - math.log(n))
            change = float((_sent(-ratio * f) - _sent(-ratio * before)).abs().max())
            if change <= self.tolerance:
                return UnbalancedPlan(cost, f, g, iteration)
        logger.warning(
            "unbalanced transport: masses still change by %.1e after %d iterations (solver.tolerance=%.1e); raise "
            "solver.max_iterations or solver.regularization", change, self.max_iterations, self.tolerance,
        )  # fmt: skip
        return UnbalancedPlan(cost, f, g, self.max_iterations)


def _sent(log_mass: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Masses whose change is measured: a mass up to 1, above it 1 plus its logarithm (where costs are negative)."""
    return log_mass.clamp(max=0.0).exp() + log_mass.clamp(min=0.0)


def row_sums(cost: Float[Tensor, "n m"], g: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Logarithm of the sum of exp(g_j - cost_ij) over j."""
    return torch.cat([torch.logsumexp(g - part, dim=1) for part in cost.split(BLOCK_ROWS)])


def column_sums(cost: Float[Tensor, "n m"], f: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """Logarithm of the sum of exp(f_i - cost_ij) over i."""
    parts = zip(f.split(BLOCK_ROWS), cost.split(BLOCK_ROWS), strict=True)
    return torch.stack([torch.logsumexp(own[:, None] - part, dim=0) for own, part in parts]).logsumexp(dim=0)
