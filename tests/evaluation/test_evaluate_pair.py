"""`evaluate_pair` and splices: closed forms, position 0, batch invariance, splice definitions."""

from __future__ import annotations

import pytest
import torch

from sae_match import Permutation, UserError, match
from sae_match.evaluation import PairEvaluation, PairSettings, evaluate_pair, feature_table
from sae_match.evaluation.settings import Evaluation, EvaluationLevel
from sae_match.evaluation.splice_losses import original_losses, splice_losses
from sae_match.evaluation.splices import PairActivations, SpliceUnits
from sae_match.matching import UNMATCHED
from sae_match.saes.folding import FoldingKind
from tests.builders import identity_sae, permuted, random_sae, splices_of_pair


def values(evaluation: PairEvaluation) -> dict[tuple[str, str], float]:
    return {(row.metric, row.variant): row.value for row in evaluation.rows}


def test_identity_saes_of_equal_layers_are_perfect() -> None:
    a = identity_sae(4)
    order = torch.tensor([5, 2, 0, 7, 1, 3, 6, 4])
    b = permuted(a, order)
    x = torch.randn(6, 10, 4)
    found = values(evaluate_pair(a, b, match(a, b).permutation, x, x))
    for splice in ("encode_permute_decode", "encode_decode_current", "encode_decode_previous", "layer_drop"):
        assert found["explained_variance", splice] == pytest.approx(1.0)
        assert found["r2", splice] == pytest.approx(1.0)
    assert found["matching_score", "matched"] == 1.0
    assert found["matching_score_per_feature", "matched"] == 1.0
    assert found["matching_iou", "matched"] == 1.0
    assert found["weight_mse/W_dec", "matched"] == 0.0
    assert found["decoder_cosine_above_0.7", "matched"] == 1.0


def test_position_zero_is_never_counted() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    x_a, x_b = torch.randn(5, 7, 8), torch.randn(5, 7, 8)
    permutation = match(a, b).permutation
    plain = values(evaluate_pair(a, b, permutation, x_a, x_b))
    x_a[:, 0], x_b[:, 0] = 1e4, -1e4
    assert values(evaluate_pair(a, b, permutation, x_a, x_b)) == plain


def test_more_sink_positions_can_be_left_out() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    x_a, x_b = torch.randn(5, 9, 8), torch.randn(5, 9, 8)
    permutation = match(a, b).permutation
    skipped = values(evaluate_pair(a, b, permutation, x_a, x_b, settings=PairSettings(sink_positions=3)))
    shifted = values(evaluate_pair(a, b, permutation, x_a[:, 2:], x_b[:, 2:]))
    assert skipped == pytest.approx(shifted)
    assert skipped != pytest.approx(values(evaluate_pair(a, b, permutation, x_a, x_b)))
    model, ids = RecordingModel(), torch.zeros(5, 9, dtype=torch.int64)
    splices = {"layer_drop": splices_of_pair(a, b, {}, SpliceUnits.raw)["layer_drop"]}
    splice_losses(model, 1, (a, b), (x_a, x_b), ids, splices, 5, sink_positions=3)
    assert torch.equal(model.residuals[0], torch.cat([x_b[:, :3], x_a[:, 3:]], dim=1))


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_any_batch_size_gives_the_same_numbers(batch: int) -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    x_a, x_b = torch.randn(7, 6, 8), torch.randn(7, 6, 8)
    document = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    permutations = {"matched": match(a, b).permutation, "random": Permutation.random(24, seed=1)}
    whole = evaluate_pair(a, b, permutations, x_a, x_b, document, settings=PairSettings(batch_windows=7))
    parts = evaluate_pair(a, b, permutations, x_a, x_b, document, settings=PairSettings(batch_windows=batch))
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)
        if one.estimate is not None and other.estimate is not None:
            assert one.estimate.interval == pytest.approx(other.estimate.interval, rel=1e-6)


def test_documents_are_those_that_windows_have() -> None:
    a, b, x = random_sae(seed=1), random_sae(seed=2), torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))
    permutation = Permutation.identity(24)
    found = [evaluate_pair(a, b, permutation, x, x, torch.tensor(ids)) for ids in ([0, 0, 1, 2], [0, 0, 7, 70])]
    assert [{row.n for row in one.rows if row.metric == "matching_score"} for one in found] == [{3}, {3}]
    assert values(found[0]) == pytest.approx(values(found[1]), nan_ok=True)
    with pytest.raises(UserError, match="from 0"):
        evaluate_pair(a, b, permutation, x, x, torch.tensor([-1, 0, 1, 2]))


def test_splices_by_definition() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation = match(a, b).permutation
    x_a, x_b = torch.randn(3, 8), torch.randn(3, 8)
    pair = PairActivations(x_a, x_b, a.encode(x_a), b.encode(x_b))
    raw = splices_of_pair(a, b, {"matched": permutation}, SpliceUnits.raw)
    theta = splices_of_pair(a, b, {"matched": permutation}, SpliceUnits.theta)
    moved, scaled = torch.zeros(3, 24), torch.zeros(3, 24)
    for i, j in enumerate(permutation.indices.tolist()):
        moved[:, j] = pair.f_a[:, i]
        scaled[:, j] = pair.f_a[:, i] / a.threshold[i] * b.threshold[j]
    torch.testing.assert_close(raw["encode_permute_decode"](pair), moved @ b.W_dec + b.b_dec)
    torch.testing.assert_close(theta["encode_permute_decode"](pair), scaled @ b.W_dec + b.b_dec)
    assert torch.equal(raw["layer_drop"](pair), x_a)
    torch.testing.assert_close(raw["encode_decode_current"](pair), b(x_b))
    torch.testing.assert_close(raw["encode_decode_previous"](pair), a(x_a))
    assert not torch.allclose(raw["encode_permute_decode"](pair), theta["encode_permute_decode"](pair))


def test_a_many_to_one_matching_adds_activations_and_scores_every_feature() -> None:
    a, b = random_sae(seed=1), random_sae(width=10, seed=2)
    permutation = match(a, b, solver="nearest").permutation
    x_a, x_b = torch.randn(4, 30, 8), torch.randn(4, 30, 8)
    pair = PairActivations(x_a, x_b, a.encode(x_a), b.encode(x_b))
    moved = torch.zeros(4, 30, 10)
    together, active_a, active_b = 0, 0, 0
    for i, j in enumerate(permutation.indices.tolist()):
        moved[..., j] += pair.f_a[..., i] / a.threshold[i] * b.threshold[j]
        fires_a, fires_b = (pair.f_a[:, 1:, i] > 0), (pair.f_b[:, 1:, j] > 0)
        together += int((fires_a & fires_b).sum())
        active_a, active_b = active_a + int(fires_a.sum()), active_b + int(fires_b.sum())
    splice = splices_of_pair(a, b, {"matched": permutation}, SpliceUnits.theta)["encode_permute_decode"]
    torch.testing.assert_close(splice(pair), moved @ b.W_dec + b.b_dec)
    found = values(evaluate_pair(a, b, permutation, x_a, x_b))
    assert found["matching_score", "matched"] == pytest.approx(together / active_a)
    assert found["matching_iou", "matched"] == pytest.approx(together / (active_a + active_b - together))


def test_unmatched_features_are_dropped_from_the_splice() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    nothing = Permutation(torch.full((24,), UNMATCHED), 24)
    x = torch.randn(3, 8)
    pair = PairActivations(x, x, a.encode(x), b.encode(x))
    splice = splices_of_pair(a, b, {"matched": nothing}, SpliceUnits.raw)["encode_permute_decode"]
    torch.testing.assert_close(splice(pair), b.b_dec.expand(3, 8))


@pytest.mark.parametrize(
    ("units", "folding", "resolved"),
    [
        (SpliceUnits.as_folding, FoldingKind.theta, SpliceUnits.theta),
        (SpliceUnits.as_folding, FoldingKind.none, SpliceUnits.raw),
        (SpliceUnits.raw, FoldingKind.theta, SpliceUnits.raw),
        (SpliceUnits.theta, FoldingKind.none, SpliceUnits.theta),
    ],
)
def test_units(units: SpliceUnits, folding: FoldingKind, resolved: SpliceUnits) -> None:
    assert Evaluation(level=EvaluationLevel.full, splice_units=units).units(folding) is resolved


class RecordingModel:
    """Loss = sum of the residual over dimensions; remembers what it was given."""

    def __init__(self) -> None:
        self.residuals: list[torch.Tensor] = []

    def token_losses_from(self, layer: int, residual: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.residuals.append(residual)
        return residual.sum(dim=-1)[:, :-1]


def test_splice_losses_keep_position_zero_and_replace_the_rest() -> None:
    a = b = identity_sae(4)
    x_a, x_b = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    model, ids, ticks = RecordingModel(), torch.zeros(5, 6, dtype=torch.int64), []
    splices = splices_of_pair(a, b, {}, SpliceUnits.raw)
    losses = splice_losses(model, 3, (a, b), (x_a, x_b), ids, splices, 2, tick=ticks.append)
    expected = torch.cat([x_b[:, :1], x_a[:, 1:]], dim=1).sum(dim=-1)[:, :-1]
    torch.testing.assert_close(losses["layer_drop"], expected)
    original = original_losses(model, 3, x_b, ids, 2)
    torch.testing.assert_close(losses["encode_decode_current"], original)  # a perfect SAE costs nothing
    assert sum(ticks) == 3 * 5
    assert not torch.equal(x_b[:, 1:], x_a[:, 1:])  # inputs stay as they were


def test_refusals() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation = Permutation.identity(24)
    with pytest.raises(UserError, match="same tokens"):
        evaluate_pair(a, b, permutation, torch.randn(2, 5, 8), torch.randn(2, 4, 8))
    with pytest.raises(UserError, match="d_model=8, but the residual stream has 7"):
        evaluate_pair(a, b, permutation, torch.randn(2, 5, 7), torch.randn(2, 5, 7))
    with pytest.raises(UserError, match="too short: the first 1 are never counted"):
        evaluate_pair(a, b, permutation, torch.randn(2, 1, 8), torch.randn(2, 1, 8))


def test_units_by_name() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation, x_a, x_b = match(a, b).permutation, torch.randn(4, 40, 8), torch.randn(4, 40, 8)

    def measured(units: SpliceUnits | str) -> dict[tuple[str, str], float]:
        return values(evaluate_pair(a, b, permutation, x_a, x_b, settings=PairSettings(units=units)))

    by_name = {units: measured(units) for units in ("theta", "raw")}
    assert by_name["theta"] == measured(SpliceUnits.theta)
    assert by_name["theta"] != by_name["raw"]
    for wrong in ("Theta", "as_folding", SpliceUnits.as_folding):
        with pytest.raises(UserError, match="must be theta or raw"):
            measured(wrong)


def test_a_pair_as_tables() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation = Permutation.random(a.width, b.width, seed=3)
    generator = torch.Generator().manual_seed(4)
    x_a, x_b = (torch.randn(6, 5, a.d_model, generator=generator) for _ in range(2))
    evaluation = evaluate_pair(a, b, permutation, x_a, x_b)
    frame = evaluation.to_frame()
    assert len(frame) == len(evaluation.rows) and {"variant", "metric", "value", "low", "high", "n"} <= set(frame)
    assert "matching_score" in evaluation._repr_html_() and len(repr(evaluation)) < 200
    table = feature_table(a, b, permutation, evaluation.statistics)
    assert list(table["partner"]) == permutation.indices[torch.tensor(table["feature"].to_numpy())].tolist()
    first = table.iloc[0]
    i, j = int(first["feature"]), int(first["partner"])
    cosine = torch.nn.functional.cosine_similarity(a.W_dec[i], b.W_dec[j], dim=0)
    assert first["decoder_cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert first["theta_ratio"] == pytest.approx(float(b.theta[j] / a.theta[i]))
    fires_a, fires_b = a.encode(x_a[:, 1:])[..., i] > 0, b.encode(x_b[:, 1:])[..., j] > 0
    assert (first["active"], first["together"]) == (int(fires_a.sum()), int((fires_a & fires_b).sum()))
    assert list(feature_table(a, b, permutation)) == list(table)[:7]
