"""The plan of a job: what it reads, needs and takes, and everything that would stop it, found before it begins.

A dry run prints the plan. A real run makes the same plan and refuses to start on the same problems; what only the
content of files can show (damaged SAEs, too few documents) comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from sae_match.entries import list_entries
from sae_match.errors import UserError
from sae_match.evaluation.controls import Matcher
from sae_match.files import check_writable
from sae_match.hub_lookup import HubFile, HubRefusalError, Lookup
from sae_match.language_model import resolve_device
from sae_match.language_model.residual_streams import KIND, layer_bytes, layer_path
from sae_match.language_model.sources import PlannedModel
from sae_match.pairs import captured_layers, distant_pairs
from sae_match.plan import checks, resources
from sae_match.plan.checks import collect_errors
from sae_match.plan.machine import Machine, probe_machine
from sae_match.plan.resources import DiskNeed, JobShape, Phase, TextSize
from sae_match.rules import check_config
from sae_match.saes import SaeHeader, SaeSource
from sae_match.saes.formats.reading import SaeShape
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows
from sae_match.text.windows import find_windows

NO_MODEL_NEEDED = "evaluation=weights_only needs no language model, and so no licence and no token."


@dataclass(frozen=True)
class PlannedSaes:
    """The span's SAEs.

    Attributes:
        files: those on the hub, as far as it answers; empty where `sae.root` is set.
        shapes: by layer; layers whose files say nothing before they are read are absent.
        found: whether the files of every layer are known, so that it is clear what is to be downloaded.
    """

    files: list[HubFile]
    shapes: dict[int, SaeShape]
    found: bool = True


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Attributes:
        device: where SAEs and model go.
        model, text: None for weights_only, and where they cannot be found.
        shape: None where the SAEs' shapes are not known before they are downloaded; then there are no estimates.
        phases: memory of each step.
        disk: what is written, and where.
        problems: everything found that stops the job.
    """

    study: Study
    device: torch.device
    machine: Machine | None = None
    saes: PlannedSaes | None = None
    model: PlannedModel | None = None
    text: TextSize | None = None
    shape: JobShape | None = None
    phases: list[Phase] = field(default_factory=list)
    disk: list[DiskNeed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """Layers of the span."""
        return _span(self.study)

    @property
    def downloads(self) -> int | None:
        """Bytes that are to be downloaded; None where they are not known."""
        return next((need.bytes for need in self.disk if need.what == "downloads"), None)

    def require(self) -> None:
        """Refuse a job that cannot start.

        Raises:
            UserError: every problem, one after the other.
        """
        if self.problems:
            raise UserError("\n".join(self.problems))


def make_plan(study: Study) -> Plan:
    """Plan a job; nothing is downloaded beyond a hub model's config.json, and nothing is written.

    A configuration that breaks its own rules is not followed any further.
    """
    problems: list[str] = []
    device = torch.device("cpu")
    with collect_errors(problems):
        check_config(study)
    if problems:
        return Plan(study, device, problems=problems)
    with collect_errors(problems):
        device = resolve_device(study.device)
    with collect_errors(problems):
        checks.check_output(study)
    with collect_errors(problems):
        check_writable(Store(study.paths.cache_dir).root, "paths.cache_dir", create=False)
    lookup, machine = Lookup(), probe_machine(device)
    model = text = None
    if study.evaluation.full:
        model = _plan_model(study, lookup, problems)
        text = _plan_text(study, lookup, None if model is None else model.directory, problems)
    saes = _plan_saes(study, lookup, _d_model(study, model), problems)
    _check_shapes(study, saes, model, problems)
    with collect_errors(problems):
        checks.check_judging(study)
    with collect_errors(problems):
        for one in (*study.evaluation.all_splices, *study.evaluation.controls.values()):
            one.facts()  # what has no content key is refused before long work
    shape = _job_shape(study, saes, model, text)
    steps = [] if shape is None else resources.phases(shape, device.type == "cuda", study.model.device_map is not None)
    with collect_errors(problems):
        resources.check_memory(steps, machine, study.solver.memory_limit_gib)
    disk = list(_disk_needs(study, saes, model, shape))
    with collect_errors(problems):
        resources.check_disk(disk)
    return Plan(study, device, machine, saes, model, text, shape, steps, disk, problems)


def total_size(files: Iterable[HubFile]) -> int | None:
    """Bytes of all files; None where the size of one is not known."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _span(study: Study) -> list[int]:
    return list(range(study.layers.first, study.layers.last + 1))


def _d_model(study: Study, model: PlannedModel | None) -> int | None:
    return study.model.d_model if model is None or model.facts is None else model.facts.d_model


# -- model and text --------------------------------------------------------------------------------------


def _plan_model(study: Study, lookup: Lookup, problems: list[str]) -> PlannedModel | None:
    """The model, before any weight is downloaded or read; None where it cannot be had."""
    with collect_errors(problems):
        try:
            planned = study.model.plan(lookup, Store(study.paths.cache_dir))
        except HubRefusalError as error:
            raise UserError(f"{error} {NO_MODEL_NEEDED}") from None
        if planned.facts is not None:
            for check in (checks.check_span, checks.check_window, checks.check_dtype):
                with collect_errors(problems):
                    check(study, planned.facts)
        return planned
    return None


def _plan_text(study: Study, lookup: Lookup, tokenizer: Path | None, problems: list[str]) -> TextSize:
    """The text, before anything of it is downloaded.

    Args:
        tokenizer: directory of the model's tokenizer, where it is on this machine.
    """
    text, how = study.dataset, study.evaluation
    note, sizes = "", _most_windows(study)
    with collect_errors(problems):
        note = text.note()
        known = _known_windows(study, tokenizer)
        if known is not None:
            spliced = known.leading(how.splice_documents, how.splice_windows_per_document)
            sizes = known.n_windows, int(spliced.sum()), known.n_documents
            note += "; already cut into windows, in the cache"
        elif found := text.availability(lookup):
            note += f"; {found}"
    batch = how.batch_windows if sizes[0] is None else min(how.batch_windows, sizes[0])
    fit = (how.fit_documents or text.documents) * text.windows_per_document if study.fitted else 0
    return TextSize(*sizes, tokens=text.window_tokens, batch=batch, fit_windows=fit, note=note)


def _most_windows(study: Study) -> tuple[int | None, int | None, int | None]:
    """Most windows, windows with token losses, and documents that the configuration allows; None = no limit."""
    documents, each = study.dataset.documents, study.dataset.windows_per_document
    windows = documents * each if documents and each else None
    splice_documents = min(filter(None, (study.evaluation.splice_documents, documents)), default=0)
    splice_each = min(filter(None, (study.evaluation.splice_windows_per_document, each)), default=0)
    spliced = splice_documents * splice_each if splice_documents and splice_each else None
    return windows, spliced, documents or None


def _known_windows(study: Study, tokenizer: Path | None) -> TokenWindows | None:
    """Windows that an earlier job has cut; only where that spares a download."""
    if tokenizer is None or not study.dataset.downloads:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # its files are not all there yet
    return find_windows(study.dataset, loaded, Store(study.paths.cache_dir), study.model.bos)


# -- SAEs ------------------------------------------------------------------------------------------------


def _plan_saes(study: Study, lookup: Lookup, d_model: int | None, problems: list[str]) -> PlannedSaes:
    """Every SAE of the span, before any is downloaded or read.

    Args:
        d_model: width of the model's residual stream where it is known, for files that state no shape.
    """
    source = SaeSource(study.sae, tuple(_span(study)))
    if study.sae.root is not None:
        headers = _local_headers(study, source, problems)
        shapes = {layer: SaeShape(one.d_model, one.width, "the file's header") for layer, one in headers.items()}
        return PlannedSaes([], shapes)
    files = _hub_files(source, lookup, problems)
    shapes = _shapes_at_hub(source, files, study.sae.d_model or d_model)
    return PlannedSaes([file for found in files.values() for file in found], shapes, len(files) == len(source.span))


def _local_headers(study: Study, source: SaeSource, problems: list[str]) -> dict[int, SaeHeader]:
    headers: dict[int, SaeHeader] = {}
    refused: list[str] = []
    for layer in source.span:
        with collect_errors(problems):
            headers[layer] = source.header(layer)
            try:
                checks.check_header(study, layer, headers[layer], headers[min(headers)])
            except UserError as error:
                refused.append(str(error))
    if refused:  # as a rule the same for every layer: said once
        more = f" ({len(refused)} layers are refused in this way)" if len(refused) > 1 else ""
        problems.append(refused[0] + more)
    return headers


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
                # The same answer for every layer: said once.
                refusal = str(error)
                without.append(layer)
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


def _check_shapes(study: Study, saes: PlannedSaes, model: PlannedModel | None, problems: list[str]) -> None:
    """SAEs over one residual stream, the model's, and pairs that fit into memory."""
    shapes = saes.shapes
    if not shapes:
        return
    with collect_errors(problems):
        checks.check_one_stream({layer: shape.d_model for layer, shape in shapes.items()})
    d_model = _d_model(study, model)
    if study.evaluation.full and d_model is not None:
        with collect_errors(problems):
            checks.check_same_stream(study.sae.name, shapes[min(shapes)].d_model, study.model.name, d_model)
    # Each pair of widths once: a span of equal SAEs has one answer.
    pairs = {
        (shapes[a].width, shapes[b].width, shapes[a].d_model)
        for a, b in [*pairwise(_span(study)), *(pair.layers for pair in distant_pairs(study))]
        if a in shapes and b in shapes
    }
    for pair in sorted(pairs):
        with collect_errors(problems):
            checks.check_pair(study, study.solver, *pair)
            for control in study.evaluation.matchers:
                control.check_memory(*pair)


# -- resources -------------------------------------------------------------------------------------------


def _job_shape(study: Study, saes: PlannedSaes, model: PlannedModel | None, text: TextSize | None) -> JobShape | None:
    """The job's sizes; layers of unknown width count as the widest that is known."""
    if not saes.shapes:
        return None
    layers, d_model = _span(study), saes.shapes[min(saes.shapes)].d_model
    widest = max(shape.width for shape in saes.shapes.values())
    widths = {layer: saes.shapes[layer].width if layer in saes.shapes else widest for layer in layers}
    controls, source = study.evaluation.matchers, SaeSource(study.sae, tuple(layers))
    permutations = 1 + len(controls)
    return JobShape(
        d_model=d_model,
        widths=tuple(widths.values()),
        solver_bytes=study.matching.required_bytes(study.solver, widest, widest, d_model),
        model=None if model is None else model.size,
        text=text,
        permutations=permutations,
        splices=sum(splice.count(permutations) for splice in study.evaluation.all_splices),
        similarities=sum(isinstance(control, Matcher) and control.all_pairs for control in controls),
        far_pairs=tuple((widths[a], widths[b]) for a, b in (pair.layers for pair in distant_pairs(study))),
        ceilings=tuple(widths[layer] for layer in layers if source.ceiling_path(layer) is not None),
    )


def _disk_needs(
    study: Study, saes: PlannedSaes, model: PlannedModel | None, shape: JobShape | None
) -> Iterator[DiskNeed]:
    """What is written: downloads that the hub's cache lacks, residual streams that ours lacks, counts, the record."""
    full = study.evaluation.full
    missing = [file for file in [*saes.files, *(model.files if model is not None else [])] if file.cached is None]
    known = saes.found and (model is not None or not full)
    yield DiskNeed("downloads", Path(constants.HF_HUB_CACHE), total_size(missing) if known else None, "HF_HOME")
    if full:
        cache = Store(study.paths.cache_dir).directory
        text = None if shape is None else shape.text
        streams = counts = fitted = None
        if shape is not None and text is not None:
            counts = resources.passes_bytes(shape)
            fitted = len(_span(study)) * layer_bytes(text.fit_windows, text.tokens, shape.d_model)
            if text.windows is not None:
                layers = len(captured_layers(study)) - len(_captured(study, shape.d_model, text.windows, text.tokens))
                streams = layers * layer_bytes(text.windows, text.tokens, shape.d_model)
        if study.fitted:
            yield DiskNeed("streams to fit controls on", cache, fitted, "paths.cache_dir")
        yield DiskNeed("residual streams", cache, streams, "paths.cache_dir")
        yield DiskNeed("activation counts until it is done", cache, counts, "paths.cache_dir")
    record = None if shape is None else sum(shape.widths[:-1]) * resources.FEATURE_ROW_BYTES + resources.RECORD_BYTES
    yield DiskNeed("record", Path(study.paths.output_dir), record, "paths.output_dir")


def _captured(study: Study, d_model: int, windows: int, window_tokens: int) -> set[int]:
    """Those of `captured_layers` in the cache entry that most likely is this job's.

    An entry's key needs the model's weights; here the model's name and the windows' shape have to do, and there may be
    fewer windows than the configuration allows. Capturing checks the room again with the exact key.
    """
    wanted = (study.model.name, window_tokens, d_model)
    span = captured_layers(study)
    best: set[int] = set()
    for entry in list_entries(Store(study.paths.cache_dir).root, [KIND])[0]:
        about = entry.about if isinstance(entry.about, dict) else {}
        found = tuple(about.get(name) for name in ("model_name", "window_tokens", "d_model"))
        if found == wanted and about.get("n_windows", 0) <= windows:
            best = max(best, {layer for layer in span if layer_path(entry.path, layer).is_file()}, key=len)
    return best
