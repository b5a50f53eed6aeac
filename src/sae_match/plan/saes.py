"""The SAEs of a plan: their files and shapes, before any is downloaded or read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_match.errors import UserError
from sae_match.hub import HubFile, HubRefusalError, Lookup
from sae_match.pairs import JobPairs, span
from sae_match.plan import checks
from sae_match.plan.checks import collect_errors
from sae_match.saes import SaeHeader, SaeSource
from sae_match.saes.formats.reading import SaeShape
from sae_match.study import Study


@dataclass(frozen=True)
class PlannedSaes:
    """The span's SAEs.

    Attributes:
        files: those on the hub, as far as it answers; empty where `sae.root` is set.
        shapes: by layer; layers whose files show nothing before they are read are absent.
        found: whether the files of every layer are known, so that it is clear what is to be downloaded.
    """

    files: list[HubFile]
    shapes: dict[int, SaeShape]
    found: bool = True


def plan_saes(
    study: Study, source: SaeSource, lookup: Lookup, d_model: int | None, problems: list[str]
) -> PlannedSaes:  # fmt: skip
    """Every SAE of the span, before any is downloaded or read.

    Args:
        study: one side of the job.
        d_model: width of the model's residual stream where it is known, for files that state no shape.
    """
    if study.sae.root is not None:
        return PlannedSaes([], _read_shapes(study, source.header, problems))
    files = _hub_files(source, lookup, problems)
    shapes = _read_shapes(study, lambda layer: _cached_header(source, layer, files.get(layer, [])), problems)
    by_size: dict[int, SaeShape | None] = {}  # files of one size are of one shape, so each size is asked once
    for layer, found in files.items():
        if layer in shapes:
            continue
        size = max(file.size or 0 for file in found)
        if size not in by_size:
            by_size[size] = source.format.shape_at_hub(found, study.sae.d_model or d_model)
        if (shape := by_size[size]) is not None:
            shapes[layer] = shape
    return PlannedSaes([file for found in files.values() for file in found], shapes, len(files) == len(source.span))


def _cached_header(source: SaeSource, layer: int, files: list[HubFile]) -> SaeHeader | None:
    """The header of a layer whose files are all in the hub client's cache; None where they are not."""
    # The same content under another commit is a blob, without a name that says what it is.
    cached = [file.cached for file in files if file.cached and file.cached.name == Path(file.filename).name]
    if not files or len(cached) < len(files):
        return None
    return source.format.header(source.format.place(cached), layer)


def _read_shapes(
    study: Study, header_of: Callable[[int], SaeHeader | None], problems: list[str]
) -> dict[int, SaeShape]:  # fmt: skip
    """Shapes of the layers whose headers are on this machine, and what these say against them."""
    shapes: dict[int, SaeShape] = {}
    unread: list[str] = []
    refused: list[str] = []
    first = None
    for layer in span(study):
        with collect_errors(unread):
            header = header_of(layer)
            if header is None:
                continue
            shapes[layer] = SaeShape(header.d_model, header.width, "the file's header")
            first = first or header
            with collect_errors(refused):
                checks.check_header(study, layer, header, first)
    for found in (unread, refused):  # as a rule the same for every layer, so only the first is shown
        if found:
            problems.append(found[0] + (f" ({len(found)} layers are refused in this way)" if len(found) > 1 else ""))
    return shapes


def plan_seeds(pairs: JobPairs, problems: list[str]) -> dict[int, SaeShape]:
    """Shapes of second seeds by layer; they are local files."""
    shapes: dict[int, SaeShape] = {}
    for pair in pairs.seeds:
        with collect_errors(problems):
            header = pairs.sources[pair.b.source].header(pair.b.at)
            shapes[pair.b.at] = SaeShape(header.d_model, header.width, "the file's header")
    return shapes


def _hub_files(source: SaeSource, lookup: Lookup, problems: list[str]) -> dict[int, list[HubFile]]:
    """The files of every layer that has all of its files."""
    files: dict[int, list[HubFile]] = {}
    refusal, without = "", []
    for layer in source.span:
        with collect_errors(problems):
            try:
                files[layer] = [lookup.file(source.format.repository, name) for name in source.files(layer)]
            except HubRefusalError as error:
                if not error.whole:
                    raise
                refusal = str(error)  # the same for every layer
                without.append(layer)
    if without:
        problems.append(f"{refusal} (layers without a cached copy: {', '.join(map(str, without))})")
    return files


def check_stream(side: Study, saes: PlannedSaes, d_model: int | None, problems: list[str]) -> None:
    """SAEs of one side over one residual stream, that of its model."""
    shapes = saes.shapes
    with collect_errors(problems):
        checks.check_one_stream({layer: shape.d_model for layer, shape in shapes.items()})
    if side.evaluation.full and d_model is not None:
        with collect_errors(problems):
            checks.check_same_stream(side.sae.name, shapes[min(shapes)].d_model, side.model.name, d_model)


def check_shapes(
    study: Study, compared: JobPairs, sides: Sequence[PlannedSaes], seeds: Mapping[int, SaeShape], problems: list[str]
) -> None:
    """Pairs that can be compared and fit into memory.

    Args:
        sides: by `Site.source`.
        seeds: of second seeds, by layer.
    """
    shapes = sides[0].shapes
    # Each pair of shapes once: a span of equal SAEs has one answer.
    found = {
        (sides[pair.a.source].shapes.get(pair.a.at), sides[pair.b.source].shapes.get(pair.b.at))
        for pair in (*compared.own, *compared.distant)
    }
    pairs: set[tuple[int, int, int]] = set()
    for a, b in found:
        if a is not None and b is not None:
            pairs.add((a.width, b.width, b.d_model))
            with collect_errors(problems):
                checks.check_widths(study, a, b)
    for layer, seed in seeds.items():
        with collect_errors(problems):
            if layer in shapes and seed.d_model != shapes[layer].d_model:
                raise UserError(
                    f"layer {layer}: the second seed reads d_model={seed.d_model}, the first {shapes[layer].d_model}"
                )
    pairs |= {(shapes[at].width, seed.width, seed.d_model) for at, seed in seeds.items() if at in shapes}
    for pair in sorted(pairs):
        with collect_errors(problems):
            checks.check_pair(study, *pair)
            for control in study.evaluation.matchers:
                control.check_memory(*pair)
