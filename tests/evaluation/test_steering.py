"""Interventions along flows: closed forms where blocks add nothing, and plain forward passes where they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_match import SparseAutoencoder
from sae_match.evaluation.functional.steering import (
    CANDIDATES,
    FlowFeatures,
    Steered,
    activity_in,
    chains,
    equally_active,
    steer,
)
from sae_match.language_model import LanguageModel
from sae_match.language_model.interventions import continue_greedily
from tests.builders import identity_sae, random_sae
from tests.language_model.conftest import LAYERS, VOCAB, WIDTH, build, build_pass_through
from tests.language_model.test_resume_forward import assert_untouched

WINDOWS = np.array([0, 3])
IDENTITY = dict.fromkeys(range(LAYERS), identity_sae(WIDTH))
MINE: FlowFeatures = [(0, (5,)), (1, (5,)), (2, (5,))]
MIXED: FlowFeatures = [(0, (5,)), (1, (9,)), (2, (2,))]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build("llama")


@pytest.fixture(scope="module")
def pass_through() -> LanguageModel:
    """A model whose blocks beyond the first add nothing to the residual stream."""
    return build_pass_through(*range(1, LAYERS))


def subject(model: LanguageModel, saes: dict[int, SparseAutoencoder]) -> Steered:
    ids = torch.randint(3, VOCAB, (5, 14), generator=torch.Generator().manual_seed(1))
    streams = model.resid_post(ids, range(LAYERS))
    return Steered(model, saes, streams.__getitem__, ids, context_tokens=12)


def effects(of: Steered, flow: FlowFeatures, scales: list[float]) -> dict[tuple[float, int | None], dict[str, float]]:
    return {(row["scale"], row["layer"]): row for row in steer(of, flow, WINDOWS, scales)}


def divergence(of: Steered, changed: Tensor, clean: Tensor) -> Tensor:
    """KL of the predictions of final residual streams, [windows, tokens]; the model's norm and head by hand."""
    hf = of.model.hf
    with torch.no_grad():
        log_p, log_q = (hf.lm_head(hf.model.norm(x)).double().log_softmax(-1) for x in (clean, changed))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def test_what_is_handed_on_is_removed_once_and_scaled_at_every_layer(pass_through: LanguageModel) -> None:
    of = subject(pass_through, IDENTITY)
    x = of.streams(0)[torch.as_tensor(WINDOWS)][:, :12]
    f = x[..., 5].clamp(min=0)  # feature 5 of the identity SAE is what is positive along e_5
    f[:, 0] = 0
    fires = f > 0
    tokens = int(sum(12 - row.nonzero()[0, 0] for row in fires))
    found = effects(of, MINE, [0, 2, 1])
    for scale, factor in ((0, 0), (2, 2)):
        for place, times in ((0, 1), (1, 1), (2, 1), (None, 3)):
            changed = x.clone()
            changed[..., 5] += (factor**times - 1) * f
            row = found[scale, place]
            assert row["kl"] == pytest.approx(float(divergence(of, changed, x).sum()) / tokens, rel=1e-3, abs=1e-7)
            assert row["tokens"] == tokens and row["firing"] == pytest.approx(float(fires.sum()) / 22)
    # Removed at one layer, it is gone from the later ones, which removing it there again leaves as it is.
    assert found[0, None]["kl"] == pytest.approx(found[0, 0]["kl"], rel=1e-4)
    assert found[0, 0]["later"] == found[0, None]["later"] == -1 and found[0, 0]["others"] == pytest.approx(0, abs=1e-6)
    assert found[2, 0]["later"] == pytest.approx(1) and found[2, None]["later"] == pytest.approx((1 + 3) / 2)
    assert np.isnan(found[0, 2]["later"]) and found[0, 0]["kl"] > 1e-3
    for place in (0, 1, 2, None):
        assert found[1, place]["kl"] < 1e-6 and abs(found[1, place]["loss"]) < 1e-6
        assert found[1, place]["later"] != found[1, place]["later"] or abs(found[1, place]["later"]) < 1e-6


def test_a_planted_flow_carries_and_a_mixed_one_does_not(pass_through: LanguageModel) -> None:
    of = subject(pass_through, IDENTITY)
    planted, mixed = (effects(of, flow, [0]) for flow in (MINE, MIXED))
    single = {name: sum(found[0, layer]["kl"] for layer in range(3)) for name, found in (("p", planted), ("m", mixed))}
    assert planted[0, None]["kl"] / single["p"] == pytest.approx(1 / 3, rel=1e-3)
    assert mixed[0, None]["kl"] / single["m"] > 0.6
    assert planted[0, 0]["later"] == -1 and mixed[0, 0]["later"] == pytest.approx(0, abs=1e-6)


def test_rows_are_those_of_plain_passes_with_hooks(model: LanguageModel) -> None:
    """Losses and divergences with several features in a layer, from hooks written down anew on whole passes."""
    saes = {layer: random_sae(40, WIDTH, seed=layer) for layer in range(LAYERS)}
    of = subject(model, saes)
    flow: FlowFeatures = [(0, (3, 8)), (1, (7,)), (2, (1, 2, 30))]
    found = effects(of, flow, [0.5])
    ids = of.ids[torch.as_tensor(WINDOWS)][:, :12]

    def logits(places: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        arrived: dict[int, Tensor] = {}

        def hook_of(layer: int, features: list[int]):  # type: ignore[no-untyped-def]
            def hook(_block: object, _args: object, output: Tensor) -> Tensor:
                sae = saes[layer]
                pre = output @ sae.W_enc + sae.b_enc
                f = pre * (pre > sae.threshold)
                f[:, 0] = 0
                arrived[layer] = f
                new = output.clone()
                for feature in features if layer in places else []:
                    new -= 0.5 * f[..., feature, None] * sae.W_dec[feature]
                return new

            return hook

        hooks = [model.blocks[layer].register_forward_hook(hook_of(layer, list(own))) for layer, own in flow]
        with torch.no_grad():
            output = model.hf(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        for hook in hooks:
            hook.remove()
        return output, arrived

    log_p, clean = logits(())
    fires = torch.stack([(clean[layer][..., list(own)] > 0).any(-1) for layer, own in flow]).any(0)
    tokens = int(sum(12 - row.nonzero()[0, 0] for row in fires if row.any()))
    target = ids[:, 1:, None]
    for place, places in ((0, (0,)), (1, (1,)), (2, (2,)), (None, (0, 1, 2))):
        log_q, arrived = logits(places)
        kl = (log_p.exp() * (log_p - log_q)).sum()
        loss = (log_p - log_q)[:, :-1].gather(2, target).sum()
        row = found[0.5, place]
        assert row["kl"] == pytest.approx(float(kl) / tokens, rel=1e-3, abs=1e-7)
        assert row["loss"] == pytest.approx(float(loss) / tokens, rel=1e-3, abs=1e-6)
        sums = {"later": [0.0, 0.0], "others": [0.0, 0.0]}
        for layer, own in flow:
            if layer > places[0]:
                norms = saes[layer].W_dec.norm(dim=1)
                for side, f in enumerate((clean, arrived)):
                    written = f[layer][fires].sum(0) * norms
                    sums["later"][side] += float(written[list(own)].sum())
                    sums["others"][side] += float(written.sum() - written[list(own)].sum())
        for name, (before, after) in sums.items():
            assert row[name] == pytest.approx(after / before - 1 if before else np.nan, rel=1e-3, abs=1e-5, nan_ok=True)
    assert found[0.5, None]["kl"] > 1e-4
    assert_untouched(model)


def test_continuations_are_greedy_and_changed(pass_through: LanguageModel) -> None:
    of = subject(pass_through, IDENTITY)
    ids = of.ids[0, :6]
    expected = ids
    for _ in range(4):
        with torch.no_grad():
            expected = torch.cat([expected, pass_through.hf(expected[None]).logits[0, -1:].argmax(-1)])
    assert continue_greedily(pass_through, ids, 4) == expected[6:].tolist()
    feature = int(of.streams(0)[0, 5].argmax())  # what the last token's residual stream has most of
    scaled = continue_greedily(pass_through, ids, 4, of.changes([(1, (feature,))], 100.0, [1]))
    once = of.streams(0)[0, 5].clone()
    once[feature] *= 100
    with torch.no_grad():
        assert scaled[0] == int(pass_through.hf.lm_head(pass_through.hf.model.norm(once)).argmax())


def test_chains_follow_partners_until_there_is_none() -> None:
    partners = [np.array([2, 0, -1]), np.array([1, 1, 0])]
    assert chains([0, 1, 2], [4, 6, 7], partners) == [
        [(4, (0,)), (6, (2,)), (7, (0,))], [(4, (1,)), (6, (0,)), (7, (1,))], [(4, (2,))],
    ]  # fmt: skip


def test_a_random_flow_is_as_active_and_shares_no_feature() -> None:
    rng = np.random.default_rng(0)
    tokens = np.repeat([0, 1, 50], 20)
    activity = np.stack([tokens, tokens * rng.uniform(1, 1.2, 60)]).astype(float)
    drawn = equally_active([3, 25, 41, 42], activity, np.random.default_rng(1))
    assert [tokens[one] for one in drawn] == [0, 1, 50, 50]
    assert len({*drawn, 3, 25, 41, 42}) == 8
    assert drawn == equally_active([3, 25, 41, 42], activity, np.random.default_rng(1))
    nearest = np.argsort(abs(np.log(activity[1, 20:40] / activity[1, 25])))[1 : 1 + CANDIDATES] + 20
    assert drawn[1] in nearest
    sae, x = random_sae(24, 8), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    fires, written = activity_in(sae, x, sink_positions=2)
    f = sae.encode(x[:, 2:]).flatten(0, 1)
    np.testing.assert_allclose(fires, (f > 0).sum(0))
    np.testing.assert_allclose(written, (f[..., None] * sae.W_dec).norm(dim=-1).sum(0), rtol=1e-5)
