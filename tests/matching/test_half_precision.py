"""Products of rounded factors: their bound, and the same answer as from float32 to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_match.assignment.arrays import Float32
from sae_match.errors import UserError
from sae_match.matching import products
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.problem import MatchingProblem
from sae_match.matching.products import (
    BFloat16Product,
    HalfProduct,
    Precision,
    TorchProduct,
    half_bound,
    largest_rounding,
    make_product,
    scaled,
)

mm = torch.mm


def rounding_mm(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """A product that rounds its factors to bfloat16, as a CPU's instructions do, or takes rounded ones."""
    if out_dtype is None:
        a, b = a.bfloat16(), b.bfloat16()
    return mm(a.float(), b.float())


def sides(kind: str, n: int, m: int, d: int, seed: int) -> tuple[Float32, Float32]:
    """Rows that are unrelated, shared but for noise, or small whole numbers with many ties."""
    g = np.random.default_rng(seed)
    if kind == "whole":
        return tuple(g.integers(-2, 3, (rows, d)).astype(np.float32) for rows in (n, m))  # type: ignore[return-value]
    left = g.standard_normal((n, d)) * g.lognormal(0, 0.5, (n, 1))
    right = g.standard_normal((m, d))
    if kind == "planted":
        shared = min(n, m)
        right[:shared] = left[g.permutation(n)[:shared]] + 0.1 * right[:shared]
    return left.astype(np.float32), right.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["random", "planted", "whole"]), scale=st.integers(-30, 30), seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_the_bound_holds_for_rounded_and_for_plain_factors(
    kind: str, scale: int, seed: int, dtype: torch.dtype
) -> None:
    left, right = (side * np.float32(2.0**scale) for side in sides(kind, 20, 30, 100, seed))
    norms = np.outer(*(np.linalg.norm(side.astype(np.float64), axis=1) for side in (left, right)))
    exact = left.astype(np.float64) @ right.astype(np.float64).T
    parts = [scaled(torch.from_numpy(side)) for side in (left, right)]
    short = [plain.to(dtype).double() * power[:, None].double() for plain, power in parts]
    bound = half_bound(left, right, dtype, 2.0**-23) * norms
    for product in (left @ right.T, (short[0] @ short[1].T).numpy()):
        assert (np.abs(product - exact) <= bound).all()


def test_rounding_is_that_of_the_type_whatever_the_scale() -> None:
    rows = sides("random", 50, 1, 300, 0)[0]
    for dtype, step in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        for scale in (1e-30, 1.0, 1e30):
            # No number loses more than half its last bit, and a row of normal numbers about half of that.
            assert 0.4 * step < largest_rounding(rows * np.float32(scale), dtype) < step
    assert largest_rounding(np.zeros((3, 4), np.float32), torch.float16) == 0.0


@pytest.mark.parametrize("kind", ["random", "planted", "whole"])
@pytest.mark.parametrize("limit", [{}, {"rejection_cost": 40.0}, {"n_pairs": 100}], ids=["all", "rejection", "pairs"])
@pytest.mark.parametrize("cache", [True, False])
def test_the_answer_is_that_of_float32(
    kind: str, limit: dict[str, Any], cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = (torch.from_numpy(side) for side in sides(kind, 150, 170, 40, seed=3))
    problem = MatchingProblem(left, right, **limit)
    plain = CertifiedSolver(product=Precision.float32, cache=cache).solve(problem)
    monkeypatch.setattr(torch, "mm", rounding_mm)
    for make in (BFloat16Product, lambda a, b: HalfProduct(a, b, "cpu", torch.float16)):
        monkeypatch.setattr(products, "BFloat16Product", make)
        half = CertifiedSolver(product=Precision.bfloat16, cache=cache).solve(problem)
        # Some of the best 100 pairs cannot be told apart on the grid: then both are solved in exact numbers.
        assert half.statistics["half_product"] == 1 or limit.get("n_pairs")
        assert torch.equal(half.permutation.indices, plain.permutation.indices)
        assert (half.objective, half.lower_bound, half.gap) == (plain.objective, plain.lower_bound, plain.gap)


def test_a_product_beyond_its_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = sides("random", 50, 60, 20, seed=1)
    coarse = lambda a, b, **_: mm(a.to(torch.float8_e4m3fn).float(), b.to(torch.float8_e4m3fn).float())  # noqa: E731
    monkeypatch.setattr(torch, "mm", coarse)
    for product in (BFloat16Product(left, right), HalfProduct(left, right, "cpu", torch.float16)):
        with pytest.raises(UserError, match=r"half-precision .* more than its bound .* solver.product=float32"):
            product.block(slice(None))


def test_auto_takes_what_is_faster_here(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = sides("random", 40, 50, 8, seed=2)
    monkeypatch.setattr(products, "SMALLEST", 40)
    monkeypatch.setattr(torch, "mm", rounding_mm)
    for half, expected in ((0.5, BFloat16Product), (0.9, TorchProduct)):
        monkeypatch.setattr(products, "seconds", lambda product, half=half: half if product.half else 1.0)
        assert type(make_product(left, right, device="cpu", precision=Precision.auto)) is expected
    # A small problem is not worth the trial, nor is a CPU that multiplies the factors as they are.
    monkeypatch.setattr(products, "seconds", lambda product: pytest.fail("timed"))
    assert type(make_product(left[:39], right, device="cpu", precision=Precision.auto)) is TorchProduct
    monkeypatch.setattr(torch, "mm", lambda a, b: torch.from_numpy(a.numpy() @ b.numpy()))
    assert type(make_product(left, right, device="cpu", precision=Precision.auto)) is TorchProduct


def test_the_mode_of_torch_is_left_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    BFloat16Product(*sides("random", 5, 6, 7, seed=0)).block(slice(None))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(("device", "known"), [("cpu", "auto, bfloat16, float32"), ("mps", "auto, float32")])
def test_a_precision_that_the_device_lacks_is_refused(device: str, known: str) -> None:
    with pytest.raises(UserError, match=rf"solver.product=float16: device={device} knows only {known}"):
        CertifiedSolver(product=Precision.float16).on(device)
    assert CertifiedSolver(product=Precision.float16).on("cuda:1").device == "cuda:1"


def test_the_precision_is_no_part_of_the_key() -> None:
    assert CertifiedSolver(product=Precision.bfloat16).key() == CertifiedSolver().key()
