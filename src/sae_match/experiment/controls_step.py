"""The controls of a pair: permutations beside the matching, each found once and then read from the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.evaluation.controls import ControlMatching, ControlPair, ControlSetup, MatchingControl, Remember
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.matching_cache import FOLDER, alone
from sae_match.matching import Permutation
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key

logger = logging.getLogger(__name__)


def control_setup(cfg: Config, d_model: int, device: str = "cpu") -> ControlSetup:
    """What the job's controls share."""
    return ControlSetup(
        memory_limit_gib=cfg.solver.memory_limit_gib,
        problem_width=cfg.matching.numbers_per_feature(d_model),
        seed=cfg.seed,
        device=device,
        batch_windows=cfg.evaluation.batch_windows,
        sink_positions=cfg.model.sink_positions,
    )


def match_controls(
    controls: Sequence[MatchingControl], pair: ControlPair
) -> tuple[dict[str, Permutation], list[MetricRow]]:
    """Permutations by variant, and what each control says about how it found its own."""
    permutations: dict[str, Permutation] = {}
    rows: list[MetricRow] = []
    for control in controls:
        found = control.match(pair)
        permutations[control.name] = found.permutation
        n = len(found.permutation.matched)
        rows += [MetricRow(*pair.layers, control.name, metric, value, n) for metric, value in found.values.items()]
    return permutations, rows


def remembering(cache_dir: Path) -> Remember:
    """What finds a control's matching once and then reads it from the cache.

    Only a matching that is proved the best is kept: one that was cut short by today's memory need not be the next
    job's.
    """
    cache = ResultCache(cache_dir / FOLDER)

    def remember(facts: Mapping[str, object], find: Callable[[], ControlMatching]) -> ControlMatching:
        key = content_key({"kind": "control", **facts})
        known = _read(cache, key)
        if known is not None:
            return known
        with alone(cache.directory / f"{key}.lock"):
            known = _read(cache, key)  # another process may have found it while this one waited
            if known is None:
                known = find()
                if known.values.get("gap") == 0:
                    permutation = known.permutation
                    payload = {"indices": permutation.indices.numpy(), "width_b": permutation.n_b}
                    cache.put(key, {**payload, **known.values})
        return known

    return remember


def _read(cache: ResultCache, key: str) -> ControlMatching | None:
    payload = cache.get(key)
    if payload is None:
        return None
    try:
        indices, width_b = payload.pop("indices"), payload.pop("width_b")
        if not isinstance(indices, np.ndarray) or not isinstance(width_b, int):
            raise ValueError("it holds no permutation")
        values = {name: value for name, value in payload.items() if isinstance(value, float)}
        if len(values) < len(payload):
            raise ValueError(f"{', '.join(payload.keys() - values.keys())} is no number")
        found = ControlMatching(Permutation(torch.from_numpy(indices), width_b), values)
    except (KeyError, ValueError, UserError) as error:
        logger.warning("cached matching %s is damaged and will be solved anew: %s", cache.path(key), error)
        return None
    logger.info("matching of a control found in the cache (%s)", key[:12])
    return found
