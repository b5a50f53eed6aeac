"""What plan and run both refuse: layers, SAEs, model and judge that do not fit together, known from headers and
config.json alone. Every `check_*` raises a UserError."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from sae_match.errors import UserError
from sae_match.judging.descriptions import explanation_files
from sae_match.language_model.loading import ModelFacts
from sae_match.matching import by_similarity
from sae_match.matching.solution import refuse_above
from sae_match.pairs import JobPairs, span
from sae_match.plan.resources import sae_bytes
from sae_match.saes import SaeHeader, SaeSource
from sae_match.saes.folding import FoldingScale
from sae_match.saes.formats.reading import SaeShape
from sae_match.saes.site import refuse_encoding
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """A `UserError` inside the block ends the block and becomes an entry of `problems`, once."""
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


def check_model_facts(store: Store, study: Study) -> int | None:
    """Read the model's config.json, the first file of it that a job needs, and refuse what does not fit to it.

    Returns:
        d_model. Of the embedded model it is what the configuration states: its files are made on first use, which
        takes longer than the check is worth.
    """
    facts = study.model.facts(store)
    if facts is None:
        return study.model.d_model
    logger.info(
        "model %s: %s, %d blocks, d_model %d", study.model.name, facts.architecture, facts.n_layers, facts.d_model
    )
    check_model(study, facts)
    return facts.d_model


def check_model(study: Study, facts: ModelFacts) -> None:
    """Refuse layers that the model does not have, SAEs of a model of another depth, windows longer than its context,
    and float16 for a Gemma."""
    name, found = study.model.name, []
    if study.layers.last >= facts.n_layers:
        found.append(
            f"layers.last={study.layers.last}: {name} ({facts.architecture}) has blocks 0..{facts.n_layers - 1}. Set "
            "layers.first and layers.last within them, or choose the model that the SAEs were trained on"
        )
    elif study.sae.n_layers is not None and study.sae.n_layers != facts.n_layers:
        found.append(
            f"sae.n_layers={study.sae.n_layers}: {name} ({facts.architecture}) has {facts.n_layers} blocks, so it is "
            f"not the model that the SAEs {study.sae.name} were trained on. Choose it with model=..., or "
            "evaluation=weights_only"
        )
    if facts.context is not None and study.dataset.window_tokens > facts.context:
        found.append(
            f"dataset.window_tokens={study.dataset.window_tokens}: the context of {name} is {facts.context} tokens"
        )
    # Gemma 3 270M's residual stream at BOS has a norm of 98,606 after block 11; float16 ends at 65,504.
    if facts.architecture.startswith("Gemma") and study.model.dtype == "float16":
        found.append("model.dtype=float16: Gemma's residual stream overflows it; use bfloat16 or float32")
    if found:
        raise UserError("\n".join(found))


def check_one_stream(d_models: dict[int, int]) -> None:
    """Refuse SAEs of different models in one span; `d_models` by layer."""
    first = min(d_models)
    for layer, d_model in d_models.items():
        if d_model != d_models[first]:
            raise UserError(
                f"layer {layer} reads d_model={d_model}, layer {first} {d_models[first]}: "
                "these SAEs do not belong to one model"
            )


def check_same_stream(sae: str, d_sae: int, model: str, d_model: int) -> None:
    """Refuse a model whose residual stream is not the one the SAEs read."""
    if d_sae != d_model:
        raise UserError(
            f"the SAEs {sae} read d_model={d_sae}, but the model {model} has d_model={d_model}: "
            "choose the model that the SAEs were trained on (model=...), or evaluation=weights_only"
        )


def check_pair(study: Study, width_a: int, width_b: int, d_model: int) -> None:
    """Refuse a pair with fewer features than pairs are asked for, or one that the solver has no memory for."""
    n_pairs = study.matching.n_pairs
    if n_pairs is not None and n_pairs > min(width_a, width_b):
        raise UserError(
            f"matching.n_pairs={n_pairs}: SAEs of {width_a} and {width_b} features have at most {min(width_a, width_b)}"
        )
    study.matching.check_memory(study.solver, width_a, width_b, d_model)


def check_widths(study: Study, a: SaeHeader | SaeShape, b: SaeHeader | SaeShape) -> None:
    """As `check_pair`, and refuse SAEs of residual streams of different widths that nothing maps."""
    if a.d_model != b.d_model and study.pairs.stream_map == "none":
        raise UserError(
            f"pairs={study.pairs.name}: SAEs over d_model={a.d_model} and {b.d_model} have no weights in common; set "
            "pairs.map=orthogonal or affine, which carries the first to the residual stream of the second"
        )
    check_pair(study, a.width, b.width, b.d_model)


def check_header(study: Study, layer: int, header: SaeHeader, first: SaeHeader) -> None:
    """Refuse an SAE of another site than the span's first, or that evaluation or folding cannot use."""
    if header.site is not first.site:
        raise UserError(
            f"layer {layer} reads {header.site.value}, layer {study.layers.first} {first.site.value}: "
            "features of different sites are not matched"
        )
    where = f"SAEs {study.sae.name}, layer {layer}"
    if study.evaluation.full:
        refuse_encoding(where, header.site, header.obstacle)
    by_threshold = study.folding.scale in (FoldingScale.auto, FoldingScale.threshold)
    if header.foldable is False and by_threshold and not study.unscaled:
        raise UserError(
            f"{where}: has no thresholds to fold by. Choose folding.scale=stored (the scalar threshold beside a TopK), "
            "estimated, mean_activation, max_activation (measured on text) or decoder_norm (needs no data), or "
            "folding=none"
        )


def check_seeds(study: Study, source: SaeSource, shapes: Mapping[int, SaeShape]) -> None:
    """Refuse `evaluation.stability_seeds` that are missing, read something else or do not fit into memory, and a span
    without a layer that has two SAEs.

    Args:
        source: the job's own SAEs.
        shapes: theirs by layer, as far as they are known.
    """
    names, layers, key = study.evaluation.stability_seeds, source.span, "evaluation.stability_seeds"
    if names is None:
        return
    if len(layers) > 1 and (same := [name for name in names if "{" not in name]):
        raise UserError(f"{key}: {', '.join(same)} would be the seed of every layer: write {{layer}} into the name")
    several = False
    for layer in layers:
        paths = source.seed_paths(layer, names)
        missing = [str(path) for path in paths if not path.exists()]
        if missing and (len(missing) < len(paths) or len(layers) == 1):
            raise UserError(f"{key}: no SAE of layer {layer} at {', '.join(missing)}")
        seeds = [] if missing else paths
        if (second := replace(source, second=True)).has(layer):
            seeds = [*seeds, second.locate([layer])[layer]]
        several = several or bool(seeds)
        if layer not in shapes or not seeds:
            continue
        own = shapes[layer]
        headers = [study.sae.header(path, layer) for path in seeds]
        for path, header in zip(seeds, headers, strict=True):
            if header.d_model != own.d_model:
                raise UserError(f"{path}: d_model {header.d_model}, but layer {layer}'s SAE reads {own.d_model}")
        widths = sorted([own.width, *(header.width for header in headers)])
        held = sum(sae_bytes(own.d_model, width) for width in widths)
        needed = held + by_similarity.required_bytes(*widths[-2:])
        advice = "narrower SAEs or a machine with more memory"
        refuse_above(study.solver.memory_limit_gib, needed, "certified", (widths[-2], widths[-1]), advice)
    if not several:
        raise UserError(
            f"{key}: no layer of layers.first={layers[0]}, layers.last={layers[-1]} has a second SAE. Name files with "
            "{layer}, or set sae.ceiling_filename"
        )


def check_similarities(study: Study, pairs: JobPairs) -> None:
    """Refuse missing files of similarities, and second seeds for those that cannot compare two SAEs of one layer."""
    how, every = study.evaluation.functional, (study.matching, *study.evaluation.similarities)
    for similarity in every:
        for layer in span(study):
            similarity.files(layer)
    own = [study.matching] if study.evaluation.full else []
    compared = (*own, *(study.evaluation.similarities if how is not None and "seeds" in how.pairs else ()))
    names = {similarity.name for similarity in compared if similarity.by_layer}
    if names and pairs.seeds:
        raise UserError(
            f"{', '.join(sorted(names))} cannot compare two seeds of a layer: set sae.ceiling_filename=null, or "
            "(of a control) leave seeds out of evaluation.functional.pairs"
        )
    by_layer = [one.name for one in every if one.by_layer]
    if by_layer and len(pairs.sides) > 1:
        raise UserError(
            f"{', '.join(by_layer)} knows the features of one source: leave it out with pairs={study.pairs.name}"
        )


def check_judging(study: Study, pairs: JobPairs) -> None:
    """Refuse missing explanation files, and what the judge itself cannot begin with."""
    judging = study.judging
    if not judging.enabled:
        return
    if judging.neuronpedia is not None:
        for layer in span(study):
            explanation_files(judging.neuronpedia, layer)
    judged = sum(len(pair.role.judged) for pair in (*pairs.own, *pairs.distant))
    judging.check(judged * judging.pairs)
