"""The plan of a job: what it downloads, needs and takes, and everything that would stop it, found before it begins.

A dry run prints the plan. A real run makes the same plan and refuses to start on the same problems; what only the
content of files can show (damaged SAEs, too few documents) comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch

from sae_match.errors import UserError
from sae_match.evaluation.controls import Matcher
from sae_match.experiment.estimates import JobShape, Phase, phases
from sae_match.experiment.judging_step import check_judging
from sae_match.experiment.machine import Machine, probe_machine
from sae_match.experiment.matching_step import configured_solver
from sae_match.experiment.planned_disk import DiskNeed, check_disk, disk_needs
from sae_match.experiment.planned_model import plan_model
from sae_match.experiment.planned_saes import PlannedSaes, plan_saes
from sae_match.experiment.planned_text import PlannedText, plan_text
from sae_match.experiment.problems import noting
from sae_match.experiment.saes_in_span import check_one_stream, check_pair, check_same_stream, far_pairs
from sae_match.files import GIB, check_writable
from sae_match.hub_lookup import Lookup
from sae_match.language_model import resolve_device
from sae_match.language_model.sources import PlannedModel
from sae_match.matching.solution import Solver
from sae_match.record.contents import refuse_foreign_files
from sae_match.rules import check_config
from sae_match.saes import SaeSource
from sae_match.store import Store
from sae_match.study import Study


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Attributes:
        device: where SAEs and model go.
        model, text: None for weights_only.
        shape: None where the SAEs' shapes are not known before they are downloaded; then there are no estimates.
        phases: memory of each step.
        disk: what is written, and where.
        problems: everything found that stops the job.
    """

    cfg: Study
    device: torch.device
    machine: Machine | None = None
    saes: PlannedSaes | None = None
    model: PlannedModel | None = None
    text: PlannedText | None = None
    shape: JobShape | None = None
    phases: list[Phase] = field(default_factory=list)
    disk: list[DiskNeed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """Layers of the span."""
        return list(range(self.cfg.layers.first, self.cfg.layers.last + 1))

    def require(self) -> None:
        """Refuse a job that cannot start.

        Raises:
            UserError: every problem, one after the other.
        """
        if self.problems:
            raise UserError("\n".join(self.problems))


def make_plan(cfg: Study) -> Plan:
    """Plan a job; nothing is downloaded beyond a hub model's config.json, and nothing is written.

    A configuration that breaks its own rules is not followed any further.
    """
    problems: list[str] = []
    cpu = torch.device("cpu")
    with noting(problems):
        check_config(cfg)
    if problems:
        return Plan(cfg, cpu, problems=problems)
    device = cpu
    with noting(problems):
        device = resolve_device(cfg.device)
    with noting(problems):
        check_writable(Path(cfg.paths.output_dir), "paths.output_dir", create=False)
    with noting(problems):
        check_writable(Store(cfg.paths.cache_dir).root, "paths.cache_dir", create=False)
    with noting(problems):
        refuse_foreign_files(Path(cfg.paths.output_dir))
    lookup, machine = Lookup(), probe_machine(device)
    model = text = None
    if cfg.evaluation.full:
        model = plan_model(cfg, lookup, problems)
        text = plan_text(cfg, lookup, model.directory, problems)
    d_model = cfg.model.d_model if model is None or model.facts is None else model.facts.d_model
    saes = plan_saes(cfg, lookup, cfg.sae.d_model or d_model, problems)
    _check_shapes(cfg, saes, d_model if model is not None else None, problems)
    with noting(problems):
        check_judging(cfg)
    with noting(problems):
        for one in (*cfg.evaluation.all_splices, *cfg.evaluation.controls.values()):
            one.facts()  # what has no content key is refused before long work
    solver = configured_solver(cfg, "cpu", progress=False)
    _check_solver(cfg, saes, solver, problems)
    shape = _job_shape(cfg, saes, model, text, solver)
    steps = [] if shape is None else phases(shape, device.type == "cuda", cfg.model.device_map is not None)
    with noting(problems):
        check_memory(cfg, steps, machine)
    disk = disk_needs(cfg, saes, model, text, shape)
    with noting(problems):
        check_disk(disk)
    return Plan(cfg, device, machine, saes, model, text, shape, steps, disk, problems)


def check_memory(cfg: Study, steps: list[Phase], machine: Machine) -> None:
    """Refuse a job one of whose steps needs more memory than there is.

    Main memory: what is available now, or `solver.memory_limit_gib` where that is more.

    Raises:
        UserError: naming the step that needs most.
    """
    limits = {
        "main memory": max(machine.ram_free, int((cfg.solver.memory_limit_gib or 0) * GIB)),
        f"memory of {machine.gpu}": machine.gpu_free,
    }
    found = []
    for (what, limit), kind in zip(limits.items(), ("ram", "gpu"), strict=True):
        worst = max(steps, key=lambda step: sum(getattr(step, kind).values()), default=Phase("none"))
        held: dict[str, int] = getattr(worst, kind)
        if sum(held.values()) > limit:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items())
            found.append(
                f"the step '{worst.name}' needs {sum(held.values()) / GIB:.1f} GiB of {what} ({parts}), but "
                f"{limit / GIB:.1f} GiB are free. Lower evaluation.batch_windows, use model.dtype=bfloat16 or "
                "model.device_map=auto, evaluation=weights_only, or a machine with more memory."
            )
    if found:
        raise UserError("\n".join(found))


def _check_shapes(cfg: Study, saes: PlannedSaes, d_model: int | None, problems: list[str]) -> None:
    d_models = {layer: shape.d_model for layer, shape in saes.shapes.items()}
    if not d_models:
        return
    with noting(problems):
        check_one_stream(d_models)
    if d_model is not None:
        with noting(problems):
            check_same_stream(cfg.sae.name, d_models[min(d_models)], cfg.model.name, d_model)


def _check_solver(cfg: Study, saes: PlannedSaes, solver: Solver, problems: list[str]) -> None:
    """Each pair of widths once: a span of equal SAEs has one answer."""
    pairs = {
        (saes.shapes[a].width, saes.shapes[b].width, saes.shapes[a].d_model)
        for a, b in [*pairwise(range(cfg.layers.first, cfg.layers.last + 1)), *far_pairs(cfg)]
        if a in saes.shapes and b in saes.shapes
    }
    for width_a, width_b, d_model in sorted(pairs):
        with noting(problems):
            check_pair(cfg, solver, width_a, width_b, d_model)
            for control in cfg.evaluation.matchers:
                control.check_memory(width_a, width_b, d_model)


def _job_shape(
    cfg: Study, saes: PlannedSaes, model: PlannedModel | None, text: PlannedText | None, solver: Solver
) -> JobShape | None:
    """The job's sizes; layers of unknown width count as the widest that is known."""
    if not saes.shapes:
        return None
    widest = max(shape.width for shape in saes.shapes.values())
    layers = range(cfg.layers.first, cfg.layers.last + 1)
    d_model = saes.shapes[min(saes.shapes)].d_model
    widths = {layer: saes.shapes[layer].width if layer in saes.shapes else widest for layer in layers}
    controls, source = cfg.evaluation.matchers, SaeSource(cfg.sae, tuple(layers))
    permutations, splices = 1 + len(controls), cfg.evaluation.all_splices
    shape = JobShape(
        d_model=d_model,
        widths=tuple(widths.values()),
        solver_bytes=cfg.matching.required_bytes(solver, widest, widest, d_model),
        permutations=permutations,
        splices=sum(splice.count(permutations) for splice in splices),
        decodings=sum(splice.decodings(permutations) for splice in splices),
        similarities=sum(isinstance(control, Matcher) and control.all_pairs for control in controls),
        far_pairs=tuple((widths[a], widths[b]) for a, b in far_pairs(cfg)),
        ceilings=tuple(widths[layer] for layer in layers if source.ceiling_path(layer) is not None),
    )
    if model is None or text is None or model.size is None:
        return shape
    return replace(
        shape,
        batch_windows=min(cfg.evaluation.batch_windows, text.windows or cfg.evaluation.batch_windows),
        window_tokens=cfg.dataset.window_tokens,
        windows=text.windows or 0,
        splice_windows=text.splice_windows or 0,
        documents=text.documents or 0,
        fit_windows=(cfg.evaluation.fit_documents or cfg.dataset.documents) * cfg.dataset.windows_per_document
        if cfg.fitted
        else 0,
        model=model.size,
    )
