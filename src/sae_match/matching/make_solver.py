"""From a solver's name or options to the solver."""

from __future__ import annotations

from collections.abc import Callable

from sae_match.config.solver_schema import SolverConfig, SolverName
from sae_match.errors import UserError
from sae_match.matching.baselines import (
    CosineSolver,
    GreedySolver,
    MutualSolver,
    NearestSolver,
    RandomSolver,
    SoftSolver,
    VanillaSolver,
)
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.dense import DenseSolver
from sae_match.matching.solution import Solver


def make_solver(
    config: SolverConfig | SolverName | str = SolverName.certified,
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Solver:
    """The solver of that name, with its options.

    Args:
        config: options, or a name for the default options.
        device: where the solvers that compute products do so.
        seed: seed of `random`.
        progress: show bars.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    cfg = config if isinstance(config, SolverConfig) else SolverConfig(name=_parse(config))
    limit, rows = cfg.memory_limit_gib, cfg.block_rows

    def certified() -> CertifiedSolver:
        return CertifiedSolver(limit, cfg.time_limit_s, cfg.verify, device, rows, cfg.cache, progress)

    makers: dict[SolverName, Callable[[], Solver]] = {
        SolverName.certified: certified,
        SolverName.dense: lambda: DenseSolver(limit, rows),
        SolverName.vanilla: lambda: VanillaSolver(limit),
        SolverName.random: lambda: RandomSolver(seed, limit),
        SolverName.greedy: lambda: GreedySolver(limit, device, rows),
        SolverName.nearest: lambda: NearestSolver(limit, device, rows),
        SolverName.mutual: lambda: MutualSolver(limit, device, rows),
        SolverName.cosine: lambda: CosineSolver(certified()),
        SolverName.soft: lambda: SoftSolver(
            limit, device, cfg.regularisation, cfg.max_iterations, cfg.marginal_error, cfg.rounding
        ),
    }
    return makers[cfg.name]()


def _parse(name: SolverName | str) -> SolverName:
    try:
        return SolverName(name)
    except ValueError:
        raise UserError(f"solver={name}: must be one of {', '.join(s.value for s in SolverName)}") from None
