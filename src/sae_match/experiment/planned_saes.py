"""The SAE files that a job reads: where they are, how large, and of which shape, before any is downloaded or read."""

from __future__ import annotations

import logging
import math
import zipfile
from dataclasses import dataclass
from typing import IO

import numpy as np
from huggingface_hub import HfApi, HfFileSystem, constants
from safetensors import safe_open

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.experiment.estimates import FLOAT
from sae_match.hub_errors import Repository
from sae_match.hub_lookup import HubFile, HubRefusalError, Lookup
from sae_match.saes import SaeSource
from sae_match.saes.hub import ELSEWHERE

logger = logging.getLogger(__name__)

REMOTE_BLOCK = 2**14
"""Bytes of an archive at the hub that are asked for at a time."""


@dataclass(frozen=True)
class SaeShape:
    """Dimensions of one SAE, and how they are known."""

    d_model: int
    width: int
    source: str


@dataclass(frozen=True)
class PlannedSaes:
    """The span's SAEs.

    Attributes:
        files: those on the hub; empty where `sae.root` is set.
        shapes: by layer; layers whose files say nothing before they are read are absent.
    """

    files: list[HubFile]
    shapes: dict[int, SaeShape]


def plan_saes(cfg: Config, lookup: Lookup, d_model: int | None, problems: list[str]) -> PlannedSaes:
    """Find every SAE of the span; whatever is wrong goes into `problems`.

    Args:
        d_model: width of the model's residual stream where it is known, for files that state no shape.
    """
    layers = list(range(cfg.layers.first, cfg.layers.last + 1))
    source = SaeSource(cfg.sae, tuple(layers))
    if cfg.sae.root is not None:
        return PlannedSaes([], _local_shapes(source, layers, problems))
    files = _hub_files(cfg, source, layers, lookup, problems)
    return PlannedSaes([file for found in files.values() for file in found], _shapes_on_hub(files, d_model))


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


def _hub_files(
    cfg: Config, source: SaeSource, layers: list[int], lookup: Lookup, problems: list[str]
) -> dict[int, list[HubFile]]:
    """The files of every layer that has all of its files."""
    repository = Repository(cfg.sae.repo_id or "", cfg.sae.revision, "sae", ELSEWHERE)
    files: dict[int, list[HubFile]] = {}
    refusal, without = "", []
    for layer in layers:
        try:
            files[layer] = [lookup.file(repository, name) for name in source.names(layer)]
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


def _shapes_on_hub(files: dict[int, list[HubFile]], d_model: int | None) -> dict[int, SaeShape]:
    """Shapes from the headers of the weights' files; files of one size are of one shape, so each size is asked once."""
    by_size: dict[int | None, SaeShape | None] = {}
    shapes = {}
    for layer, found in files.items():
        weights = max(found, key=lambda file: file.size or 0)
        if weights.size not in by_size:
            by_size[weights.size] = _shape(weights, d_model)
        shape = by_size[weights.size]
        if shape is not None:
            shapes[layer] = shape
    return shapes


def _shape(file: HubFile, d_model: int | None) -> SaeShape | None:
    try:
        if file.filename.endswith(".safetensors"):
            matrices = _safetensors_shapes(file)
        elif file.filename.endswith(".npz"):
            matrices = _npz_shapes(file)
        elif file.size is not None and d_model is not None:
            return SaeShape(d_model, width_from(file.size, d_model), "the model's d_model and the file's size")
        else:
            return None
    except Exception:
        # Headers serve the estimates only; whatever is wrong with the file is said when it is read.
        logger.debug("no header of %s", file.filename, exc_info=True)
        return None
    # Encoder and decoder are the largest, and an SAE has more features than its stream has dimensions.
    largest = max((shape for shape in matrices if len(shape) == 2), key=math.prod, default=None)
    return None if largest is None else SaeShape(min(largest), max(largest), "the file's header")


def _safetensors_shapes(file: HubFile) -> list[tuple[int, ...]]:
    if file.cached is not None:
        with safe_open(file.cached, framework="pt") as tensors:
            return [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    header = HfApi(endpoint=constants.ENDPOINT).parse_safetensors_file_metadata(
        file.repository.repo_id, file.filename, revision=file.repository.revision
    )
    return [tuple(tensor.shape) for tensor in header.tensors.values()]


def _npz_shapes(file: HubFile) -> list[tuple[int, ...]]:
    """Shapes of an archive's arrays; of one at the hub some kilobytes are read."""
    if file.cached is not None:
        opened: IO[bytes] = file.cached.open("rb")
    else:
        name, revision = f"{file.repository.repo_id}/{file.filename}", file.repository.revision
        files = HfFileSystem(endpoint=constants.ENDPOINT)
        opened = files.open(name, revision=revision, block_size=REMOTE_BLOCK)
    shapes = []
    with opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes.append(tuple(read(array)[0]))
    return shapes


def width_from(size: int, d_model: int) -> int:
    """Number of features of a float32 SAE of known d_model from its file's bytes (headers are within the rounding)."""
    return max(1, round((size / FLOAT - d_model) / (2 * d_model + 2)))
