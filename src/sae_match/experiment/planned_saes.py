"""The SAE files that a job reads: where they are, how large, and of which shape, before any is downloaded or read."""

from __future__ import annotations

from dataclasses import dataclass

from sae_match.errors import UserError
from sae_match.hub_lookup import HubFile, HubRefusalError, Lookup
from sae_match.saes import SaeSource
from sae_match.saes.locating import SaeShape
from sae_match.study import Study


@dataclass(frozen=True)
class PlannedSaes:
    """The span's SAEs.

    Attributes:
        files: those on the hub; empty where `sae.root` is set.
        shapes: by layer; layers whose files say nothing before they are read are absent.
    """

    files: list[HubFile]
    shapes: dict[int, SaeShape]


def plan_saes(cfg: Study, lookup: Lookup, d_model: int | None, problems: list[str]) -> PlannedSaes:
    """Find every SAE of the span; whatever is wrong goes into `problems`.

    Args:
        d_model: width of the model's residual stream where it is known, for files that state no shape.
    """
    layers = list(range(cfg.layers.first, cfg.layers.last + 1))
    source = SaeSource(cfg.sae, tuple(layers))
    if cfg.sae.root is not None:
        return PlannedSaes([], _local_shapes(source, layers, problems))
    files = _hub_files(source, layers, lookup, problems)
    return PlannedSaes([file for found in files.values() for file in found], _shapes_at_hub(source, files, d_model))


def _local_shapes(source: SaeSource, layers: list[int], problems: list[str]) -> dict[int, SaeShape]:
    shapes = {}
    for layer in layers:
        try:
            header = source.header(layer)
        except UserError as error:
            problems.append(str(error))
        else:
            shapes[layer] = SaeShape(header.d_model, header.width, "the file's header")
    return shapes


def _hub_files(source: SaeSource, layers: list[int], lookup: Lookup, problems: list[str]) -> dict[int, list[HubFile]]:
    """The files of every layer that has all of its files."""
    files: dict[int, list[HubFile]] = {}
    refusal, without = "", []
    for layer in layers:
        try:
            files[layer] = [lookup.file(source.format.repository, name) for name in source.files(layer)]
        except HubRefusalError as error:
            if not error.whole:
                problems.append(str(error))
                continue
            # The same answer for every layer: said once.
            refusal = str(error)
            without.append(layer)
        except UserError as error:
            problems.append(str(error))
    if without:
        problems.append(f"{refusal} (layers without a cached copy: {', '.join(map(str, without))})")
    return files


def _shapes_at_hub(source: SaeSource, files: dict[int, list[HubFile]], d_model: int | None) -> dict[int, SaeShape]:
    """Shapes from the weights' headers; files of one size are of one shape, so each size is asked once."""
    by_size: dict[int, SaeShape | None] = {}
    shapes = {}
    for layer, found in files.items():
        size = max(file.size or 0 for file in found)
        if size not in by_size:
            by_size[size] = source.format.shape_at_hub(found, d_model)
        shape = by_size[size]
        if shape is not None:
            shapes[layer] = shape
    return shapes
