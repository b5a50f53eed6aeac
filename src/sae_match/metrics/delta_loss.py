"""Delta loss: what replacing a residual costs the language model, in nats per token (method section 5)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.metrics.bootstrap import Bootstrap, Estimate


def delta_loss(
    spliced: Float[Tensor, "windows predictions"],
    original: Float[Tensor, "windows predictions"],
    document: Int[Tensor, " windows"],
    bootstrap: Bootstrap,
    sink_positions: int = 1,
) -> Estimate:
    """Mean cross-entropy of the spliced model minus that of the original one, same tokens.

    Args:
        spliced, original: next-token losses in nats; column p is the prediction made at position p.
        document: document of each window, 0..n_documents-1.
        sink_positions: predictions made at these first positions are not counted.
    """
    difference = (spliced - original)[:, sink_positions:].to(torch.float64)
    totals = torch.zeros(bootstrap.n_documents, dtype=torch.float64)
    counts = torch.zeros(bootstrap.n_documents, dtype=torch.float64)
    totals.index_add_(0, document, difference.sum(dim=1))
    counts.index_add_(0, document, torch.full_like(document, difference.shape[1], dtype=torch.float64))
    return bootstrap.ratio(totals.numpy(), counts.numpy())
