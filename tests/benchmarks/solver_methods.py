"""The package's own solvers as methods of the benchmark, and the similarity product that is their yardstick."""

from __future__ import annotations

import time
from dataclasses import fields
from functools import partial
from pkgutil import resolve_name

import torch

from sae_match.errors import UserError
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.match import SOLVERS, make_solver
from sae_match.matching.problem import MatchingProblem
from sae_match.matching.products import Precision
from tests.benchmarks.methods import Answer, Method, NoAnswerError, Options, Promise

BLOCK_ROWS = 1024
SOFT_MATRICES = 6
"""Matrices of all pairs that entropic transport holds in float32."""


def product(problem: MatchingProblem, options: Options) -> Answer:
    """All inner products of the two sides once, float32, one block of rows at a time; nothing is kept."""
    right = problem.right.to(options.device).T
    out = torch.empty(min(BLOCK_ROWS, problem.shape[0]), problem.shape[1], device=options.device)
    started = time.perf_counter()
    for block in problem.left.split(BLOCK_ROWS):
        torch.mm(block.to(options.device), right, out=out[: len(block)])
    if options.device != "cpu":
        torch.cuda.synchronize()
    return Answer(None, time.perf_counter() - started)


def certified(cache: bool, precision: Precision, problem: MatchingProblem, options: Options) -> Answer:
    """The certified solver with its cache of inner products, or without, from products of a precision."""
    solver = CertifiedSolver(
        memory_limit_gib=options.memory_limit_gib,
        time_limit_s=options.time_limit_s,
        device=options.device,
        cache=cache,
        product=precision,
    )
    started = time.perf_counter()
    try:
        solution = solver.solve(problem)
    except UserError as error:
        raise NoAnswerError(str(error)) from error
    seconds = time.perf_counter() - started
    return Answer(
        solution.permutation.indices.numpy(),
        seconds,
        own_product=solution.statistics.get("seconds/product"),
        lower_bound=solution.lower_bound,
        statistics=solution.statistics,
    )


def baseline(name: str, makes_product: bool, problem: MatchingProblem, options: Options) -> Answer:
    """A solver of the package by its name."""
    known = {item.name for item in fields(resolve_name(SOLVERS[name]))}
    wanted = {"time_limit_s": options.time_limit_s, "seed": options.seed}
    chosen = {key: value for key, value in wanted.items() if key in known}
    solver = make_solver(name, memory_limit_gib=options.memory_limit_gib, **chosen).on(options.device)
    started = time.perf_counter()
    try:
        solution = solver.solve(problem)
    except UserError as error:
        raise NoAnswerError(str(error)) from error
    seconds = time.perf_counter() - started
    own_product = solution.statistics.get("seconds/product") if makes_product else 0.0
    return Answer(solution.permutation.indices.numpy(), seconds, own_product, statistics=solution.statistics)


def _certified(label: str, cache: bool = True, precision: Precision = Precision.float32) -> Method:
    return Method(
        label,
        Promise.exact,
        partial(certified, cache, precision),
        makes_product=True,
        products=2.0,
        stops_itself=True,
        least_bytes=lambda width: 2 * width * width if cache else 0,
    )


def _baseline(label: str, name: str, promise: Promise = Promise.approximate) -> Method:
    makes_product = promise is Promise.approximate
    run = partial(baseline, name, makes_product)
    return Method(
        label,
        promise,
        run,
        makes_product,
        products=5.0 if makes_product else 0.0,
        stops_itself=name == "cosine",
        least_bytes=lambda width: 4 * SOFT_MATRICES * width * width if name == "soft" else 0,
        requires="ot" if name == "soft" else None,
    )


CERTIFIED = {
    "certified": _certified("certified"),
    "certified-bfloat16": _certified("certified, bfloat16 product", precision=Precision.bfloat16),
    "certified-uncached": _certified("certified, no cache", cache=False),
}

BASELINES = {
    "greedy": _baseline("greedy one-to-one", "greedy"),
    "mutual": _baseline("mutual nearest neighbors", "mutual"),
    "nearest": _baseline("nearest, many-to-one", "nearest"),
    "cosine": _baseline("exact on unit-norm rows", "cosine"),
    "soft": _baseline("soft matching, rounded", "soft"),
    "random": _baseline("random", "random", Promise.control),
    "vanilla": _baseline("vanilla (identity)", "vanilla", Promise.control),
}
