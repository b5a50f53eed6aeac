"""Jobs over pairs other than neighbors: seeds, a tuned model, another model, widths, checkpoints; each has a planted
truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor

from sae_match import Permutation, SparseAutoencoder, UserError
from sae_match.evaluation.nulls import random_rotation
from sae_match.experiment import Result, run
from sae_match.plan.show import render
from sae_match.record import layer_rows
from sae_match.report import find_records
from sae_match.report.cli import main as report
from sae_match.rules import check_config
from sae_match.saes import load_native, save_native
from sae_match.study import Study
from tests.builders import permuted, random_sae
from tests.command import run_command
from tests.tiny_setting import D_MODEL, planned

Configured = Callable[..., Study]
WIDTH, LAYERS = 24, (1, 2)
SPAN = (
    "layers.first=1",
    "layers.last=2",
    "evaluation.min_count=1",
    "evaluation.fit_documents=5",
    "dataset.documents=5",
)


def order(layer: int) -> Tensor:
    """The planted order of the other SAE's features."""
    return torch.randperm(WIDTH, generator=torch.Generator().manual_seed(10 + layer))


@pytest.fixture
def twins(random_saes: Path, tmp_path: Path) -> Path:
    """The random SAEs with their features in another order, under another name."""
    for layer in LAYERS:
        sae = permuted(load_native(random_saes / f"layer_{layer:02d}.safetensors"), order(layer))
        save_native(sae, tmp_path / "twins" / f"twin_{layer}.safetensors")
    return tmp_path / "twins"


def of_pair(result: Result, metric: str, variant: str = "matched") -> list[float]:
    """The value of every pair, in order."""
    rows = result.pairs[(result.pairs["metric"] == metric) & (result.pairs["variant"] == variant)]
    return [float(value) for value in rows["value"]]


def is_planted(result: Result, layers: tuple[int, int], layer: int) -> bool:
    """Whether the recorded permutation undoes `order(layer)`."""
    name = f"layer_{layers[0]:02d}_to_{layers[1]:02d}.safetensors"
    return torch.equal(
        Permutation.load(result.directory / "permutations" / name).indices[order(layer)], torch.arange(WIDTH)
    )


def test_seeds_are_compared_layer_by_layer(configured: Configured, random_saes: Path, twins: Path) -> None:
    other = ("pairs=seeds", f"pairs.sae.root={twins}", "pairs.sae.filename='twin_{layer}.safetensors'")
    study = configured(random_saes, *SPAN, *other)
    text = render(planned(study))
    assert "1->1, 2->2" in text and str(twins) in text and "2 layer pairs" in text
    result = run(study)
    assert is_planted(result, (1, 1), 1) and is_planted(result, (2, 2), 2)
    assert of_pair(result, "matching_score") == [1.0, 1.0]
    assert max(of_pair(result, "weight_mse/W_dec")) < 1e-12
    # Along the planted order the splice is the second SAE's own reconstruction.
    spliced, own = (
        of_pair(result, "explained_variance", f"encode_{name}") for name in ("permute_decode", "decode_current")
    )
    assert np.allclose(spliced, own, rtol=1e-5)
    variants = set(result.pairs["variant"])
    assert {"sae_b", "model_b", "random", "encode_permute_decode_random"} <= variants
    assert not {"ceiling", "layer_drop"} & variants  # one residual stream: nothing is left out
    # Rows at (t, t) count as the job's own pairs: in the headline and in the per-layer curves.
    assert result.metrics["matching_score"] == 1.0
    assert result.metrics["l0/sae"] == result.metrics["l0/sae_b"] > 0
    curves = layer_rows(result.pairs)
    assert [row["matching_score/matched"] for row in curves] == [1.0, 1.0] and "l0/sae_b" in curves[0]
    features = result.features
    assert features[["layer", "layer_to"]].drop_duplicates().to_numpy().tolist() == [[1, 1], [2, 2]]
    examples = pd.read_csv(result.directory / "example_pairs.csv")
    assert (examples["contexts"] == examples["partner_contexts"]).all()  # partners fire alike


def test_one_sae_is_not_matched_to_itself(configured: Configured, random_saes: Path) -> None:
    with pytest.raises(UserError, match="one SAE on either side"):
        run(configured(random_saes, *SPAN, "pairs=seeds", f"pairs.sae.root={random_saes}"))


@pytest.fixture
def tuned(model_directory: Path, tmp_path: Path) -> Path:
    """The tiny model with other weights in its second block."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_directory)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return save_model(model, model_directory, tmp_path / "tuned")


def save_model(model: transformers.PreTrainedModel, tokenizer: Path, directory: Path) -> Path:
    """A model with the tiny setting's tokenizer."""
    model.save_pretrained(directory)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, directory / path.name)
    return directory


def residual(model: Path, study: Study, layer: int) -> Tensor:
    """resid_post of a layer on the job's text, without the first position, by transformers alone."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    from sae_match.store import Store
    from sae_match.text import load_windows

    ids = load_windows(study.dataset, tokenizer, Store(study.paths.cache_dir), "auto").ids
    with torch.no_grad():
        return hf(ids, output_hidden_states=True).hidden_states[layer + 1][:, 1:]


def test_a_tuned_model_is_compared_with_its_base(
    configured: Configured, random_saes: Path, twins: Path, model_directory: Path, tuned: Path
) -> None:
    other = ("pairs=base_tuned", f"pairs.sae.root={twins}", "pairs.sae.filename='twin_{layer}.safetensors'")
    study = configured(random_saes, *SPAN, *other, f"pairs.model.path={tuned}")
    assert f"({tuned})" in render(planned(study))
    result = run(study)
    assert is_planted(result, (1, 1), 1) and is_planted(result, (2, 2), 2)
    scores = of_pair(result, "matching_score")
    assert min(scores) > 0.5 and max(scores) < 1  # the features are the same, the streams are not
    # `layer_drop` is the base model's stream in the tuned model's place.
    base, ours = (residual(path, study, 1).flatten(0, 1).double() for path in (model_directory, tuned))
    expected = 1 - float((ours - base).var(dim=0).sum() / ours.var(dim=0).sum())
    assert of_pair(result, "explained_variance", "layer_drop")[0] == pytest.approx(expected, rel=1e-4)
    assert all(loss != 0 for loss in of_pair(result, "delta_loss", "layer_drop"))


def rotated_model(model_directory: Path, directory: Path, d: int) -> tuple[Path, Tensor]:
    """A model that computes what the tiny one with unit norms computes, in a residual stream of width d: x' = x P."""
    small = transformers.AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    save_model(small, model_directory, directory / "unit")
    p = random_rotation(d, seed=3)[:D_MODEL]  # rows are orthonormal
    config = transformers.LlamaConfig(**{**small.config.to_dict(), "hidden_size": d, "head_dim": D_MODEL // 2})
    large = transformers.LlamaForCausalLM(config)
    known = dict(small.named_parameters())
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if "norm" in name:
                parameter.fill_((D_MODEL / d) ** 0.5)  # the mean square is over more dimensions
            elif "o_proj" in name or "down_proj" in name:
                parameter.copy_(p.T @ known[name])
            else:
                parameter.copy_(known[name] @ p)
    return save_model(large, model_directory, directory / f"rotated_{d}"), p


def turned_saes(source: Path, directory: Path, p: Tensor) -> Path:
    """The random SAEs in the residual stream x' = x P, with their features in another order."""
    for layer in LAYERS:
        sae = permuted(load_native(source / f"layer_{layer:02d}.safetensors"), order(layer))
        turned = sae.replace(W_enc=p.T @ sae.W_enc, W_dec=sae.W_dec @ p, b_dec=sae.b_dec @ p)
        save_native(turned, directory / f"layer_{layer:02d}.safetensors")
    return directory


@pytest.mark.parametrize(
    ("d", "kind"), [(D_MODEL, "orthogonal"), (D_MODEL, "affine"), (12, "orthogonal"), (12, "affine")]
)
def test_a_map_between_two_models_finds_planted_partners(
    configured: Configured, random_saes: Path, model_directory: Path, tmp_path: Path, d: int, kind: str
) -> None:
    large, p = rotated_model(model_directory, tmp_path, d)
    other = (
        "pairs=models",
        f"pairs.model.path={large}",
        f"pairs.sae.root={turned_saes(random_saes, tmp_path / 't', p)}",
    )
    small = ("model=local", f"model.path={tmp_path / 'unit'}")
    controls = ("evaluation/controls=[random,correlation]", "evaluation.null_alpha=0.05")
    result = run(configured(random_saes, *SPAN, *small, *other, f"pairs.map={kind}", *controls))
    assert is_planted(result, (1, 1), 1) and is_planted(result, (2, 2), 2)
    for variant in ("matched", "correlation"):  # the same features fire on the same tokens, whatever the basis
        assert min(of_pair(result, "matching_score", variant)) > 0.99
    assert max(of_pair(result, "weight_mse/W_dec")) < 1e-6
    assert min(of_pair(result, "above_null")) == 1.0
    assert min(of_pair(result, "explained_variance", "stream_map")) > 0.999
    assert max(of_pair(result, "delta_loss", "stream_map")) < 1e-2
    # In another basis the raw weights say nothing; of another width there are none to compare.
    raw = of_pair(result, "matching_score", "unmapped")
    assert len(raw) == (2 if d == D_MODEL else 0)
    if raw:
        assert max(raw) < 0.9 and min(of_pair(result, "weight_mse/W_dec", "unmapped")) > 0.01
    variants = set(result.pairs["variant"])
    assert "encode_decode_current" in variants
    assert not {"encode_permute_decode", "encode_decode_previous", "layer_drop"} & variants
    status = json.loads((result.directory / "status.json").read_text())
    left_out = "splices left out: encode_permute_decode, encode_decode_previous, layer_drop"
    assert any(warning.startswith(left_out) for warning in status["warnings"])


def test_another_width_needs_a_map(
    configured: Configured, random_saes: Path, model_directory: Path, tmp_path: Path
) -> None:
    large, p = rotated_model(model_directory, tmp_path, 12)
    roots = (
        "pairs=models",
        f"pairs.model.path={large}",
        f"pairs.sae.root={turned_saes(random_saes, tmp_path / 't', p)}",
    )
    study = configured(random_saes, *SPAN, "evaluation=weights_only", *roots, "pairs.map=none")
    assert "no weights in common" in render(planned(study))
    with pytest.raises(UserError, match="no weights in common"):
        run(study)


def test_layers_of_the_other_source_are_chosen(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    """Layer 1 against 3, and 2 against 2: rows of all three kinds are the job's own pairs."""
    for layer, name in ((1, 3), (2, 2), (3, 1)):
        sae = permuted(load_native(random_saes / f"layer_{layer:02d}.safetensors"), order(layer))
        save_native(sae, tmp_path / "twins" / f"layer_{name:02d}.safetensors")
    study = configured(
        random_saes, "layers.first=1", "layers.last=3", "evaluation=weights_only", "pairs=seeds",
        f"pairs.sae.root={tmp_path / 'twins'}", "pairs.layers={1:3,3:1}",
    )  # fmt: skip
    result = run(study)
    assert is_planted(result, (1, 3), 1) and is_planted(result, (2, 2), 2) and is_planted(result, (3, 1), 3)
    assert result.metrics["decoder_cosine"] == pytest.approx(1.0)
    random = result.pairs[(result.pairs["metric"] == "decoder_cosine") & (result.pairs["variant"] == "random")]
    assert result.metrics["decoder_cosine/random"] == pytest.approx(random["value"].mean())
    assert not [name for name in result.metrics if name.startswith("composition")]


def test_wide_children_of_narrow_features(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    sae = load_native(random_saes / "layer_01.safetensors")
    parents = torch.tensor([0, 0, 1, 1, 1, *range(2, WIDTH)])  # of features 0 and 1 several, of every other one
    noise = 0.05 * torch.randn(len(parents), D_MODEL, generator=generator)
    wide = SparseAutoencoder(
        W_enc=sae.W_enc[:, parents], b_enc=sae.b_enc[parents], W_dec=sae.W_dec[parents] + noise, b_dec=sae.b_dec,
        threshold=sae.threshold[parents],
    )  # fmt: skip
    save_native(wide, tmp_path / "wide" / "layer_01.safetensors")
    study = configured(
        random_saes, "layers.first=1", "layers.last=1", "evaluation.min_count=1", "pairs=widths",
        f"pairs.sae.root={tmp_path / 'wide'}",
    )  # fmt: skip
    result = run(study)
    children = pd.read_parquet(result.directory / "children.parquet")
    assert children["feature"].tolist() == sorted(children["feature"])
    found = dict(zip(children["child"], children["feature"], strict=True))
    assert found == {child: int(parent) for child, parent in enumerate(parents)}
    assert result.metrics["children_per_feature"] == pytest.approx(len(parents) / WIDTH)
    assert result.metrics["split_features"] == pytest.approx(2 / WIDTH)
    assert result.features.sort_values("feature")["children"].tolist() == [2, 3] + [1] * 22


def test_checkpoints_follow_one_layer_over_steps(
    configured: Configured, random_saes: Path, model_directory: Path, tuned: Path, tmp_path: Path
) -> None:
    """Half of the features are born between the first and the second step; all are there at the third."""
    sae, other = load_native(random_saes / "layer_01.safetensors"), random_sae(seed=77)
    born = torch.arange(WIDTH) >= WIDTH // 2
    tensors = {
        "W_enc": torch.where(born, other.W_enc, sae.W_enc),
        "W_dec": torch.where(born[:, None], other.W_dec, sae.W_dec),
    }
    second = permuted(sae.replace(**tensors), order(1))
    for step, at in ((10, sae), (20, second), (40, permuted(second, order(2)))):
        save_native(at, tmp_path / "run" / f"step_{step}" / "layer_01.safetensors")
        shutil.copytree(model_directory if step == 10 else tuned, tmp_path / "models" / f"step{step}")
    study = configured(
        tmp_path / "run", "layers.first=1", "layers.last=1", "evaluation.min_count=1", "pairs=checkpoints",
        "sae.filename='step_{step}/layer_{layer:02d}.safetensors'", "sae.ceiling_filename=null",
        "pairs.steps=[10,20,40]", "model=local", f"model.path='{tmp_path / 'models'}/step{{step}}'",
    )  # fmt: skip
    assert "10->20, 20->40" in render(planned(study))
    result = run(study)
    assert is_planted(result, (20, 40), 2)
    first = result.features[result.features["layer"] == 10].sort_values("feature")
    kept = (first["decoder_cosine"] > 0.999).to_numpy()
    # A one-to-one matching may give up a pair for two others; what is born has no ancestor.
    assert kept[~born.numpy()].sum() >= WIDTH // 2 - 2 and not kept[born.numpy()].any()
    rows = result.pairs[result.pairs["metric"] == "l0"]
    assert rows["layer"].tolist() == [10, 20, 40] and set(rows["variant"]) == {"sae"}
    # The tuned model is both the second and the third step: nothing changes there.
    assert (
        of_pair(result, "explained_variance", "layer_drop")[1]
        == 1.0
        > of_pair(result, "explained_variance", "layer_drop")[0]
    )
    assert result.metrics["matching_score"] == pytest.approx(np.mean(of_pair(result, "matching_score")))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("pairs=seeds", "pairs.layers={7:1}"), "7 are not in layers"),
        (("pairs=seeds", "layers.first=3"), "the span is empty"),
        (("pairs=seeds", "pairs.map=affine"), "residual stream of one model"),
        (("pairs=seeds", "composition.max_distance=2"), "composition follows neighboring layers"),
        (("pairs=checkpoints", "pairs.steps=[2,1]"), "must be ascending"),
        (("pairs=checkpoints", "pairs.steps=[1,2]"), "follows one layer"),
        (("pairs=checkpoints", "pairs.steps=[1,2]", "layers.last=1"), "write {step} into"),
        (("pairs=models", "pairs.model.path=x", "evaluation/functional=all"), "through one model"),
        (("pairs=models", "pairs.model.path=x", "evaluation=weights_only"), "pairs.map=orthogonal need activations"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    configured: Configured, random_saes: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_config(configured(random_saes, *SPAN, *overrides))


ONE_LAYER = ("layers.first=1", "layers.last=1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "experiment=pairs_seeds": (
        "sae.first_layer=0", "pairs.sae.first_layer=0", "pairs.sae.root={twins}", "layers.first=1", "layers.last=2",
        "pairs.sae.filename='twin_{{layer}}.safetensors'",
    ),
    "experiment=pairs_base_tuned": (
        "sae=native", "sae@pairs.sae=native", "pairs.sae.root={saes}", "model@pairs.model=local",
        "pairs.model.path={tuned}", *ONE_LAYER,
    ),
    "experiment=pairs_models": (
        "sae=native", "pairs.sae.root={twins}", "pairs.sae.filename='twin_{{layer}}.safetensors'",
        "model@pairs.model=local", "pairs.model.path={tuned}", "layers.list=null", *ONE_LAYER,
        "evaluation.fit_documents=4",
    ),
    "experiment=pairs_widths": (
        "sae=native", "pairs.sae.root={twins}", "pairs.sae.filename='twin_{{layer}}.safetensors'", *ONE_LAYER
    ),
    "experiment=pairs_checkpoints": (
        "sae.filename='layer_{{step}}.safetensors'", "pairs.steps=[1,2]", "~model.revision", *ONE_LAYER,
    ),
}  # fmt: skip


@pytest.mark.drawn
@pytest.mark.parametrize("experiment", COMMANDS)
def test_an_experiment_runs_through_the_command(
    experiment: str, random_saes: Path, twins: Path, model_directory: Path, tuned: Path, text_directory: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """And the report reads its record."""
    for layer in LAYERS:
        shutil.copy(random_saes / f"layer_{layer:02d}.safetensors", random_saes / f"layer_{layer}.safetensors")
    places = {"saes": random_saes, "twins": twins, "tuned": tuned}
    own = [word.format(**places) for word in COMMANDS[experiment]]
    done = run_command(
        experiment, *own, f"sae.root={random_saes}", "model=local", f"model.path={model_directory}", "dataset=local",
        f"dataset.path={text_directory}", "dataset.documents=6", "dataset.window_tokens=12",
        "evaluation.bootstrap_samples=20", "evaluation.min_count=1",
        "device=cpu", f"hydra.run.dir={tmp_path / 'job'}", f"paths.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    (record,) = find_records([tmp_path / "job"])
    assert record.state == "done" and record.metrics["matching_score"] > 0.3
    assert {"overview.png", "decoder_mse.png"} <= {path.name for path in (record.path / "figures").iterdir()}
    assert run_command(str(tmp_path / "job"), command=report).code == 0
