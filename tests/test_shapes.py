"""The suite checks annotated shapes wherever the package is called."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from sae_match import Permutation, SparseAutoencoder
from tests import shapes


@jaxtyped(typechecker=shapes.check)
def doubled(x: Float[Tensor, "n d"], wrong: bool = False) -> Float[Tensor, "n d"]:
    if x.dim() == 1:
        raise ValueError("in words of its own")
    return x.T if wrong else 2 * x


def test_arguments_and_results_are_checked() -> None:
    assert doubled(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        doubled(torch.ones(2, 3, 4))
    with pytest.raises(TypeCheckError):
        doubled(torch.ones(2, 3), wrong=True)
    with pytest.raises(ValueError, match="in words of its own"):
        doubled(torch.ones(3))


def test_the_package_is_checked() -> None:
    assert hasattr(SparseAutoencoder.encode, "__wrapped__") and hasattr(Permutation.apply, "__wrapped__")
    assert not hasattr(Permutation.compose, "__wrapped__"), "it has no shapes"
