"""`train_sae` on a planted dictionary: what it recovers, its units, its seeds and its checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from sae_match.errors import UserError
from sae_match.saes import SparseAutoencoder
from sae_match.training.data import drop_sink_positions
from sae_match.training.module import JumpReluTraining
from sae_match.training.objective import jumprelu_objective
from sae_match.training.train import CHECKPOINT_NAME, Report, held_out_report, train_sae


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(planted, small_recipe, tmp_path_factory) -> tuple[SparseAutoencoder, Report]:
    return train_sae(planted.train, planted.held_out, small_recipe(), 0, 5, tmp_path_factory.mktemp("run"))


def test_planted_features_are_recovered(trained, planted) -> None:
    sae, report = trained
    best = (planted.dictionary @ sae.W_dec.t()).max(dim=1).values
    assert int((best > 0.99).sum()) >= 22, best.sort().values[:5]
    assert report["held_out_l0"] == pytest.approx(3.0, rel=0.1)
    assert report["held_out_fvu"] < 0.06
    assert [report[name] for name in ("tokens", "distinct_tokens", "held_out_tokens")] == [256 * 800, 256 * 32, 32 * 32]


def test_decoder_rows_are_unit_and_thresholds_positive_and_per_feature(trained) -> None:
    sae, _ = trained
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert float(sae.threshold.min()) > 0
    assert sae.threshold.unique().numel() > 16


def test_scale_and_mean_are_folded_back(trained, planted) -> None:
    """On raw residuals, with plain JumpReLU arithmetic, the SAE reconstructs as well as the report says."""
    sae, report = trained
    x = drop_sink_positions(planted.held_out)
    pre = x @ sae.W_enc + sae.b_enc
    reconstruction = (pre * (pre > sae.threshold)) @ sae.W_dec + sae.b_dec
    fvu = float((reconstruction - x).square().sum() / (x - x.mean(0)).square().sum())
    assert fvu == pytest.approx(report["held_out_fvu"], rel=1e-4)
    # planted strengths are 7 to 14 raw units, so thresholds in raw units lie below 7 and far above the noise
    assert 0.5 < float(sae.threshold.median()) < 9.0


def test_second_sinks_are_counted_apart(trained, planted) -> None:
    """One token with a huge norm leaves the headline numbers where they were."""
    sae, before = trained
    x = drop_sink_positions(planted.held_out)
    x = torch.cat([x, torch.full((1, 32), 4000.0)])
    report = held_out_report(sae, x, clip_norm_factor=4.0)
    assert (report["held_out_outliers"], report["held_out_tokens"]) == (1, 32 * 32)
    for name in ("held_out_fvu", "held_out_l0", "dead_features"):
        assert report[name] == pytest.approx(before[name], rel=1e-6)
    assert report["held_out_fvu_all"] != pytest.approx(report["held_out_fvu"], rel=0.1)


def test_initializations_of_seeds_and_layers_are_independent(small_recipe) -> None:
    def initial(seed: int, layer: int) -> torch.Tensor:
        return JumpReluTraining(small_recipe(width=64), 256, 1, seed, layer).W_dec.detach()

    a, again = initial(0, 3), initial(0, 3)
    assert torch.equal(a, again)
    for other in (initial(1, 3), initial(0, 4), initial(3, 0)):
        assert float((a @ other.t()).abs().max()) < 0.4  # chance level in 256 dimensions is about 0.25


def test_same_seed_repeats_and_another_differs(planted, small_recipe, tmp_path: Path) -> None:
    recipe = small_recipe(tokens=256 * 80)
    a, b, c = (
        train_sae(planted.train, planted.held_out, recipe, seed, 0, tmp_path / name)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(tensor, b.parameters()[name]) for name, tensor in a.parameters().items())
    assert not torch.allclose(a.W_dec, c.W_dec, atol=0.1)


class _StopAt(CSVLogger):
    """Lets a checkpoint fall due at the first logged point, and breaks the run at the second."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.points = 0

    def log_metrics(self, metrics, step=None) -> None:  # type: ignore[override]
        self.points += 1
        if self.points == 2:
            raise RuntimeError("power cut")
        time.sleep(1.05)  # checkpoint_seconds = 1


def test_resumed_run_equals_uninterrupted(planted, small_recipe, tmp_path: Path) -> None:
    recipe = small_recipe(tokens=256 * 160, checkpoint_seconds=1, log_every_steps=70)
    whole, _ = train_sae(planted.train, planted.held_out, recipe, 0, 0, tmp_path / "whole")
    directory = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="power cut"):
        train_sae(planted.train, planted.held_out, recipe, 0, 0, directory, logger=_StopAt(tmp_path))
    saved = torch.load(directory / CHECKPOINT_NAME, weights_only=True)
    assert 70 <= saved["global_step"] < 140
    resumed, report = train_sae(planted.train, planted.held_out, recipe, 0, 0, directory)
    for name, tensor in whole.parameters().items():
        assert torch.equal(tensor, resumed.parameters()[name]), name
    assert report["seconds"] > saved["seconds"] - 0.001


def test_checkpoint_of_another_recipe_is_refused(planted, small_recipe, tmp_path: Path) -> None:
    recipe = small_recipe(tokens=256 * 120, checkpoint_seconds=1, log_every_steps=55)
    with pytest.raises(RuntimeError, match="power cut"):
        train_sae(planted.train, planted.held_out, recipe, 0, 0, tmp_path, logger=_StopAt(tmp_path))
    with pytest.raises(UserError, match=r"lr: 0.005 -> 0.001"):
        train_sae(planted.train, planted.held_out, replace(recipe, lr=0.001), 0, 0, tmp_path)


def test_damaged_checkpoint_is_named(planted, small_recipe, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=CHECKPOINT_NAME):
        train_sae(planted.train, planted.held_out, small_recipe(), 0, 0, tmp_path)


def test_bad_recipe_is_refused_before_work_naming_every_field(planted, small_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)width.*bandwidth"):
        train_sae(planted.train, planted.held_out, small_recipe(width=0, bandwidth=-1.0), 0, 0, tmp_path)


@pytest.mark.parametrize("coefficient", [0.03, 0.0])
def test_auxiliary_loss_reaches_dead_features_alone(planted, small_recipe, coefficient: float) -> None:
    """Features silent for too long get a gradient from the auxiliary loss; no other feature does."""
    x = drop_sink_positions(planted.train)[:256]
    x = (x - x.mean(0)) / x.std()
    module = JumpReluTraining(small_recipe(aux_coefficient=coefficient), 32, 1, 0, 0)
    with torch.no_grad():
        module.log_threshold[:8] = 5.0  # out of reach
    module.silent_tokens[:8] = 10**6
    weights = (module.W_enc, module.b_enc, module.W_dec, module.b_dec)
    result = jumprelu_objective(x, *weights, module.log_threshold, 0.1)
    dead = module._count_silence(result, 256)
    if coefficient == 0.0:
        assert dead is None
        return
    assert dead.tolist() == [True] * 8 + [False] * 32
    module._auxiliary_loss(x, result.error, dead).backward()
    assert (module.W_enc.grad[:8].abs().sum(1) > 0).all()
    assert float(module.W_enc.grad[8:].abs().sum()) == 0
    assert float(module.b_dec.grad.abs().sum() if module.b_dec.grad is not None else 0) == 0
