"""What single features do: removed, put in another's place, and to first order on the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.evaluation.correlation import mean_and_scale
from sae_match.evaluation.splices import SpliceUnits
from sae_match.language_model.interventions import loss_gradients, next_token_divergence, resid_post_from
from sae_match.language_model.model import LanguageModel
from sae_match.saes import SparseAutoencoder

BLOCK_ROWS = 256
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class FunctionalPair:
    """Two SAEs, the model and the text on which their features are tested.

    Attributes:
        a, b: SAEs of layers t and t+k; of one layer (k = 0) two seeds.
        layers: t and t+k.
        x_a, x_b: resid_post of both on the same tokens; memory-mapped CPU tensors are fine.
        ids: token ids of the same windows.
        context_tokens: leading tokens of a window that make a context.
        sink_positions: positions at each window's start that are never changed or counted.
        units: in which an activation of A is carried to B's decoder row, `theta` or `raw`.
        batch_windows: windows per forward pass; changes memory use, not the result.
    """

    model: LanguageModel
    a: SparseAutoencoder
    b: SparseAutoencoder
    layers: tuple[int, int]
    x_a: Float[Tensor, "windows tokens d"]
    x_b: Float[Tensor, "windows tokens d"]
    ids: Int[Tensor, "windows tokens"]
    context_tokens: int = 64
    sink_positions: int = 1
    units: SpliceUnits = SpliceUnits.theta
    batch_windows: int = 8

    @property
    def seeds(self) -> bool:
        """Whether both SAEs read the same layer."""
        return self.layers[0] == self.layers[1]

    @property
    def batch_contexts(self) -> int:
        """Contexts per forward pass: about as many tokens as in `batch_windows` windows."""
        return max(1, self.batch_windows * self.ids.shape[1] // self.context_tokens)

    def read(self, x: Tensor, windows: Sequence[int] | npt.NDArray[np.int64]) -> Float[Tensor, "C T d"]:
        """Residual streams of contexts, on the device of A."""
        return x[torch.as_tensor(windows)][:, : self.context_tokens].to(self.a.device, torch.float32)

    def context_ids(self, windows: npt.NDArray[np.int64]) -> Int[Tensor, "C T"]:
        """Token ids of contexts."""
        return self.ids[torch.as_tensor(windows)][:, : self.context_tokens]

    def counted(self, activations: Float[Tensor, "*C T F"]) -> Float[Tensor, "*C T F"]:
        """Activations with those at the sink positions set to 0."""
        activations[..., : self.sink_positions, :] = 0
        return activations


@torch.no_grad()
def deactivate(pair: FunctionalPair, feature: int, windows: npt.NDArray[np.int64]) -> Arrays:
    """Activations of all of B with and without one feature of A, over the tokens on which that feature fires.

    x^t - f_i d_i replaces x^t at those tokens, and blocks t+1 to t+k run. An activation is measured by the norm of
    what it writes, f_j |d_j|; for decoder rows of unit norm that is f_j. For two seeds of a layer nothing is removed.

    Args:
        feature: of A; it fires in all contexts.
        windows: [C] its contexts.

    Returns:
        `columns`: [m] features of B that are active with or without it; the others are 0 throughout. `clean`,
        `ablated`: [C, m] their activations, summed over tokens. `together`: [m] tokens on which both fire.
    """
    x, f = _activity(pair, feature, windows)
    fires = (f > 0).float()
    later = pair.read(pair.x_b, windows)
    states = [later]
    if not pair.seeds:
        without = x - f[..., None] * pair.a.W_dec[feature]
        ids, (t, to) = pair.context_ids(windows), pair.layers
        parts = zip(without.split(pair.batch_contexts), ids.split(pair.batch_contexts), strict=True)
        states.append(torch.cat([resid_post_from(pair.model, t, part, at, to).to(x) for part, at in parts]))
    norms = pair.b.W_dec.norm(dim=1)
    sums = [torch.zeros(len(windows), pair.b.width, device=x.device) for _ in states]
    together = torch.zeros(pair.b.width, device=x.device)
    for context in range(len(windows)):
        for total, state in zip(sums, states, strict=True):
            activations = pair.b.encode(state[context])
            total[context] = fires[context] @ activations * norms
            if total is sums[0]:
                together += fires[context] @ (activations > 0).float()
    columns = torch.stack(sums).abs().sum(dim=(0, 1)).nonzero().flatten()
    named = dict(zip(("clean", "ablated"), sums, strict=False))
    return {
        "columns": columns.cpu().numpy(),
        "together": together[columns].long().cpu().numpy(),
        **{name: values[:, columns].cpu().numpy() for name, values in named.items()},
    }


@torch.no_grad()
def substitute(
    pair: FunctionalPair, feature: int, partners: npt.NDArray[np.int64], windows: npt.NDArray[np.int64]
) -> Arrays:
    """How far the model's predictions move when a partner is removed, and when the feature stands in for it.

    At layer t+k, at every token on which feature i or partner j fires: x - f_j d_j, and x - f_j d_j + c_i d_j with
    what i carries along the pair, c_i = f_i theta_j / theta_i, or f_i in raw units. Two seeds of a layer: x - f_i d_i,
    and x - f_i d_i + f_j d_j.

    Args:
        partners: [m] of B.
        windows: [C] contexts of the feature.

    Returns:
        `ablated`, `substituted`: [m, C] KL divergence of the next-token distribution from the clean model's, summed
        over the tokens from the first changed one on, nats.
    """
    chosen = torch.as_tensor(partners)
    f_i = _activity(pair, feature, windows)[1]
    x = pair.read(pair.x_b, windows)
    f_j = torch.stack([pair.b.encode(context)[:, chosen.to(x.device)] for context in x])
    f_j = pair.counted(f_j).permute(2, 0, 1)  # [m, C, T]
    d_i, d_j = pair.a.W_dec[feature], pair.b.W_dec[chosen.to(x.device)]
    if pair.seeds:
        removed, given = f_i[None, ..., None] * d_i, f_j[..., None] * d_j[:, None, None]
    else:
        scale = (
            pair.b.theta[chosen.to(x.device)] / pair.a.theta[feature]
            if pair.units is SpliceUnits.theta
            else torch.ones(len(partners), device=x.device)
        )
        removed = f_j[..., None] * d_j[:, None, None]
        given = (f_i * scale[:, None, None])[..., None] * d_j[:, None, None]
    without = x - removed  # of two seeds the same whatever the partner: [1, C, T, d]
    moved_at = f_i[None] > 0 if pair.seeds else f_j > 0
    changes = {"ablated": (without, moved_at), "substituted": (without + given, (f_i[None] > 0) | (f_j > 0))}
    found = {}
    for name, (changed, touched) in changes.items():
        # A partner that is silent in a context changes nothing when it is removed: 0 without a forward pass.
        moved = touched.any(dim=2)
        divergence = torch.zeros(moved.shape, dtype=torch.float64)
        if bool(moved.any()):
            divergence[moved.cpu()] = next_token_divergence(
                pair.model, pair.layers[1], x, pair.context_ids(windows), changed[moved],
                moved.nonzero()[:, 1].cpu(), touched.to(torch.uint8).argmax(dim=2)[moved].cpu(), pair.batch_contexts,
            )  # fmt: skip
        found[name] = divergence.expand(len(partners), -1).numpy()
    return found


@torch.no_grad()
def fingerprints(
    pair: FunctionalPair, features: npt.NDArray[np.int64], tick: Callable[[int], object] = lambda n: None
) -> Float[np.ndarray, "n F_b"]:
    """Correlation over all counted tokens of the first-order effects of A's features with those of all of B.

    e_i(tau) = -f_i(tau) d_i . dL/dx(tau): to first order, what the summed next-token loss of the window gains when the
    feature is removed at token tau. One backward pass per window serves all features. A feature without effect
    correlates with nothing: 0.

    Args:
        features: [n] of A.
        tick: called with the number of windows done.
    """
    wanted = torch.as_tensor(features, device=pair.a.device)
    widths = len(features), pair.b.width
    moments = [torch.zeros(2, width, dtype=torch.float64, device=pair.a.device) for width in widths]
    products = torch.zeros(*widths, device=pair.a.device)
    tokens = 0
    for start in range(0, len(pair.ids), pair.batch_windows):
        rows = slice(start, start + pair.batch_windows)
        effects_a, effects_b = _effects(pair, rows, wanted)
        for total, effects in zip(moments, (effects_a, effects_b), strict=True):
            total[0] += effects.sum(dim=0, dtype=torch.float64)
            total[1] += effects.double().square().sum(dim=0)
        products += effects_a.T @ effects_b
        tokens += len(effects_a)
        tick(len(pair.ids[rows]))
    means, scales = zip(*(mean_and_scale(total / tokens) for total in moments), strict=True)
    for start in range(0, len(features), BLOCK_ROWS):  # in float64 all rows at once would outweigh everything else
        rows = slice(start, start + BLOCK_ROWS)
        covariance = products[rows].double() / tokens - means[0][rows, None] * means[1][None]
        products[rows] = (covariance * scales[0][rows, None] * scales[1][None]).clamp(-1, 1).float()
    return products.cpu().numpy()


@torch.no_grad()
def ablation_check(
    pair: FunctionalPair, features: npt.NDArray[np.int64], windows: Sequence[int], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """First-order effects of features on the loss beside those of truly removing them at the same token.

    Args:
        features: [n] of A.
        windows: of each a window in whose context it fires; the token is drawn among those on which it does.

    Returns:
        -f d . dL/dx, and the loss without the feature minus the loss: [n] nats each.
    """
    estimated, true = [], []
    for feature, window in zip(features, windows, strict=True):
        row = slice(int(window), int(window) + 1)
        x, ids = pair.x_a[row].to(pair.a.device, torch.float32), pair.ids[row]
        f = pair.counted(pair.a.encode(x))[0, : pair.context_tokens, int(feature)]
        at = int(rng.choice(torch.nonzero(f).flatten().cpu().numpy()))
        write = f[at] * pair.a.W_dec[int(feature)]
        gradient = loss_gradients(pair.model, [pair.layers[0]], x, ids, pair.sink_positions)[pair.layers[0]]
        estimated.append(-float(write @ gradient[0, at].to(write)))
        without = x.clone()
        without[0, at] -= write
        clean, changed = (
            pair.model.token_losses_from(pair.layers[0], state, ids)[:, pair.sink_positions :].double().sum()
            for state in (x, without)
        )
        true.append(float(changed - clean))
    return np.asarray(estimated), np.asarray(true)


def _activity(
    pair: FunctionalPair, feature: int, windows: npt.NDArray[np.int64]
) -> tuple[Float[Tensor, "C T d"], Float[Tensor, "C T"]]:
    """Residual streams of A's layer in some contexts, and one feature's activation, 0 at the sink positions."""
    x = pair.read(pair.x_a, windows)
    f = torch.stack([pair.a.encode(context)[:, feature : feature + 1] for context in x])
    return x, pair.counted(f)[..., 0]


def _effects(
    pair: FunctionalPair, rows: slice, wanted: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "tokens n"], Float[Tensor, "tokens F_b"]]:
    x_a, x_b = (x[rows].to(pair.a.device, torch.float32) for x in (pair.x_a, pair.x_b))
    layers = list(dict.fromkeys(pair.layers))
    gradients = loss_gradients(pair.model, layers, x_a, pair.ids[rows], pair.sink_positions)
    found = []
    for sae, x, layer, columns in ((pair.a, x_a, pair.layers[0], wanted), (pair.b, x_b, pair.layers[1], None)):
        f, g = sae.encode(x)[:, pair.sink_positions :], gradients[layer][:, pair.sink_positions :].to(x)
        d = sae.W_dec
        if columns is not None:
            f, d = f[..., columns], d[columns]
        found.append(-(f * (g @ d.T)).flatten(0, 1))
    return found[0], found[1]
