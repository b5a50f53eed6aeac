"""Functional tests of single features: against plain forward passes, and pairs whose answer is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_match import SparseAutoencoder
from sae_match.evaluation.functional.contexts import Contexts, FunctionalTests, choose_contexts
from sae_match.evaluation.functional.effects import (
    FunctionalPair,
    ablation_check,
    deactivate,
    fingerprints,
    substitute,
)
from sae_match.evaluation.splices import SpliceUnits
from sae_match.language_model import LanguageModel
from tests.builders import permuted, random_sae
from tests.language_model.conftest import VOCAB, WIDTH, build, build_pass_through
from tests.language_model.test_interventions import full_pass

N = 40


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build("llama")


@pytest.fixture(scope="module")
def pass_through() -> LanguageModel:
    """A model whose block 1 adds nothing to the residual stream."""
    return build_pass_through(1)


def make_pair(
    model: LanguageModel, a: SparseAutoencoder, b: SparseAutoencoder, layers: tuple[int, int]
) -> FunctionalPair:
    ids = torch.randint(3, VOCAB, (9, 12), generator=torch.Generator().manual_seed(1))
    streams = model.resid_post(ids, sorted(set(layers)))
    return FunctionalPair(model, a, b, layers, streams[layers[0]], streams[layers[1]], ids, context_tokens=10)


def chosen(pair: FunctionalPair, **how: object) -> Contexts:
    return choose_contexts(pair.a, pair.x_a, FunctionalTests(context_tokens=10, **{"features": 0, **how}))


def order(seed: int = 5) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed))


A, B = random_sae(N, WIDTH, seed=1), random_sae(N, WIDTH, seed=2)


def test_deactivation_is_the_difference_of_two_full_passes(model: LanguageModel) -> None:
    pair = make_pair(model, A, B, (0, 2))
    contexts = chosen(pair)
    for i in (0, len(contexts.features) - 1):
        feature, windows = int(contexts.features[i]), contexts.windows[i]
        got = deactivate(pair, feature, windows)
        for at, window in enumerate(windows):
            ids = pair.ids[[window], :10]
            with torch.no_grad():
                _, x = full_pass(model, ids, {}, 0)
                f = A.encode(x)[0, :, feature].clone()
                f[0] = 0  # the sink position
                _, clean = full_pass(model, ids, {}, 2)
                _, ablated = full_pass(model, ids, {0: x - f[None, :, None] * A.W_dec[feature]}, 2)
            fires = f > 0
            norms = B.W_dec.norm(dim=1)
            for name, state in (("clean", clean), ("ablated", ablated)):
                expected = B.encode(state)[0, fires].sum(dim=0) * norms
                full = np.zeros(N)
                full[got["columns"]] = got[name][at]
                np.testing.assert_allclose(full, expected.numpy(), rtol=1e-4, atol=1e-5)
        # A weighted activation is the same whatever the units of the decoder rows.
        stretched = replace(pair, b=scaled(B))
        np.testing.assert_allclose(deactivate(stretched, feature, windows)["clean"], got["clean"], rtol=1e-4)


def scaled(sae: SparseAutoencoder, by: float = 4.0) -> SparseAutoencoder:
    """The same dictionary with activations that are larger and decoder rows that are shorter."""
    return sae.replace(W_enc=sae.W_enc * by, b_enc=sae.b_enc * by, threshold=sae.threshold * by, W_dec=sae.W_dec / by)


def test_substitution_is_the_divergence_of_full_passes(model: LanguageModel) -> None:
    pair = make_pair(model, A, B, (0, 1))
    contexts = chosen(pair)
    feature, windows = int(contexts.features[0]), contexts.windows[0]
    partners = np.arange(6)
    for units in (SpliceUnits.theta, SpliceUnits.raw):
        got = substitute(replace(pair, units=units), feature, partners, windows)
        for at, window in enumerate(windows):
            ids = pair.ids[[window], :10]
            with torch.no_grad():
                logits, x_a = full_pass(model, ids, {}, 0)
                _, x_b = full_pass(model, ids, {}, 1)
                f_i, f_j = A.encode(x_a)[0, :, feature], B.encode(x_b)[0]
                f_i[0], f_j[0] = 0, 0
                for j in partners:
                    carried = f_i * (B.threshold[j] / A.threshold[feature] if units is SpliceUnits.theta else 1)
                    without = x_b - f_j[None, :, j, None] * B.W_dec[j]
                    for name, state in (
                        ("ablated", without),
                        ("substituted", without + carried[None, :, None] * B.W_dec[j]),
                    ):
                        log_q = full_pass(model, ids, {1: state}, 1)[0].double().log_softmax(dim=-1)
                        log_p = logits.double().log_softmax(dim=-1)
                        expected = functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
                        assert got[name][j, at] == pytest.approx(float(expected), rel=1e-3, abs=2e-5)


def test_a_permuted_copy_of_one_layer_is_interchangeable_and_a_random_partner_is_not(model: LanguageModel) -> None:
    there = order()
    pair = make_pair(model, A, permuted(A, there), (1, 1))
    partner_of = there.argsort().numpy()
    contexts, removed, replaced, others = chosen(pair), 0.0, 0.0, 0.0
    for feature, windows in zip(contexts.features, contexts.windows, strict=True):
        true, other = partner_of[feature], partner_of[(feature + 7) % N]
        got = substitute(pair, int(feature), np.array([true, other]), windows)
        assert got["ablated"][0] == pytest.approx(got["ablated"][1]), "what is removed does not depend on the partner"
        removed += got["ablated"][0].sum()
        replaced += got["substituted"][0].sum()
        others += got["substituted"][1].sum()
    assert removed > 1 and 1 - replaced / removed == pytest.approx(1, abs=1e-4)
    assert 1 - others / removed < 0.2
    correlation = fingerprints(pair, contexts.features)
    np.testing.assert_allclose(correlation[np.arange(len(correlation)), partner_of[contexts.features]], 1, atol=1e-4)


def test_a_block_that_does_nothing_hands_features_on(pass_through: LanguageModel) -> None:
    there = order(6)
    tied = A.replace(W_enc=A.W_dec.T.contiguous(), b_enc=torch.zeros(N))
    pair = make_pair(pass_through, tied, permuted(tied, there), (0, 1))
    partner_of = there.argsort().numpy()
    contexts = chosen(pair)
    drops, removed, replaced = [], 0.0, 0.0
    for feature, windows in zip(contexts.features, contexts.windows, strict=True):
        got = deactivate(pair, int(feature), windows)
        lost = (got["clean"] - got["ablated"]).sum(axis=0)
        assert got["columns"][lost.argmax()] == partner_of[feature]
        own = got["columns"] == partner_of[feature]
        drops.append(1 - got["ablated"][:, own].sum() / got["clean"][:, own].sum())
        effect = substitute(pair, int(feature), partner_of[[feature]], windows)
        removed, replaced = removed + effect["ablated"].sum(), replaced + effect["substituted"].sum()
    # x - f d loses |d|^2 f of its projection on d, which is all of it but for b_dec.
    assert np.mean(drops) > 0.9
    assert replaced < 1e-4 * removed
    correlation = fingerprints(pair, contexts.features)
    np.testing.assert_allclose(correlation[np.arange(len(correlation)), partner_of[contexts.features]], 1, atol=1e-4)


def test_nothing_depends_on_batches_order_or_other_partners(model: LanguageModel) -> None:
    pair = make_pair(model, A, B, (0, 1))
    contexts = chosen(pair, features=12, contexts=3)
    single = replace(pair, batch_windows=1)
    there = order(8)
    turned = replace(pair, a=permuted(A, there))
    moved = chosen(turned, features=12, contexts=3)
    back = {int(there[j]): at for at, j in enumerate(moved.features)}
    assert sorted(back) == contexts.features.tolist(), "the same features are drawn, whatever their order"
    for i, feature in enumerate(contexts.features):
        windows = contexts.windows[i]
        np.testing.assert_array_equal(moved.windows[back[int(feature)]], windows)
        one, other = (deactivate(p, int(feature), windows) for p in (pair, single))
        np.testing.assert_allclose(other["ablated"], one["ablated"], rtol=1e-4, atol=1e-6)
        both, alone = (substitute(p, int(feature), np.array(j), windows) for p, j in ((pair, [3, 5]), (single, [5])))
        np.testing.assert_allclose(both["substituted"][1], alone["substituted"][0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        fingerprints(single, contexts.features), fingerprints(pair, contexts.features), atol=1e-4
    )


def test_first_order_effects_are_true_for_small_features(model: LanguageModel) -> None:
    small = A.replace(W_dec=A.W_dec * 1e-3)
    pair = make_pair(model, small, B, (0, 1))
    contexts = chosen(pair)
    estimated, true = ablation_check(
        pair, contexts.features, [int(windows[0]) for windows in contexts.windows], np.random.default_rng(0)
    )
    assert np.corrcoef(estimated, true)[0, 1] > 0.98
    assert np.polyfit(estimated, true, 1)[0] == pytest.approx(1, abs=0.1)


def test_features_are_drawn_from_every_quartile_of_firing_rate(model: LanguageModel) -> None:
    dead = A.replace(threshold=A.threshold.clone().index_fill(0, torch.tensor([4, 9]), 1e6))
    pair = make_pair(model, dead, B, (0, 1))
    every, some = chosen(pair), chosen(pair, features=8, contexts=2)
    assert {4, 9} <= set(range(N)) - set(every.features.tolist())
    assert len(every.features) + every.never_fires == N
    assert np.bincount(some.quartile, minlength=5).tolist() == [0, 2, 2, 2, 2]
    rates = [every.firing_rate[every.quartile == q] for q in (1, 2, 3, 4)]
    assert all(low.max() <= high.min() for low, high in itertools.pairwise(rates))
    fires = (dead.encode(pair.x_a[:, 1:10]) > 0).any(dim=1).numpy()
    for feature, windows in zip(some.features, some.windows, strict=True):
        assert 1 <= len(windows) <= 2 and fires[windows, feature].all()
    counted = (dead.encode(pair.x_a[:, 1:10]) > 0).float().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(every.firing_rate, counted[every.features], rtol=1e-6)
    assert chosen(pair, features=8, contexts=2, seed=1).features.tolist() != some.features.tolist()
