"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from sae_match.files import format_duration, format_size
from sae_match.hub import HubFile
from sae_match.language_model.sources import ModelSource
from sae_match.plan.allocation import Allocation, advice
from sae_match.plan.machine import Duration, durations
from sae_match.plan.plan import NO_MODEL_NEEDED, Plan, PlannedSide, total_size


def render(plan: Plan, *, configuration: bool = True) -> str:
    """The whole plan: configuration, jobs, downloads, memory, disk, time, problems."""
    lines: list[str] = []
    if configuration:
        lines = ["== Configuration ==", yaml.safe_dump(plan.study.config, sort_keys=False, allow_unicode=True).rstrip()]
    if plan.machine is not None:
        steps = _steps(plan)
        for title, part in (
            (f"Jobs: {len(plan.pairs.own)} layer pairs", _jobs(plan)),
            ("Reads and downloads", _reads(plan)),
            ("Memory at the peak of each step", _memory(plan)),
            ("Disk", (f"{need.what}: {_size(need.bytes)} in {need.path} ({need.key})" for need in plan.disk)),
            ("Time, as far as it can be counted, with nothing in the cache", _time(steps)),
            *([("What it asks Slurm for", _slurm(plan, plan.asked, steps))] if plan.asked is not None else []),
        ):
            lines += ["", f"== {title} ==", *part]
    lines += ["", f"== Problems: {len(plan.problems) or 'none'} =="]
    lines += [f"- {line}" for problem in plan.problems for line in problem.splitlines()]
    if not plan.problems:
        lines.append("The job can start: run the same command without dry_run=true.")
    return "\n".join(lines)


def _jobs(plan: Plan) -> Iterator[str]:
    study = plan.study
    how = f"matching {study.matching.name}, folding {study.folding.name.value}, solver {study.solver.name}"
    yield f"{how}, evaluation {study.evaluation.level.value}, on {plan.device}"
    if study.evaluation.stability_seeds is not None:
        yield f"seeds of each layer compared (layers {plan.layers[0]}..{plan.layers[-1]})"
    yield ", ".join(f"{pair.a.layer}->{pair.b.layer}" for pair in plan.pairs.own)


def _reads(plan: Plan) -> Iterator[str]:
    study, text = plan.study, plan.text
    for side in plan.sides:
        sae, saes = side.study.sae, side.saes
        if sae.root is not None:
            yield f"SAEs {sae.name}: {len(saes.shapes)} found in {sae.root}"
        else:
            yield f"SAEs {sae.repo_id}, revision {sae.revision or 'main'}: {_files(saes.files, saes.found)}"
            yield from map(_file, saes.files)
        shapes = {(shape.d_model, shape.width, shape.source) for shape in saes.shapes.values()}
        yield from (f"  d_model {d}, {width} features (from {source})" for d, width, source in sorted(shapes))
    if not study.evaluation.full:
        yield f"model and text: not read. {NO_MODEL_NEEDED}"
        return
    for number, side in enumerate(plan.sides):
        if side.study.model not in [other.study.model for other in plan.sides[:number]]:
            yield from _model(side)
    if text is not None:
        windows = "unknown number of" if text.windows is None else f"at most {text.windows}"
        yield f"text {study.dataset.name}: {windows} windows of {text.tokens} tokens. {text.note}"


def _model(side: PlannedSide) -> Iterator[str]:
    source, model = side.study.model, side.model
    if model is None:
        yield f"model {source.name} ({source.origin}): unknown (see the problems)"
        return
    yield f"model {source.name} ({source.origin}): {_files(model.files)}"
    yield from map(_file, model.files)
    if model.facts is not None and model.size is not None:
        facts, weights = model.facts, f"{model.size.parameters:,} weights in {source.dtype}"
        shape = f"{facts.architecture}: {facts.n_layers} blocks, d_model {facts.d_model}"
        yield f"  {shape}, {weights}{_placement(source)}"
    if model.note:
        yield f"  {model.note}"


def _placement(model: ModelSource) -> str:
    if model.device_map is None:
        return ""
    most = ", ".join(f"{place} {most}" for place, most in model.max_memory.items())
    return f", spread by accelerate ({model.device_map}{f': {most}' if most else ''})"


def _files(files: list[HubFile], found: bool = True) -> str:
    if not found:
        return f"{len(files)} files found, the others unknown (see the problems)"
    if not files:
        return "nothing to download"
    missing = [file for file in files if file.cached is None]
    total, left = _size(total_size(files)), _size(total_size(missing))
    return f"{len(files)} files, {total}; {len(files) - len(missing)} in the cache, {left} to download"


def _file(file: HubFile) -> str:
    return f"  {file.filename}  {_size(file.size)}  {'download' if file.cached is None else 'in the cache'}"


def _memory(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    if machine is None:
        return
    if not plan.phases:
        yield "unknown: the SAEs' shapes are not known before they are downloaded"
    for phase in plan.phases:
        yield f"{phase.name}: {_size(phase.ram_bytes)}{_parts(phase.ram)}"
        if phase.gpu:
            yield f"  on {machine.gpu}: {_size(phase.gpu_bytes)}{_parts(phase.gpu)}"
    yield f"Python and its libraries hold {_size(machine.ram_used)} already; {_size(machine.ram_free)} are free"
    if machine.gpu is not None:
        yield f"{machine.gpu}: {_size(machine.gpu_free)} free"
    if plan.phases and not _is_complete(plan):
        yield "without the steps that need the language model: its size is not known now"


def _is_complete(plan: Plan) -> bool:
    return not plan.study.evaluation.full or (plan.shape is not None and plan.shape.model is not None)


def _parts(held: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {_size(n)}' for name, n in held.items())})" if held else ""


def _time(steps: list[Duration]) -> Iterator[str]:
    for step in steps:
        yield f"{step.step}: {'unknown' if step.seconds is None else format_duration(step.seconds)} ({step.because})"
    known = [step.seconds for step in steps if step.seconds is not None]
    if known:
        rest = "" if len(known) == len(steps) else ", and what is unknown"
        yield f"in all: about {format_duration(sum(known))}{rest}"


def _steps(plan: Plan) -> list[Duration]:
    elsewhere = plan.asked is not None and plan.device.type == "cuda"
    shape = None if elsewhere else plan.shape
    steps = list(durations(shape, plan.downloads, plan.device, plan.study.model.dtype, plan.layers))
    return steps + [Duration("all other steps", None, "rates are measured, and the job's GPU is not here")] * elsewhere


def _slurm(plan: Plan, asked: Allocation, steps: list[Duration]) -> Iterator[str]:
    known = [step.seconds for step in steps if step.seconds is not None]
    used = 0 if plan.machine is None else plan.machine.ram_used
    yield from advice(asked, plan.phases, used, sum(known) if known else None, _is_complete(plan))


def _size(n: int | None) -> str:
    return "size unknown" if n is None else format_size(n)
