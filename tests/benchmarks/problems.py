"""The benchmark's problems: planted synthetic SAEs of three difficulties, and the demo SAEs that the package ships.

Planted problems are rows of folded SAEs as metric `both` compares them: [F, 2d + 1] = encoder column, encoder bias,
decoder row. They are drawn in blocks of a fixed size, each with a generator of its own, so a problem depends on its
specification alone and nothing larger than its two sides is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from sae_match import load_sae
from sae_match.errors import UserError
from sae_match.matching.problem import MatchingProblem, matching_problem

BLOCK = 1024
"""Features drawn at a time. Part of the problem's definition: another value draws other numbers."""
SMALL_DRIFT = 0.3
"""Difficulty `persist`: norm of a feature's change relative to its own."""
NEW = 0.3
"""Difficulty `mix`: share of features without a counterpart on the other side."""
HEAVY_TAIL = (0.2, 1.5, 20.0)
"""Difficulty `mix`: scale, exponent and cap of the Pareto law of a feature's relative change."""
FEATURES_PER_CLUSTER = 64
DEMO_WIDTH, DEMO_D = 1152, 576
SCHEMES = tuple(f"{metric}/{folding}" for metric in ("both", "decoder", "encoder") for folding in ("theta", "none"))


class Kind(StrEnum):
    """Where a problem comes from, and how hard it is."""

    persist = "persist"
    mix = "mix"
    noise = "noise"
    points = "points"
    demo = "demo"


PLANTED = (Kind.persist, Kind.mix, Kind.noise, Kind.points)
POINT_D = 3


@dataclass(frozen=True)
class Spec:
    """Everything that determines a problem.

    Args:
        kind: the three planted difficulties, `points` or `demo`.
        width: features of each side, F.
        d: dimensions of the residual stream; rows have 2d + 1 numbers (points: d; demo: as the metric says).
        seed: seed of a planted problem.
        detail: of a demo problem, "FIRST-SECOND/METRIC/FOLDING".
    """

    kind: Kind
    width: int
    d: int
    seed: int = 0
    detail: str = ""

    @property
    def name(self) -> str:
        """Key of the problem in the results."""
        return f"demo/{self.detail}" if self.kind is Kind.demo else f"{self.kind}/F{self.width}/d{self.d}/s{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Spec:
        """Inverse of `to_json`."""
        return cls(**{**value, "kind": Kind(value["kind"])})


@dataclass(frozen=True)
class Instance:
    """A problem and, where it was planted, its answer.

    Attributes:
        left, right: rows of the two sides.
        planted: [F], the feature of B that feature i of A became; -1 = it has no counterpart. None = unknown.
    """

    left: Float[Tensor, "F D"]
    right: Float[Tensor, "F D"]
    planted: Int[Tensor, " F"] | None

    @property
    def problem(self) -> MatchingProblem:
        """What the solvers get."""
        return MatchingProblem(self.left, self.right)


def build(spec: Spec) -> Instance:
    """The problem of that specification.

    Raises:
        UserError: a demo SAE that does not exist, or an unknown metric or folding.
    """
    if spec.kind is Kind.demo:
        return _demo(spec.detail)
    if spec.kind is Kind.points:
        left, right = (torch.rand(spec.width, spec.d, generator=_generator(spec, side, 0)) for side in range(2))
        return Instance(left, right, None)
    return _noise(spec) if spec.kind is Kind.noise else _counterparts(spec)


def demo_specs(pairs: Sequence[str], schemes: Sequence[str] = SCHEMES) -> list[Spec]:
    """The demo SAEs of those pairs ("11-12", or "14-14_seed_1") under those schemes ("METRIC/FOLDING")."""
    return [Spec(Kind.demo, DEMO_WIDTH, DEMO_D, detail=f"{pair}/{scheme}") for pair in pairs for scheme in schemes]


def _demo(detail: str) -> Instance:
    try:
        pair, metric, folding = detail.split("/")
        first, second = pair.split("-")
    except ValueError:
        raise UserError(f"demo problem {detail!r}: expected FIRST-SECOND/METRIC/FOLDING, as 11-12/both/theta") from None
    a, b = (load_sae(f"embedded/smollm2_135m/layer_{layer}.safetensors") for layer in (first, second))
    problem = matching_problem(a, b, metric=metric, folding=folding)
    return Instance(problem.left, problem.right, None)


def _noise(spec: Spec) -> Instance:
    """Two SAEs that have nothing in common."""
    sides = [torch.empty(spec.width, 2 * spec.d + 1) for _ in range(2)]
    for side, rows in enumerate(sides):
        for block, generator in _blocks(spec, side):
            rows[block] = _features(generator, len(rows[block]), spec.d, spread=0.4, tied=0.0)
    return Instance(sides[0], sides[1], torch.full((spec.width,), -1))


def _counterparts(spec: Spec) -> Instance:
    """Two SAEs whose features persist, all or most of them, at shuffled positions."""
    width, columns = spec.width, 2 * spec.d + 1
    left, right = torch.empty(width, columns), torch.empty(width, columns)
    position = torch.randperm(width, generator=_generator(spec, 2, 0))
    planted = position.clone()
    centres = _directions(_generator(spec, 3, 0), max(1, width // FEATURES_PER_CLUSTER), spec.d)
    for block, generator in _blocks(spec, 0):
        n = len(position[block])
        if spec.kind is Kind.persist:
            rows = _features(generator, n, spec.d, spread=0.3, tied=0.7)
            after = _drifted(generator, rows, torch.full((n,), SMALL_DRIFT))
        else:
            rows = _features(generator, n, spec.d, spread=0.4, tied=0.7, centres=centres)
            after, new = _mixed(generator, rows, centres)
            planted[block][new] = -1
        left[block] = rows
        right[position[block]] = after
    return Instance(left, right, planted)


def _mixed(
    generator: Generator, rows: Float[Tensor, "n D"], centres: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "n D"], Tensor]:
    """Counterparts after a heavy-tailed drift that keeps norms, some replaced by new features; and which ones are."""
    n = len(rows)
    scale, exponent, cap = HEAVY_TAIL
    drift = (scale * (1 - torch.rand(n, generator=generator)).pow(-1 / exponent)).clamp(max=cap)
    after = _drifted(generator, rows, drift)
    after *= (rows.norm(dim=1) / after.norm(dim=1))[:, None]
    new = torch.rand(n, generator=generator) < NEW
    fresh = _features(generator, int(new.sum()), centres.shape[1], spread=0.4, tied=0.7, centres=centres)
    after[new] = fresh
    return after, new


def _drifted(generator: Generator, rows: Float[Tensor, "n D"], drift: Float[Tensor, " n"]) -> Float[Tensor, "n D"]:
    size = drift * rows.norm(dim=1) / math.sqrt(rows.shape[1])
    return rows + size[:, None] * torch.randn(rows.shape, generator=generator)


def _features(
    generator: Generator,
    n: int,
    d: int,
    *,
    spread: float,
    tied: float,
    centres: Float[Tensor, "k d"] | None = None,
) -> Float[Tensor, "n D"]:
    """Rows of folded features: theta log-normal with that `spread`, decoders near a cluster's centre where there are
    any (a few clusters are large), encoders correlated with them by `tied`.

    Theta divides the encoder and multiplies the decoder, so norms vary, and rows of small norm are near to everything:
    hubs.
    """
    theta = torch.exp(spread * torch.randn(n, 1, generator=generator))
    decoder = _directions(generator, n, d)
    if centres is not None:
        cluster = (torch.rand(n, generator=generator).pow(3) * len(centres)).long().clamp(max=len(centres) - 1)
        decoder = 0.5 * centres[cluster] + 0.87 * decoder
    own = _directions(generator, n, d)
    encoder = tied * decoder + 0.7 * own if tied else 0.9 * own
    bias = -torch.rand(n, 1, generator=generator)
    return torch.cat([encoder / theta, bias, decoder * theta], dim=1)


def _directions(generator: Generator, n: int, d: int) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def _blocks(spec: Spec, stream: int) -> Iterator[tuple[slice, Generator]]:
    for number, start in enumerate(range(0, spec.width, BLOCK)):
        yield slice(start, start + BLOCK), _generator(spec, stream, number)


def _generator(spec: Spec, stream: int, block: int) -> Generator:
    """A generator of its own for every block of every stream of a problem."""
    entropy = [spec.seed, PLANTED.index(spec.kind), spec.width, spec.d, stream, block]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
