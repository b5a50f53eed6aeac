"""What a job leaves on disk."""

from __future__ import annotations

from .configuration import FACTOR_PATHS, factors_of, flat_config
from .job import JobRecord
from .pairs import PAIR_COLUMNS, layer_rows, read_pairs

__all__ = ["FACTOR_PATHS", "PAIR_COLUMNS", "JobRecord", "factors_of", "flat_config", "layer_rows", "read_pairs"]
