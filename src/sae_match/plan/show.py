"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from sae_match.files import format_duration, format_size
from sae_match.hub_lookup import HubFile
from sae_match.plan.plan import NO_MODEL_NEEDED, Plan, total_size
from sae_match.plan.resources import durations
from sae_match.study import Study


def render(plan: Plan) -> str:
    """The whole plan: configuration, jobs, downloads, memory, disk, time, problems."""
    lines = ["== Configuration ==", yaml.safe_dump(plan.study.config, sort_keys=False, allow_unicode=True).rstrip()]
    if plan.machine is not None:
        for title, part in (
            (f"Jobs: {len(plan.layers) - 1} layer pairs", _jobs(plan)),
            ("Reads and downloads", _reads(plan)),
            ("Memory at the peak of each step", _memory(plan)),
            ("Disk", _disk(plan)),
            ("Time, as far as it can be counted", _time(plan)),
        ):
            lines += ["", f"== {title} ==", *part]
    lines += ["", f"== Problems: {len(plan.problems) or 'none'} =="]
    lines += [f"- {line}" for problem in plan.problems for line in problem.splitlines()]
    if not plan.problems:
        lines.append("The job can start: run the same command without dry_run=true.")
    return "\n".join(lines)


def size(n: int | None) -> str:
    """Bytes for people, where they are known."""
    return "size unknown" if n is None else format_size(n)


def duration(seconds: float | None) -> str:
    """Seconds for people, where they are known."""
    return "unknown" if seconds is None else format_duration(seconds)


def _jobs(plan: Plan) -> Iterator[str]:
    study = plan.study
    how = f"matching {study.matching.name}, folding {study.folding.name.value}, solver {study.solver.name}"
    yield f"{how}, evaluation {study.evaluation.level.value}, on {plan.device}"
    yield ", ".join(f"{a}->{b}" for a, b in zip(plan.layers[:-1], plan.layers[1:], strict=True))


def _reads(plan: Plan) -> Iterator[str]:
    study = plan.study
    yield from _saes(plan)
    if not study.evaluation.full:
        yield f"model and text: not read. {NO_MODEL_NEEDED}"
        return
    yield from _model(plan)
    if plan.text is not None:
        windows = "unknown number of" if plan.text.windows is None else f"at most {plan.text.windows}"
        yield f"text {study.dataset.name}: {windows} windows of {plan.text.tokens} tokens. {plan.text.note}"


def _saes(plan: Plan) -> Iterator[str]:
    study, saes = plan.study, plan.saes
    if saes is None:
        return
    if study.sae.root is not None:
        yield f"SAEs {study.sae.name}: {len(saes.shapes)} found in {study.sae.root}"
    else:
        yield f"SAEs {study.sae.repo_id}, revision {study.sae.revision or 'main'}: {_files(saes.files, saes.found)}"
        yield from (f"  {_file(file)}" for file in saes.files)
    shapes = sorted({(shape.d_model, shape.width, shape.source) for shape in saes.shapes.values()})
    yield from (f"  d_model {d}, {width} features (from {source})" for d, width, source in shapes)


def _model(plan: Plan) -> Iterator[str]:
    study, model = plan.study, plan.model
    if model is None:
        yield f"model {study.model.name} ({study.model.origin}): unknown (see the problems)"
        return
    yield f"model {study.model.name} ({study.model.origin}): {_files(model.files)}"
    yield from (f"  {_file(file)}" for file in model.files)
    if model.facts is not None and model.size is not None:
        facts, held = model.facts, model.size
        yield (
            f"  {facts.architecture}: {facts.n_layers} blocks, d_model {facts.d_model}, {held.parameters:,} weights in "
            f"{study.model.dtype}{_placement(study)}"
        )
    if model.note:
        yield f"  {model.note}"


def _placement(study: Study) -> str:
    if study.model.device_map is None:
        return ""
    most = ", ".join(f"{place} {most}" for place, most in study.model.max_memory.items())
    return f", spread by accelerate ({study.model.device_map}{f': {most}' if most else ''})"


def _files(files: list[HubFile], found: bool = True) -> str:
    if not found:
        return f"{len(files)} files found, the others unknown (see the problems)"
    if not files:
        return "nothing to download"
    missing = [file for file in files if file.cached is None]
    total, left = total_size(files), total_size(missing)
    return f"{len(files)} files, {size(total)}; {len(files) - len(missing)} in the cache, {size(left)} to download"


def _file(file: HubFile) -> str:
    return f"{file.filename}  {size(file.size)}  {'download' if file.cached is None else 'in the cache'}"


def _memory(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    if machine is None:
        return
    if not plan.phases:
        yield "unknown: the SAEs' shapes are not known before they are downloaded"
    for phase in plan.phases:
        parts = ", ".join(f"{name} {size(n)}" for name, n in phase.ram.items())
        yield f"{phase.name}: {size(phase.ram_bytes)}" + (f" ({parts})" if parts else "")
        if phase.gpu:
            parts = ", ".join(f"{name} {size(n)}" for name, n in phase.gpu.items())
            yield f"  on {machine.gpu}: {size(phase.gpu_bytes)} ({parts})"
    yield f"Python and its libraries hold {size(machine.ram_used)} already; {size(machine.ram_free)} are free"
    if machine.gpu is not None:
        yield f"{machine.gpu}: {size(machine.gpu_free)} free"
    if plan.phases and plan.study.evaluation.full and (plan.shape is None or plan.shape.model is None):
        yield "without the steps that need the language model: its size is not known now"


def _disk(plan: Plan) -> Iterator[str]:
    for need in plan.disk:
        yield f"{need.what}: {size(need.bytes)} in {need.path} ({need.key})"


def _time(plan: Plan) -> Iterator[str]:
    steps = list(durations(plan.shape, plan.downloads, plan.device, plan.study.model.dtype, plan.layers))
    for step in steps:
        yield f"{step.step}: {duration(step.seconds)} ({step.because})"
    known = [step.seconds for step in steps if step.seconds is not None]
    if known:
        rest = "" if len(known) == len(steps) else ", and what is unknown"
        yield f"in all: about {duration(sum(known))}{rest}"
