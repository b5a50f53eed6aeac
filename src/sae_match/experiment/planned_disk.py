"""What a job writes to disk, and whether there is room for it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from sae_match.entries import list_entries
from sae_match.errors import UserError
from sae_match.experiment.estimates import JobShape, passes_bytes
from sae_match.experiment.evaluation_step import captured_layers
from sae_match.experiment.machine import free_disk
from sae_match.experiment.planned_saes import PlannedSaes
from sae_match.experiment.planned_text import PlannedText
from sae_match.files import GIB
from sae_match.language_model.capturing import KIND
from sae_match.language_model.residual_streams import layer_bytes, layer_path
from sae_match.language_model.sources import PlannedModel
from sae_match.store import Store
from sae_match.study import Study

FEATURE_ROW_BYTES = 96
"""A feature's row in features.parquet and its entry in a permutation, uncompressed."""
RECORD_BYTES = 20 * 2**20
"""Figures, tables and the W&B mirror of a job, generously."""


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a job adds below one directory; `key` is what chooses that directory."""

    what: str
    path: Path
    bytes: int
    key: str


def disk_needs(
    cfg: Study, saes: PlannedSaes, model: PlannedModel | None, text: PlannedText | None, shape: JobShape | None
) -> list[DiskNeed]:
    """What is written: downloads that the hub's cache lacks, residual streams that ours lacks, counts, the record."""
    files = saes.files + (model.files if model is not None else [])
    missing = sum(file.size or 0 for file in files if file.cached is None)
    cache = Store(cfg.paths.cache_dir).directory
    needs = [DiskNeed("downloads", Path(constants.HF_HUB_CACHE), missing, "HF_HOME")]
    if text is not None and shape is not None and shape.model is not None:
        layers = len(captured_layers(cfg)) - len(captured(cfg, shape))
        streams = layers * layer_bytes(shape.windows, shape.window_tokens, shape.d_model)
        if shape.fit_windows:
            per_layer = layer_bytes(shape.fit_windows, shape.window_tokens, shape.d_model)
            fitted = (cfg.layers.last - cfg.layers.first + 1) * per_layer
            needs.append(DiskNeed("streams to fit controls on", cache, fitted, "paths.cache_dir"))
        needs.append(DiskNeed("residual streams", cache, streams, "paths.cache_dir"))
        counts = passes_bytes(shape)
        needs.append(DiskNeed("activation counts until it is done", cache, counts, "paths.cache_dir"))
    rows = sum(shape.widths[:-1]) if shape is not None else 0
    record = rows * FEATURE_ROW_BYTES + RECORD_BYTES
    return [*needs, DiskNeed("record", Path(cfg.paths.output_dir), record, "paths.output_dir")]


def captured(cfg: Study, shape: JobShape) -> set[int]:
    """Those of `captured_layers` in the cache entry that most likely is this job's.

    An entry's key needs the model's weights; here the model's name and the windows' shape have to do, and there may be
    fewer windows than the configuration allows. Capturing checks the room again with the exact key.
    """
    wanted = (cfg.model.name, shape.window_tokens, shape.d_model)
    span = captured_layers(cfg)
    best: set[int] = set()
    for entry in list_entries(Store(cfg.paths.cache_dir).root, [KIND])[0]:
        about = entry.about if isinstance(entry.about, dict) else {}
        found = tuple(about.get(name) for name in ("model_name", "window_tokens", "d_model"))
        if found == wanted and about.get("n_windows", 0) <= shape.windows:
            best = max(best, {layer for layer in span if layer_path(entry.path, layer).is_file()}, key=len)
    return best


def check_disk(needs: list[DiskNeed]) -> None:
    """Refuse a job that one of the disks has no room for.

    Raises:
        UserError: every file system that is too full, with what would go there.
    """
    by_disk: dict[int, list[DiskNeed]] = defaultdict(list)
    free: dict[int, int | None] = {}
    for need in needs:
        device, free_bytes = free_disk(need.path)
        by_disk[device].append(need)
        free[device] = free_bytes
    found = []
    for device, group in by_disk.items():
        total, room = sum(need.bytes for need in group), free[device]
        if room is not None and total > room:  # one without size is refused as not writable
            parts = ", ".join(f"{need.what} {need.bytes / GIB:.1f} in {need.path}" for need in group if need.bytes)
            keys = " or ".join(need.key for need in group if need.bytes)
            found.append(
                f"the disk needs {total / GIB:.1f} GiB ({parts}), but {room / GIB:.1f} GiB are free. Use fewer "
                f"documents or layers, or another disk for {keys}."
            )
    if found:
        raise UserError("\n".join(found))
