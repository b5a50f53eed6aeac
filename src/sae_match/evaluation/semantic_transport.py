"""Semantic transport: features as distributions of the hidden states on which they fire, by their Wasserstein distance.

After Cao, Do and Thai (2026). A feature is the distribution of the states on which it fires, weighted by its
activation. States of both layers are those of layer B on the same tokens, so that they lie in one space.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_match.errors import UserError
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.problem import MatchingProblem
from sae_match.matching.similarity import RowDistance
from sae_match.matching.solution import Solver, refuse_above
from sae_match.options import option
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=1)]
SORTED = 2**22
"""Projected states sorted at a time."""
SORTED_BYTES = 40
"""Of each of them: value, order, weight, and its sums in float64."""
APART = 2
"""Coordinates of features that never fire, one per SAE."""


@option
class SemanticTransport(RowDistance):
    """Sliced 2-Wasserstein distance of the hidden states on which two features fire (Cao, Do, Thai 2026).

    For random directions, the projections of all counted tokens of text that is not evaluated are standardized. A row
    holds a feature's weighted quantiles at the levels (q + 0.5) / Q along each of P directions, divided by the root of
    P Q: the squared distance of two rows is the mean squared difference of their quantiles, an estimate of SW2^2 over
    those directions in units of the tokens' variance.

    A feature that never fires on that text has no distribution. It stands at the mean of all rows, moved out along a
    coordinate of its SAE's own: as far from every feature, one of the other SAE that never fires included, as two
    features are on average.

    Memory at 16,384 features on each side and the defaults: 0.07 GB for the rows (three times that in the solver), 0.07
    GB for the tokens on which features fire, 0.17 GB while projections are sorted, and 128 bytes per counted token.
    """

    fitted: ClassVar[bool] = True
    reads_folding: ClassVar[bool] = False
    name: str = "semantic_transport"
    directions: Count = 32
    """P, random directions of the residual stream, drawn with the job's seed."""
    quantiles: Count = 16
    """Q, quantiles of a feature's distribution along each direction."""
    tokens_per_feature: Count = 256
    """Of a feature that fires on more tokens, a uniform sample of so many, drawn with the job's seed."""

    def problem(self, pair: FeaturePair) -> MatchingProblem:
        """The rows of both sides.

        Raises:
            UserError: an SAE of which no feature fires.
        """
        kept = pair.kept()
        firings = [
            Firings.empty(sae, features, self.tokens_per_feature)
            for sae, features in zip((pair.a, pair.b), kept, strict=True)
        ]
        states = _read(pair, firings, self.directions)
        left, right = (found.quantiles(states, self.quantiles) for found in firings)
        _place_silent([left, right], [found.count.cpu() > 0 for found in firings])
        return MatchingProblem(left, right, self.rejection_cost, self.n_pairs, *kept)

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """What the SAEs do on the text, and the seed; neither folding nor a folding scale."""
        facts = pair.facts()
        saes = [sae.content_hash for sae in (pair.a, pair.b)]
        return {name: facts[name] for name in ("layers", "streams", "sink_positions", "seed")} | {"saes": saes}

    def numbers_per_feature(self, d_model: int) -> int:
        """Quantiles along every direction, and the coordinates of features that never fire."""
        return self.directions * self.quantiles + APART

    def required_bytes(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> int:
        """What the solver needs for the rows; before, sampled tokens and the projections that are sorted."""
        samples = (8 * self.tokens_per_feature + 4 * self.numbers_per_feature(d_model)) * (n_a + n_b)
        sorting = max(SORTED, self.directions * self.tokens_per_feature)
        solving = RowDistance.required_bytes(self, solver, n_a, n_b, d_model)
        return max(solving, samples + SORTED_BYTES * sorting)

    def check_memory(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> None:
        """As it needs it; what the text takes is not known here."""
        refuse_above(
            solver.memory_limit_gib, self.required_bytes(solver, n_a, n_b, d_model), self.name, (n_a, n_b),
            "fewer directions, quantiles or tokens_per_feature, narrower SAEs or a machine with more memory",
        )  # fmt: skip


@dataclass
class Firings:
    """The tokens on which each feature fires, at most M of them, the first ones of an order of all tokens.

    Attributes:
        sae, kept: whose features, and which.
        token: [F, M] place of the token in the order; 0 where there are fewer.
        weight: [F, M] activation there; 0 where there are fewer.
        count: [F] on how many tokens it fires.
    """

    sae: SparseAutoencoder
    kept: Int[Tensor, " F"]
    token: Int[Tensor, "F M"]
    weight: Float[Tensor, "F M"]
    count: Int[Tensor, " F"]

    @classmethod
    def empty(cls, sae: SparseAutoencoder, kept: Int[Tensor, " F"], most: int) -> Firings:
        """Before any token has been read."""
        shape = len(kept), most
        token = torch.zeros(shape, dtype=torch.int32, device=sae.device)
        count = torch.zeros(len(kept), dtype=torch.int64, device=sae.device)
        return cls(sae, kept.to(sae.device), token, torch.zeros(shape, device=sae.device), count)

    def update(self, x: Float[Tensor, "tokens d"], start: int) -> None:
        """Read the next tokens, the first of which is number `start` of the order."""
        f = self.sae.encode(x.to(self.sae.device))[:, self.kept]
        active = f > 0
        place = active.cumsum(dim=0, dtype=torch.int32) - 1 + self.count.to(torch.int32)
        at, feature = (active & (place < self.token.shape[1])).nonzero(as_tuple=True)
        slot = place[at, feature].long()
        self.token[feature, slot] = (start + at).to(torch.int32)
        self.weight[feature, slot] = f[at, feature]
        self.count += active.sum(dim=0)

    def quantiles(self, states: Float[Tensor, "tokens P"], n: int) -> Float[Tensor, "F D"]:
        """Weighted quantiles of the states at the levels (q + 0.5) / n, over the root of P n, and `APART` zeros; all 0
        where a feature never fires. On the CPU."""
        p, most = states.shape[1], self.token.shape[1]
        levels = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).to(states.device)
        rows = torch.zeros(len(self.token), p * n + APART)
        at_once = max(1, SORTED // (p * most))
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            weight = self.weight[part, None].expand(-1, p, -1)
            values = states[self.token[part].long()].transpose(1, 2).masked_fill(weight == 0, torch.inf)
            values, order = values.sort(dim=2)
            mass = weight.gather(2, order).cumsum(dim=2, dtype=torch.float64)
            places = torch.searchsorted(mass, (levels * mass[:, :, -1:]).contiguous())
            rows[part, : p * n] = values.gather(2, places).flatten(1).cpu() / (p * n) ** 0.5
        rows[self.count.cpu() == 0] = 0.0
        return rows


@torch.no_grad()
def _read(pair: FeaturePair, firings: list[Firings], directions: int) -> Float[Tensor, "tokens P"]:
    """Collect firings, and the states of layer B along random directions, with mean 0 and variance 1 over all tokens.

    Tokens are read in a random order, so that the first ones on which a feature fires are a sample of all; both SAEs
    see the same order, and features that fire alike get the same sample.
    """
    x_a, x_b = pair.fit_residuals()
    counted = x_b.shape[1] - pair.sink_positions
    generator = torch.Generator().manual_seed(pair.seed)
    order = torch.randperm(x_b.shape[0] * counted, generator=generator)
    along = torch.randn(x_b.shape[2], directions, generator=generator, dtype=torch.float64).to(pair.b.device)
    states = torch.empty(len(order), directions, device=pair.b.device)
    start = 0
    for part in order.split(pair.batch_windows * counted):
        window, position = part // counted, part % counted + pair.sink_positions
        rows_a, rows_b = (x[window, position] for x in (x_a, x_b))
        for found, x in zip(firings, (rows_a, rows_b), strict=True):
            found.update(x, start)
        states[start : start + len(part)] = rows_b.to(pair.b.device, torch.float64) @ along
        start += len(part)
    for one in states.T:  # in float64, and no copy of them all
        deviation, mean = torch.std_mean(one.double(), correction=0)
        one.copy_((one - mean) / (deviation if deviation > 0 else 1.0))
    return states


def _place_silent(rows: list[Float[Tensor, "F D"]], fires: list[Bool[Tensor, " F"]]) -> None:
    """Fill in the rows of features that never fire, which are 0 before.

    Raises:
        UserError: an SAE of which no feature fires.
    """
    for mask, name in zip(fires, "AB", strict=True):
        if not bool(mask.any()):
            raise UserError(f"no feature of SAE {name} fires on the text that similarities are fitted on")
    silent = [int((~mask).sum()) for mask in fires]
    if any(silent):
        logger.info("semantic transport: %d and %d features never fire on the text it is fitted on", *silent)
    known = sum(int(mask.sum()) for mask in fires)
    mean, square = torch.zeros(rows[0].shape[1], dtype=torch.float64), 0.0
    for part in (part for side in rows for part in side.split(4096)):
        mean += part.sum(dim=0, dtype=torch.float64) / known
        square += float(part.square().sum(dtype=torch.float64)) / known
    apart = max(square - float(mean @ mean), 0.0) ** 0.5  # two rows are twice its square apart on average
    for own, (side, mask) in enumerate(zip(rows, fires, strict=True)):
        side[~mask] = mean.float()
        side[~mask, own - APART] = apart
