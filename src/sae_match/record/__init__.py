"""What a job leaves on disk, and the W&B mirror of the record."""

from __future__ import annotations

from .factors import FACTOR_PATHS, factors_of, flat_config
from .job import JobRecord
from .mirror import Mirror, NullMirror
from .pairs import PAIR_COLUMNS, layer_rows, read_pairs
from .wandb_mirror import WandbMirror, open_mirror

__all__ = [
    "FACTOR_PATHS",
    "PAIR_COLUMNS",
    "JobRecord",
    "Mirror",
    "NullMirror",
    "WandbMirror",
    "factors_of",
    "flat_config",
    "layer_rows",
    "open_mirror",
    "read_pairs",
]
