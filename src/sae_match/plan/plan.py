"""The plan of a job: what it reads, needs and takes, and everything that would stop it, found before it begins.
Whether it may write its record is the record's to say (`record.job.check_place`).

A dry run prints the plan. A real run makes the same plan and refuses to start on the same problems; what only the
content of files can show (damaged SAEs, too few documents) comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from sae_match.entries import list_entries
from sae_match.errors import UserError
from sae_match.evaluation.controls import Matcher
from sae_match.evaluation.functional.contexts import CONTEXT_TOKENS
from sae_match.files import check_writable
from sae_match.hub import HubFile, HubRefusalError, Lookup
from sae_match.language_model import resolve_device
from sae_match.language_model.residual_streams import KIND, layer_bytes, layer_path
from sae_match.language_model.sources import PlannedModel
from sae_match.metrics.metric import Metric
from sae_match.metrics.registry import with_built_in
from sae_match.pairs import Adjacent, JobPairs, Site, captured_layers, job_pairs, span
from sae_match.plan import checks
from sae_match.plan.allocation import Allocation, current_allocation
from sae_match.plan.checks import collect_errors
from sae_match.plan.machine import DiskNeed, Machine, check_disk, check_memory, probe_machine
from sae_match.plan.resources import FunctionalShape, JobShape, Phase, TextSize, effects_bytes, passes_bytes, phases
from sae_match.plan.saes import PlannedSaes, check_shapes, check_stream, plan_saes, plan_seeds
from sae_match.rules import check_config
from sae_match.saes.formats.reading import SaeShape
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows
from sae_match.text.windows import find_windows

NO_MODEL_NEEDED = "evaluation=weights_only needs no language model, and so no license and no token."
FEATURE_ROW_BYTES = 96
"""A feature's row in features.parquet and its entry in a permutation, uncompressed."""
RECORD_BYTES = 20 * 2**20
"""Figures, tables and the W&B mirror of a job, generously."""


@dataclass(frozen=True)
class PlannedSide:
    """One side of the job: its SAEs, and its model where that is found and needed."""

    study: Study
    saes: PlannedSaes
    model: PlannedModel | None = None


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Attributes:
        device: where SAEs and model go.
        pairs: what is compared; nothing where the configuration breaks its own rules.
        metrics: what is measured, by name.
        machine: None where the configuration breaks its own rules; it is then not followed any further.
        sides: every source of SAEs (`pairs`), the job's own first.
        text: None for weights_only.
        shape: None where the SAEs' shapes are not known before they are downloaded; then there are no estimates.
        phases: memory of each step.
        disk: what is written, and where.
        asked: what the job's launcher would ask Slurm for, where the plan is made elsewhere.
        problems: everything found that stops the job.
    """

    study: Study
    device: torch.device
    pairs: JobPairs = field(default_factory=JobPairs)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    machine: Machine | None = None
    sides: tuple[PlannedSide, ...] = ()
    text: TextSize | None = None
    shape: JobShape | None = None
    phases: list[Phase] = field(default_factory=list)
    disk: list[DiskNeed] = field(default_factory=list)
    asked: Allocation | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def saes(self) -> PlannedSaes | None:
        """The job's own SAEs; None where the configuration breaks its own rules."""
        return self.sides[0].saes if self.sides else None

    @property
    def model(self) -> PlannedModel | None:
        """The job's own model; None for weights_only, and where it cannot be found."""
        return self.sides[0].model if self.sides else None

    @property
    def layers(self) -> list[int]:
        """The first layer of the job's own pairs, then the second one of each."""
        own = self.pairs.own
        return [own[0].a.at, *(pair.b.at for pair in own)] if own else span(self.study)

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


def make_plan(study: Study, store: Store, asked: Allocation | None = None) -> Plan:
    """Plan a job; nothing is downloaded beyond a hub model's config.json, and nothing is written.

    Args:
        store: what earlier jobs have left counts as there.
        asked: what the job's launcher would ask Slurm for; None = the job runs here.
    """
    problems: list[str] = []
    device, pairs, metrics = torch.device("cpu"), JobPairs(), dict[str, Metric]()
    with collect_errors(problems):
        check_config(study)
        pairs, metrics = job_pairs(study), with_built_in(study.metrics)
    if problems:
        return Plan(study, device, problems=problems)
    with collect_errors(problems):
        device = resolve_device(study.device) if asked is None else asked.device(study.device)
    with collect_errors(problems):
        check_writable(store.root, "paths.cache_dir", create=False)
    allocation = asked or current_allocation()
    lookup, machine = Lookup(), probe_machine(device, allocation)
    sides: list[PlannedSide] = []
    for side, source in zip(pairs.sides, pairs.sources, strict=False):  # the last source may be the second seeds
        model = _plan_model(side, store, lookup, problems) if study.evaluation.full else None
        d_model = side.model.d_model if model is None or model.facts is None else model.facts.d_model
        saes = plan_saes(side, source, lookup, d_model, problems)
        if saes.shapes:
            check_stream(side, saes, d_model, problems)
        sides.append(PlannedSide(side, saes, model))
    text = None
    if study.evaluation.full:
        tokenizer = None if sides[0].model is None else sides[0].model.directory
        text = _plan_text(study, store, lookup, tokenizer, problems)
    seeds = plan_seeds(pairs, problems)
    check_shapes(study, pairs, [side.saes for side in sides], seeds, problems)
    with collect_errors(problems):
        checks.check_seeds(study, pairs.sources[0], sides[0].saes.shapes)
    with collect_errors(problems):
        checks.check_similarities(study, pairs)
    with collect_errors(problems):
        checks.check_judging(study, pairs)
    with collect_errors(problems):
        for one in (*study.evaluation.all_splices, *study.evaluation.controls.values()):
            one.facts()  # what has no content key is refused before long work
    shape = _job_shape(study, pairs, sides, seeds, text) if all(side.saes.shapes for side in sides) else None
    steps = [] if shape is None else phases(shape, device.type == "cuda", study.model.device_map is not None)
    with collect_errors(problems):
        check_memory(steps, machine, study.solver.memory_limit_gib, allocation)
    disk = list(_disk_needs(study, store, sides, shape))
    with collect_errors(problems):
        check_disk(disk)
    return Plan(study, device, pairs, metrics, machine, tuple(sides), text, shape, steps, disk, asked, problems)


def total_size(files: Iterable[HubFile]) -> int | None:
    """Bytes of all files; None where the size of one is not known."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


# -- model and text --------------------------------------------------------------------------------------


def _plan_model(study: Study, store: Store, lookup: Lookup, problems: list[str]) -> PlannedModel | None:
    """The model, before any weight is downloaded or read; None where it cannot be had."""
    planned = None
    with collect_errors(problems):
        try:
            planned = study.model.plan(lookup, store)
        except HubRefusalError as error:
            raise UserError(f"{error} {NO_MODEL_NEEDED}") from None
        if planned.facts is not None:
            checks.check_model(study, planned.facts)
    return planned


def _plan_text(study: Study, store: Store, lookup: Lookup, tokenizer: Path | None, problems: list[str]) -> TextSize:
    """The text, before anything of it is downloaded; windows that an earlier job has cut are counted, otherwise the
    most that the configuration allows.

    Args:
        tokenizer: directory of the model's tokenizer, where it is on this machine.
    """
    text, how = study.dataset, study.evaluation
    documents, each = text.documents, text.windows_per_document
    spliced = _least(how.splice_documents, documents) * _least(how.splice_windows_per_document, each)
    sizes: tuple[int | None, int | None, int | None] = (documents * each or None, spliced or None, documents or None)
    note = ""
    with collect_errors(problems):
        note = text.note()
        if (known := _known_windows(study, store, tokenizer)) is not None:
            leading = known.leading(how.splice_documents, how.splice_windows_per_document)
            sizes = known.n_windows, int(leading.sum()), known.n_documents
            note += "; already cut into windows, in the cache"
        elif found := text.availability(lookup):
            note += f"; {found}"
    batch = how.batch_windows if sizes[0] is None else min(how.batch_windows, sizes[0])
    fit = (how.fit_documents or documents) * each if study.fitted else 0
    return TextSize(*sizes, tokens=text.window_tokens, batch=batch, fit_windows=fit, note=note)


def _least(*limits: int) -> int:
    """The lowest limit; 0 = there is none."""
    return min(filter(None, limits), default=0)


def _known_windows(study: Study, store: Store, tokenizer: Path | None) -> TokenWindows | None:
    """Windows that an earlier job has cut; only where that spares a download."""
    if tokenizer is None or not study.dataset.downloads:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # its files are not all there yet
    return find_windows(study.dataset, loaded, store, study.model.bos)


# -- resources -------------------------------------------------------------------------------------------


def _job_shape(
    study: Study, pairs: JobPairs, sides: Sequence[PlannedSide], seeds: Mapping[int, SaeShape], text: TextSize | None
) -> JobShape:
    """The job's sizes; layers of unknown width count as the widest that is known, and all models as the largest."""
    known = [shape for side in sides for shape in side.saes.shapes.values()] + list(seeds.values())
    d_model, widest = max(shape.d_model for shape in known), max(shape.width for shape in known)

    def width(site: Site) -> int:
        shapes = sides[site.source].saes.shapes if site.source < len(sides) else seeds
        return shapes[site.at].width if site.at in shapes else widest

    chain = isinstance(study.pairs, Adjacent)
    in_order = pairs.sites if chain else [site for pair in pairs.own for site in (pair.a, pair.b)]
    sizes = [side.model.size for side in sides if side.model is not None and side.model.size is not None]
    controls = study.evaluation.matchers
    permutations = 1 + len(controls)
    return JobShape(
        d_model=d_model,
        widths=tuple(map(width, in_order)),
        solver_bytes=study.matching.required_bytes(study.solver, widest, widest, d_model),
        model=max(sizes, key=lambda size: size.bytes) if sizes and len(sizes) == len(sides) else None,
        text=text,
        permutations=permutations,
        splices=sum(splice.count(permutations) for splice in study.pairs.splices(study)),
        similarities=sum(isinstance(control, Matcher) and control.all_pairs for control in controls),
        far_pairs=tuple((width(pair.a), width(pair.b)) for pair in pairs.distant),
        ceilings=tuple(max(width(Site(layer)), seed.width) for layer, seed in seeds.items()),
        tested=_tested_shape(study, pairs, width),
        chain=chain,
        flow=study.evaluation.flow_alpha is not None,
        steered=_steered_tokens(study, width(in_order[0])),
    )


def _steered_tokens(study: Study, width: int) -> int:
    how = study.evaluation.steering
    if how is None:
        return 0
    tokens = min(CONTEXT_TOKENS, study.dataset.window_tokens)
    return 2 * len(how.scales) * (how.flows or width) * how.contexts * tokens


def _tested_shape(study: Study, pairs: JobPairs, width: Callable[[Site], int]) -> FunctionalShape | None:
    how = study.evaluation.functional
    if how is None:
        return None
    every = (*pairs.own, *pairs.distant, *pairs.seeds)
    # Matchers agree on many partners: 36 of them gave nine to a feature, four controls included. Each is removed and
    # substituted; one that is silent where the feature fires costs nothing to remove.
    partners = 5 + len(study.evaluation.matchers) / 6
    return FunctionalShape(
        pairs=tuple((*pair.blocks, width(pair.a), width(pair.b)) for pair in every if pair.role.value in how.pairs),
        features=how.features,
        contexts=how.contexts,
        tokens=min(how.context_tokens, study.dataset.window_tokens),
        passes=1.4 * partners if "substitution" in how.tests else 0.0,
        gradients="fingerprint" in how.tests,
    )


def _disk_needs(study: Study, store: Store, sides: Sequence[PlannedSide], shape: JobShape | None) -> Iterator[DiskNeed]:
    """What is written: downloads that the hub's cache lacks, residual streams that ours lacks, counts, the record."""
    files = [file for side in sides for file in (*side.saes.files, *([] if side.model is None else side.model.files))]
    missing = list({str(file): file for file in files if file.cached is None}.values())
    known = all(side.saes.found and (side.model is not None or not study.evaluation.full) for side in sides)
    yield DiskNeed("downloads", Path(constants.HF_HUB_CACHE), total_size(missing) if known else None, "HF_HOME")
    if study.evaluation.full:
        streams = counts = fitted = None
        if shape is not None and (text := shape.text) is not None:
            counts = passes_bytes(shape)
            layers = sum(len(span(side.study)) for side in sides)
            fitted = layers * layer_bytes(text.fit_windows, text.tokens, shape.d_model)
            if text.windows is not None:
                new = sum(
                    len(captured_layers(side.study)) - _captured(side.study, store, shape.d_model, text.windows)
                    for side in sides
                )
                streams = new * layer_bytes(text.windows, text.tokens, shape.d_model)
        if study.fitted:
            yield DiskNeed("streams to fit controls on", store.directory, fitted, "paths.cache_dir")
        yield DiskNeed("residual streams", store.directory, streams, "paths.cache_dir")
        yield DiskNeed("activation counts until it is done", store.directory, counts, "paths.cache_dir")
        if shape is not None and shape.tested is not None:
            yield DiskNeed("effects of features", store.directory, effects_bytes(shape.tested), "paths.cache_dir")
    record = None if shape is None else sum(a for a, _ in shape.pairs) * FEATURE_ROW_BYTES + RECORD_BYTES
    yield DiskNeed("record", Path(study.paths.output_dir), record, "paths.output_dir")


def _captured(study: Study, store: Store, d_model: int, windows: int) -> int:
    """How many of `captured_layers` are in the cache entry that most likely is this job's.

    An entry's key needs the model's weights; here the model's name and the windows' shape have to do, and there may be
    fewer windows than the configuration allows. Capturing checks the room again with the exact key.
    """
    wanted = {"model_name": study.model.name, "window_tokens": study.dataset.window_tokens, "d_model": d_model}
    most = 0
    for entry in list_entries(store.root, [KIND])[0]:
        about = entry.about if isinstance(entry.about, dict) else {}
        if wanted.items() <= about.items() and about.get("n_windows", 0) <= windows:
            most = max(most, sum(layer_path(entry.path, layer).is_file() for layer in captured_layers(study)))
    return most
