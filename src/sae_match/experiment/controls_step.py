"""The controls of a pair: permutations beside the matching, each found once and then read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from sae_match.config.schema import Config
from sae_match.entries import Payload
from sae_match.evaluation.controls import ControlMatching, ControlPair, ControlSetup, MatchingControl, Remember
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.matching_cache import KIND, finite
from sae_match.matching import Permutation
from sae_match.store import Store


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


def remembering(store: Store) -> Remember:
    """What finds a control's matching once and then reads it from the store.

    Only a matching that is proved the best is kept: one that was cut short by today's memory need not be the next
    job's.
    """

    def remember(facts: Mapping[str, object], find: Callable[[], ControlMatching]) -> ControlMatching:
        return store.get_or(
            KIND,
            {"kind": "control", **facts},
            lambda: _encode(find()),
            _decode,
            keep=lambda payload: payload["values"].get("gap") == 0,
        )

    return remember


def _encode(found: ControlMatching) -> Payload:
    permutation = found.permutation
    values = {name: float(value) for name, value in found.values.items()}
    return {"indices": permutation.indices, "width_b": permutation.n_b, "values": values}


def _decode(payload: Payload) -> ControlMatching:
    permutation = Permutation(torch.from_numpy(payload["indices"]), payload["width_b"])
    return ControlMatching(permutation, {name: finite(value) for name, value in payload["values"].items()})
