"""The methods under comparison, by name, and what a method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sae_match.matching.problem import MatchingProblem

Int64 = npt.NDArray[np.int64]


class Promise(StrEnum):
    """What a method claims about its answer."""

    exact = "exact"
    approximate = "approximate"
    control = "control"


class NoAnswerError(Exception):
    """A method ended without a matching; the message says why. That is a result, not a fault of the benchmark."""


@dataclass(frozen=True)
class Options:
    """Circumstances that every method is told.

    Args:
        threads: CPU threads.
        device: where products are computed by the methods that can choose.
        time_limit_s: after this the runner ends the method, a while later if it stops itself.
        memory_limit_gib: resident memory at which the runner ends the method.
        seed: seed of the methods that draw.
    """

    threads: int = 1
    device: str = "cpu"
    time_limit_s: float = 600.0
    memory_limit_gib: float = 20.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a method returned, and where its time went.

    Attributes:
        partner: [F_a] feature of B for each feature of A, -1 = none; None where a method solves nothing.
        seconds: wall time of the method proper; of a dense solver, without the making of its matrix.
        own_product: of `seconds`, the time in the similarity product; None where the method does not tell.
        setup: wall time of what came before and is not counted: the dense matrix.
        lower_bound: bound on the objective that the method proved, if it does.
        statistics: what else it tells.
    """

    partner: Int64 | None
    seconds: float
    own_product: float | None = 0.0
    setup: float = 0.0
    lower_bound: float | None = None
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        label: name in tables and figures.
        promise: what it claims.
        solve: the method itself.
        makes_product: whether `seconds` includes a similarity product.
        products: how many similarity products' worth of time it is granted on top of the time limit.
        stops_itself: whether it keeps the time limit by itself and answers with what it has.
        least_bytes: memory that it cannot do without at a width, used to refuse before anything is allocated.
        requires: module that it needs beyond the package's own dependencies.
    """

    label: str
    promise: Promise
    solve: Callable[[MatchingProblem, Options], Answer]
    makes_product: bool = False
    products: float = 0.0
    stops_itself: bool = False
    least_bytes: Callable[[int], int] = lambda width: 0
    requires: str | None = None


def methods() -> dict[str, Method]:
    """All methods in the order of tables and figures."""
    from tests.benchmarks import dense_methods, graph_methods, solver_methods, transport_methods

    return {
        "product": Method("similarity product", Promise.control, solver_methods.product),
        **solver_methods.CERTIFIED,
        **dense_methods.METHODS,
        **graph_methods.METHODS,
        **transport_methods.METHODS,
        **solver_methods.BASELINES,
    }
