"""The canonical SAE against SAELens, the field's most used implementation, on the same weights."""

from __future__ import annotations

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sae_match import fold
from sae_match.saes import SparseAutoencoder
from tests.builders import random_sae


def in_sae_lens(sae: SparseAutoencoder) -> JumpReLUSAE:
    """The same parameters in SAELens' class; Gemma Scope does not subtract b_dec from the input."""
    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=sae.d_model, d_sae=sae.width, apply_b_dec_to_input=False))
    theirs.load_state_dict(sae.parameters())
    return theirs.eval()


@torch.no_grad()
def test_same_activations_and_reconstructions() -> None:
    sae, x = random_sae(width=64, d=16), torch.randn(500, 16)
    for ours in (sae, fold(sae)):
        theirs = in_sae_lens(ours)
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert float((ours.encode(x) > 0).float().mean()) > 0.05  # the comparison is not of zeros
