"""numpy arrays give what tensors give, and tokens without windows what windows of all counted tokens give."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_match import Convention, PairSettings, SparseAutoencoder, UserError, evaluate_pair, match
from sae_match.saes import measure_scale
from tests.builders import random_sae

A, B = random_sae(seed=1), random_sae(seed=2)
X_A, X_B = (2 * torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))


def test_parameters_and_state_dicts() -> None:
    arrays = {name: values.double().numpy() for name, values in A.parameters().items()}
    assert SparseAutoencoder(**arrays).content_hash == A.content_hash
    plain = Convention(activation="jumprelu", subtracts_b_dec=False, normalization="none")
    assert SparseAutoencoder.from_state_dict(arrays, plain).content_hash == A.content_hash
    with pytest.raises(UserError, match="b_enc must be a floating-point tensor"):
        SparseAutoencoder(**arrays | {"b_enc": np.zeros(24, np.int64)})


def test_encoding_of_a_read_only_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X_A.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert torch.equal(A(stored), A(X_A))
    assert torch.equal(A.decode(A.encode(X_A).numpy()), A(X_A))


def test_matching() -> None:
    mask = torch.arange(24) < 5
    found = match(A, B, exclude_a=mask.numpy()).permutation
    assert torch.equal(found.indices, match(A, B, exclude_a=mask).permutation.indices)
    assert torch.equal(found.apply(A.encode(X_A).numpy()), found.apply(A.encode(X_A)))
    with pytest.raises(UserError, match=r"exclude_a is a bool mask \[24\], got torch.int64"):
        match(A, B, exclude_a=np.zeros(24, np.int64))


def test_tokens_are_windows_without_sink_positions() -> None:
    permutation = match(A, B).permutation
    counted = PairSettings(sink_positions=0)
    windows = evaluate_pair(A, B, permutation, X_A, X_B, torch.arange(6) // 2, settings=counted)
    tokens = [x.flatten(0, 1).numpy() for x in (X_A, X_B)]
    document = (torch.arange(60) // 20).numpy()
    found = evaluate_pair(A, B, permutation, *tokens, document)
    assert torch.equal(found.statistics.together["matched"].together, windows.statistics.together["matched"].together)
    ours, theirs = found.to_frame(), windows.to_frame()
    assert ours["value"].tolist() == pytest.approx(theirs["value"].tolist(), rel=1e-6)
    one = evaluate_pair(A, B, permutation, *tokens).to_frame()
    assert one["value"].tolist() == pytest.approx(theirs["value"].tolist(), rel=1e-6)
    assert one["low"].isna().all()  # tokens of one document have no interval


@pytest.mark.parametrize("choice", ["mean_activation", "estimated"])
def test_scales_of_tokens(choice: str) -> None:
    ours = measure_scale(A, choice, X_A.flatten(0, 1).numpy(), k=3)
    theirs = measure_scale(A, choice, X_A, k=3, sink_positions=0)
    torch.testing.assert_close(ours.theta, theirs.theta)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="on the same tokens"):
        evaluate_pair(A, B, match(A, B).permutation, X_A[0], X_B[0, :5])
