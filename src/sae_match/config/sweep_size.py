"""How many jobs a sweep has, counted without writing them down: `seed=range(0,1000000000)` would fill the memory."""

from __future__ import annotations

import math
import sys
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep
from omegaconf import DictConfig, OmegaConf

from sae_match.errors import UserError

MAX_JOBS = 100_000


def refuse_endless_sweep(cfg: DictConfig) -> None:
    """Refuse a sweep of more than `MAX_JOBS` jobs.

    Raises:
        UserError: naming what is swept.
    """
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *cfg.hydra.overrides.task]
    swept = [override for override in OverridesParser.create().parse_overrides(given) if override.is_sweep_override()]
    count = math.prod(_count(override.value()) for override in swept)
    # Other sweepers draw from the choices, and need not come to an end of them.
    most = (
        MAX_JOBS
        if str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith("BasicSweeper")
        else sys.float_info.max
    )
    if not count <= most:  # also where a range's ends are not numbers
        names = ", ".join(override.key_or_group for override in swept)
        raise UserError(f"a sweep over {names} has {count:g} jobs; at most {MAX_JOBS} are launched together")


def _count(value: Any) -> float:
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        if start is None or stop is None or step == 0:
            raise UserError(f"a range from {start} to {stop} in steps of {step} has no end")
        # At least 1: beside an empty range Hydra writes the others down all the same.
        return max(1.0, math.ceil((stop - start) / step) if math.isfinite((stop - start) / step) else math.inf)
    return 1
