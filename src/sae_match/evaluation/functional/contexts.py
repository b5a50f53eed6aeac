"""Which features are tested, and in which contexts: the same for every matcher, whatever the order of the features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from sae_match.options import option
from sae_match.saes import SparseAutoencoder

Test = Literal["deactivation", "substitution", "fingerprint"]
Pairs = Literal["adjacent", "distant", "seeds", "sources"]
QUARTILES = 4
MAX_SEED = 2**32
CONTEXT_TOKENS = 32
"""Leading tokens of a window that interventions along flows read."""


@option
class FunctionalTests:
    """Tests of what matched features do in the model, as metrics of every pair of the job.

    Of neighbors and of two seeds by all of its matchers, of layers further apart by the composed, the exact and a
    random permutation.
    """

    tests: tuple[Test, ...] = get_args(Test)
    """deactivation: remove the feature, and see whether its partner is less active k layers later. substitution: put
    what the feature carries in the partner's place, and measure the model's predictions. fingerprint: correlate the
    first-order effects of both on the loss."""
    pairs: tuple[Pairs, ...] = get_args(Pairs)
    """Which pairs of the job are tested: neighbors, layers further apart (`composition`), two seeds of a layer,
    those of two sources (`pairs`)."""
    features: Annotated[int, Field(ge=0)] = 200
    """Features of the earlier layer that are tested, a quarter from each quartile of firing rate; 0 = all that fire."""
    contexts: Annotated[int, Field(ge=1)] = 4
    """Windows in which each of them is tested, drawn among those in which it fires."""
    context_tokens: Annotated[int, Field(ge=2)] = 64
    """Leading tokens of a window that deactivation and substitution read; the windows may be longer. More than
    `model.sink_positions`, which are never counted."""
    checked: Annotated[int, Field(ge=0)] = 64
    """True ablations that the fingerprints' first-order effects are compared with; 0 = none."""
    seed: Annotated[int, Field(ge=0, lt=MAX_SEED)] = 0
    """Seed of the samples."""

    @field_validator("tests")
    @classmethod
    def _each_once(cls, tests: tuple[Test, ...]) -> tuple[Test, ...]:
        if not tests or len(set(tests)) < len(tests):
            raise ValueError("name each test once, and at least one; evaluation.functional=null runs none")
        return tests


@option
class Steering:
    """Interventions along flows: a feature of the span's first layer and its partners in the layers that follow.

    Each is scaled at one layer by itself and at all of them, beside a random flow of equal activity.
    """

    scales: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 2.0)
    """Factors by which features are scaled; 0 = removed."""
    flows: Annotated[int, Field(ge=0)] = 32
    """Flows, a quarter from each quartile of firing rate of their first features; 0 = all."""
    contexts: Annotated[int, Field(ge=1)] = 2
    """Windows in which each is tested; a flow whose first feature fires in fewer is left out."""

    @field_validator("scales")
    @classmethod
    def _each_once(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or len(set(scales)) < len(scales):
            raise ValueError("name each scale once, and at least one; evaluation.steering=null changes nothing")
        return scales


@dataclass(frozen=True)
class Contexts:
    """The features of A that are tested, n of them, each in at least one context.

    Attributes:
        features: [n] ascending.
        quartile: [n] of the firing rate, 1 (rarest) to 4, among all features that fire.
        firing_rate: [n] share of the counted tokens on which each fires.
        windows: of each feature, the windows in which it is tested, ascending.
        rng_seeds: [n] from each feature's parameters, for whatever else is drawn for it.
        never_fires: features of A that fire on none of these tokens, and cannot be tested.
    """

    features: Int[np.ndarray, " n"]
    quartile: Int[np.ndarray, " n"]
    firing_rate: Float[np.ndarray, " n"]
    windows: tuple[npt.NDArray[np.int64], ...]
    rng_seeds: npt.NDArray[np.uint64]
    never_fires: int

    def rng(self, position: int) -> np.random.Generator:
        """Random numbers for one feature: the same whatever else is tested."""
        return np.random.default_rng(int(self.rng_seeds[position]))


def parameter_hashes(sae: SparseAutoencoder, seed: int) -> npt.NDArray[np.uint64]:
    """[F] a number from each feature's encoder column and decoder row: an order that no reordering changes."""
    encoder, decoder = (values.detach().cpu().float().contiguous().numpy() for values in (sae.W_enc.T, sae.W_dec))
    start = seed.to_bytes(8, "little")
    digests = (
        hashlib.blake2b(start + column.tobytes() + row.tobytes(), digest_size=8).digest()
        for column, row in zip(encoder, decoder, strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def choose_contexts(
    sae: SparseAutoencoder,
    x: Float[Tensor, "windows tokens d"],
    how: FunctionalTests,
    batch_windows: int = 8,
    sink_positions: int = 1,
    least: int = 1,
) -> Contexts:
    """Draw the features of A that are tested, stratified by firing rate, and the contexts of each.

    Args:
        x: resid_post of A's layer; of each window the leading `context_tokens` are read.
        sink_positions: positions at each window's start that are never counted.
        least: a feature that fires in fewer windows is not drawn, and has no quartile.
    """
    counts = _firing_tokens(sae, x[:, sink_positions : how.context_tokens], batch_windows)
    total = counts.sum(axis=0)
    hashes = parameter_hashes(sae, how.seed)
    alive = np.flatnonzero((counts > 0).sum(axis=0) >= least)
    ranked = alive[np.lexsort((hashes[alive], total[alive]))]
    quartile = np.zeros(sae.width, np.int64)
    quartile[ranked] = 1 + QUARTILES * np.arange(len(ranked)) // max(1, len(ranked))
    if how.features:
        drawn = [ranked[quartile[ranked] == q] for q in range(1, QUARTILES + 1)]
        # What does not divide by four goes to the rarest quartiles first.
        sizes = [(how.features + QUARTILES - q) // QUARTILES for q in range(1, QUARTILES + 1)]
        alive = np.sort(
            np.concatenate([part[np.argsort(hashes[part])][:size] for part, size in zip(drawn, sizes, strict=True)])
        )
    windows = []
    for feature in alive:
        among = np.flatnonzero(counts[:, feature])
        windows.append(np.sort(np.random.default_rng(int(hashes[feature])).permutation(among)[: how.contexts]))
    tokens = x.shape[0] * (min(x.shape[1], how.context_tokens) - sink_positions)
    return Contexts(
        alive, quartile[alive], total[alive] / tokens, tuple(windows), hashes[alive], int((total == 0).sum())
    )


@torch.no_grad()
def _firing_tokens(sae: SparseAutoencoder, x: Tensor, batch_windows: int) -> npt.NDArray[np.int32]:
    """[windows, F] number of tokens on which each feature fires."""
    parts = [
        (sae.encode(part.to(sae.device)) > 0).sum(dim=1, dtype=torch.int32).cpu() for part in x.split(batch_windows)
    ]
    return torch.cat(parts).numpy()
