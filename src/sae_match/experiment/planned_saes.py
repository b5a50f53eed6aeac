"""The SAE files that a job reads: where they are, how large, and of which shape, before any is downloaded or read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from huggingface_hub import HfApi, constants
from safetensors import SafetensorError, safe_open

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.experiment.estimates import FLOAT
from sae_match.hub_errors import Repository
from sae_match.hub_lookup import HubFile, HubRefusalError, Lookup
from sae_match.saes import SaeSource
from sae_match.saes.hub import ELSEWHERE

_HEADER_ERRORS = (OSError, ValueError, KeyError, SafetensorError)


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
    source = SaeSource(cfg.sae)
    layers = list(range(cfg.layers.first, cfg.layers.last + 1))
    if cfg.sae.root is not None:
        return PlannedSaes([], _local_shapes(source, layers, problems))
    files = _hub_files(cfg, source, layers, lookup, problems)
    shapes = {}
    for layer, found in files.items():
        shape = _shape_on_hub(cfg, found, d_model)
        if shape is not None:
            shapes[layer] = shape
    return PlannedSaes([file for found in files.values() for file in found], shapes)


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


def _shape_on_hub(cfg: Config, files: list[HubFile], d_model: int | None) -> SaeShape | None:
    """Shape of one SAE from a safetensors header, else from the size of its weights' file."""
    weights = max(files, key=lambda file: file.size or 0)
    if weights.filename.endswith(".safetensors"):
        return _safetensors_shape(weights)
    if weights.size is None:
        return None
    if cfg.sae.width is not None and (width := width_of(cfg.sae.width)) is not None:
        return SaeShape(d_of(weights.size, width), width, f"sae.width={cfg.sae.width} and the file's size")
    if d_model is not None:
        return SaeShape(d_model, width_from(weights.size, d_model), "the model's d_model and the file's size")
    return None


def _safetensors_shape(file: HubFile) -> SaeShape | None:
    """From the header, in the cache or at the hub (a request for its first bytes)."""
    try:
        if file.cached is not None:
            with safe_open(file.cached, framework="pt") as tensors:
                shapes = [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
        else:
            header = HfApi(endpoint=constants.ENDPOINT).parse_safetensors_file_metadata(
                file.repository.repo_id, file.filename, revision=file.repository.revision
            )
            shapes = [tuple(tensor.shape) for tensor in header.tensors.values()]
    except _HEADER_ERRORS:
        return None  # an estimate less: the file is judged when it is read
    matrices = [shape for shape in shapes if len(shape) == 2]
    if not matrices:
        return None
    # Encoder and decoder are the largest, and an SAE has more features than its stream has dimensions.
    largest = max(matrices, key=math.prod)
    return SaeShape(min(largest), max(largest), "the file's header")


def width_of(name: str) -> int | None:
    """Number of features that a Gemma Scope width such as 16k or 1m names: the nearest power of two."""
    digits, unit = name.removeprefix("width_")[:-1], name[-1:].lower()
    if unit not in ("k", "m") or not digits.isdigit() or int(digits) == 0:
        return None
    return 2 ** round(math.log2(int(digits) * {"k": 1_000, "m": 1_000_000}[unit]))


def d_of(size: int, width: int) -> int:
    """d_model of a float32 SAE of known width from its file's bytes (headers are smaller than the rounding)."""
    return max(1, round((size / FLOAT - 2 * width) / (2 * width + 1)))


def width_from(size: int, d_model: int) -> int:
    """Number of features of a float32 SAE of known d_model from its file's bytes."""
    return max(1, round((size / FLOAT - d_model) / (2 * d_model + 2)))
