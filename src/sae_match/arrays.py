"""numpy arrays in the place of tensors, and activations of tokens without windows."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

Array = Tensor | np.ndarray
"""What public functions take for a tensor: `Float[Array, "tokens d"]`."""
TOKENS_AT_A_TIME = 1024
"""As many as 8 windows of 128."""


def as_tensor(values: Array, device: str | torch.device = "cpu") -> Tensor:
    """A numpy array as a tensor, on the CPU with the same memory (memory-mapped files stay on disk); a tensor as it is,
    wherever it is."""
    if isinstance(values, Tensor):
        return values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing here writes
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def windows_of(
    x: Shaped[Array, "windows tokens d"] | Shaped[Array, "tokens d"], sink_positions: int, batch_windows: int
) -> tuple[Shaped[Tensor, "windows tokens d"], int, int]:
    """Activations as windows, with the sink positions at the start of each and how many windows are read at a time.

    Tokens without windows, [tokens, d], have no sink positions, and each becomes a window of its own.
    """
    values = as_tensor(x)
    return (values, sink_positions, batch_windows) if values.ndim != 2 else (values[:, None], 0, TOKENS_AT_A_TIME)
