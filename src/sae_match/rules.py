"""Rules across groups: what is wrong with a job's objects together. Nothing is loaded, downloaded or asked.

Each rule yields whole sentences, one per problem. What one object alone can know, its constructor has checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sae_match.errors import UserError
from sae_match.study import span_of

if TYPE_CHECKING:  # train_app checks its configuration before it waits for torch
    from sae_match.language_model.sources import ModelSource
    from sae_match.study import Layers, Study
    from sae_match.text.source import TextSource
    from sae_match.training.options import TrainConfig

DEVICES = ("auto", "cpu", "cuda")
ALIASES = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.1", "meta-llama-3.1-8b": "llama-3.1-8b"}
"""Names of SAELens' registry and of the hub for one model."""


def check_config(study: Study) -> None:
    """Refuse a `sae-match` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    _require(job_problems(study))


def check_values(config: Any) -> None:
    """Refuse what the resolved plain values of a `sae-match` configuration show to be impossible, before any class
    that they name is imported: torch alone takes seconds. `check_config` judges these and all others.

    Args:
        config: the values, by attribute; what a class of the user's own does not have is left to `check_config`.

    Raises:
        UserError: every broken rule, one per line.
    """
    rules: list[Callable[[Any], Iterator[str]]] = [_span, _covered, _seed, _composition, _place]
    if config.evaluation.level == "full":
        rules += [_site, _stated_sizes, _capture, lambda study: _depth(study.model, study.layers)]
    found: list[str] = []
    for rule in rules:
        with suppress(AttributeError, TypeError):
            found += rule(config)
    _require([*found, *_device(config.device)])


def check_train_config(cfg: TrainConfig) -> None:
    """Refuse a `sae-match-train` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    _require(training_problems(cfg))


def job_problems(study: Study) -> Iterator[str]:
    """Every broken rule of a `sae-match` job."""
    sides = study.pairs.sides(study)
    yield from _span(study)
    for number, side in enumerate(sides):
        yield from (problem if number == 0 else f"pairs={study.pairs.name}: {problem}" for problem in _saes(side))
    yield from study.pairs.problems(study)
    yield from _place(study)
    yield from _seed(study)
    from sae_match.metrics.metric import Metric

    for name, metric in study.metrics.items():
        if not isinstance(metric, Metric):
            yield f"metrics.{name}={metric!r}: takes a class, +metrics.{name}._target_=my_package.MyClass"
    yield from _limits(study)
    yield from _needs_text(study)
    yield from _comparisons(study)
    yield from _composition(study)
    if study.evaluation.full:
        yield from _capture(study)
        for side in sides:
            yield from _depth(side.model, side.layers)
        yield from _window(study.dataset, "dataset", study.model.sink_positions)
        tested = study.evaluation.functional
        if tested is not None and tested.context_tokens <= study.model.sink_positions:
            yield (
                f"evaluation.functional.context_tokens={tested.context_tokens}: must be more than "
                f"model.sink_positions={study.model.sink_positions}, which are never counted"
            )
    yield from _device(study.device)


def training_problems(cfg: TrainConfig) -> Iterator[str]:
    """Every broken rule of a `sae-match-train` run."""
    yield from _layers(cfg.layers, least=1)
    yield from _depth(cfg.model, cfg.layers)
    yield from _place(cfg)
    for group, texts in (("datasets", cfg.datasets), ("held_out", cfg.held_out)):
        for name, text in texts.items():
            yield from _window(text, f"{group}.{name}", cfg.model.sink_positions)
        if not texts:
            yield f"{group}: name at least one text"
    for name, held_out in cfg.held_out.items():
        for other, text in cfg.datasets.items():
            if held_out.overlaps(text):
                yield (
                    f"held_out.{name}.part={held_out.part}, datasets.{other}.part={text.part}: "
                    "one must be train and the other evaluation, else the report is not on held-out text"
                )
    yield from _device(cfg.device)


def _require(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise UserError("\n".join(found))


def _layers(layers: Layers, least: int) -> Iterator[str]:
    if layers.pair is not None:
        yield f"layers.pair={layers.pair} is short for first and last on the command line; set those two here"
    if layers.first < 0:
        yield f"layers.first={layers.first}: must be 0 or more (0-based blocks)"
    if layers.list is not None and not layers.list:
        yield "layers.list=[]: names no layer; null for a span"
    if layers.list and (layers.list != sorted(set(layers.list)) or {layers.first, layers.last} - {*layers.list}):
        yield f"layers.list={layers.list}: must be ascending, each layer once"
    if len(span_of(layers)) < least:
        what = "the span is empty" if least == 1 else "a span needs at least two layers"
        yield f"layers.first={layers.first}, layers.last={layers.last}: {what}"


def _place(job: Study | TrainConfig) -> Iterator[str]:
    if not job.paths.output_dir:
        yield "paths.output_dir is empty (a variable that is not set?): name a folder"


def _seed(study: Study) -> Iterator[str]:
    if not 0 <= study.seed < 2**63:
        yield f"seed={study.seed}: must be 0 or more, and below 2^63"


def _span(study: Study) -> Iterator[str]:
    # Seeds of one layer have no neighbor; with text there is no step that would do without a pair.
    alone = study.evaluation.stability_seeds is not None and study.evaluation.level == "weights_only"
    alone = alone or study.pairs.name != "adjacent"  # each layer has a partner in the other source
    yield from _layers(study.layers, least=1 if alone else 2)


def _covered(study: Study) -> Iterator[str]:
    """What `SaeFormat.check_layers` says of every format."""
    sae, layers = study.sae, study.layers
    if not all(sae.first_layer <= layer <= sae.last_layer for layer in (layers.first, layers.last)):
        yield (
            f"layers.first={layers.first}, layers.last={layers.last}: the SAEs {sae.name} cover layers "
            f"{sae.first_layer}..{sae.last_layer}"
        )


def _saes(study: Study) -> Iterator[str]:
    """SAEs that the span has, and that belong to the model and its residual stream."""
    try:
        if layers := tuple(span_of(study.layers)):  # an empty span is `_layers`' to refuse
            study.sae.check_layers(layers)
    except UserError as error:
        yield str(error)
    if study.evaluation.full:
        yield from _site(study)
        yield from _model(study)
        yield from _stated_sizes(study)


def _site(study: Study) -> Iterator[str]:
    """A site whose activations can be compared."""
    if study.sae.site is not None and study.sae.site != "resid_post":
        hint = "; {next} in place of {layer} takes the next block's" if study.sae.site == "resid_pre" else ""
        yield (
            f"sae.site={study.sae.site}: activations are compared on resid_post only{hint}; these SAEs can be matched "
            "by their weights (evaluation=weights_only)"
        )


def _model(study: Study) -> Iterator[str]:
    """The model that a release was trained on; a model on this machine, which its path does not name, may be it."""
    trained, used = getattr(study.sae, "model", None), getattr(study.model, "repo_id", study.model.name)
    if hasattr(study.model, "path"):
        return
    if isinstance(trained, str) and _model_name(trained) != _model_name(used):
        yield (
            f"sae.model={trained}, model={used}: {used} is not the model that the SAEs {study.sae.name} were trained "
            f"on. Choose it with model=..., or evaluation=weights_only; sae.model={used} uses them on it all the same"
        )


def _model_name(name: str) -> str:
    """A model's name without its owner, as the hub spells it."""
    short = name.rpartition("/")[2].lower()
    return ALIASES.get(short, short)


def _stated_sizes(study: Study) -> Iterator[str]:
    """SAEs of the model, as far as both say what it is."""
    sae, model = study.sae, study.model
    for name in ("d_model", "n_layers"):
        theirs, ours = getattr(sae, name), getattr(model, name)
        if theirs is not None and ours is not None and theirs != ours:
            yield (
                f"sae.{name}={theirs}, model.{name}={ours}: {model.name} is not the model that the SAEs "
                f"{sae.name} were trained on. Choose it with model=..., or evaluation=weights_only"
            )


def _limits(study: Study) -> Iterator[str]:
    """Limits to the pairs, which not every solver knows."""
    others = [control.name for control in study.evaluation.matchers if not control.limits_pairs]
    for name in ("rejection_cost", "n_pairs"):
        if getattr(study.matching, name) is None:
            continue
        if not study.solver.limits_pairs:
            yield f"matching.{name} is set, and solver={study.solver.name} knows no such limit; use solver=certified"
        if others:
            yield f"matching.{name} is set, and the controls {', '.join(others)} know no such limit; leave one out"


def _needs_text(study: Study) -> Iterator[str]:
    """What is measured, described or fitted on text, and whether there is one, and enough of it."""
    level, full = f"evaluation={study.evaluation.level}", study.evaluation.full
    if study.folding.measured and not full:
        yield (
            f"folding.scale={study.folding.scale.value}: is measured on text, which {level} does not "
            "read. Choose evaluation=full, or a scale that needs no data: threshold, stored or decoder_norm"
        )
    if study.matching.dead_features == "exclude" and not full:
        yield (
            "matching.dead_features=exclude needs activations to know which features are dead, and "
            f"{level} computes none; use evaluation=full or matching.dead_features=keep"
        )
    if study.judging.enabled and study.judging.neuronpedia is None and not full:
        yield (
            f"judging={study.judging.name}: without judging.neuronpedia features are described by the text they fire "
            f"on, which {level} does not read; use evaluation=full or give explanation files"
        )
    if not study.fitted:
        return
    who = " and ".join(study.fitted)
    if not full:
        yield f"{who} need activations, and {level} computes none"
    elif study.dataset.documents == 0 and study.dataset.part == "all":
        yield (
            f"dataset.documents=0 with dataset.part=all evaluates every document and leaves none to fit {who} on; "
            "set dataset.documents to a number, or dataset.part=evaluation"
        )
    elif study.dataset.documents == 0 and study.evaluation.fit_documents is None:
        yield f"dataset.documents=0 does not say on how many documents to fit {who}; set evaluation.fit_documents"


def _comparisons(study: Study) -> Iterator[str]:
    """Controls that other groups compare with."""
    names = [control.name for control in study.evaluation.controls.values()]
    if study.composition.max_distance >= 2 and "random" not in names:
        yield "composition.max_distance compares with composed random permutations: add random to evaluation/controls"
    missing = [name for name in ("vanilla", "random") if name not in names]
    if missing and study.judging.enabled:
        yield f"judging compares with the controls vanilla and random: add {' and '.join(missing)} to them"
    fixed = [one.name for one in (study.matching, *study.evaluation.similarities) if one.by_layer]
    for key in ("null_alpha", "flow_alpha"):
        if fixed and getattr(study.evaluation, key) is not None:
            yield f"evaluation.{key} turns an SAE's parameters, of which {fixed[0]} reads none; leave one of them out"
    own = study.matching
    if study.evaluation.flow_alpha is not None and (own.rejection_cost, own.n_pairs) != (None, None):
        yield "evaluation.flow_alpha looks for best partners: matching.rejection_cost and n_pairs do not apply to them"


def _composition(study: Study) -> Iterator[str]:
    """Distances that exist, and starts inside the span that something can be composed from."""
    distance, starts = study.composition.max_distance, study.composition.starts
    layers = span_of(study.layers)
    listed = f"layers.list={study.layers.list}"
    span = listed if study.layers.list else f"layers.first={study.layers.first}, layers.last={study.layers.last}"
    if distance < 0 or distance == 1:
        yield f"composition.max_distance={distance}: must be 0 (off) or at least 2 (1 is the matching itself)"
    if distance >= 2 and len(layers) < 3:
        yield (
            f"composition.max_distance={distance}: {span} leaves nothing to compose; a span needs at least three layers"
        )
    if starts and distance == 0:
        yield "composition.starts is set, but composition.max_distance=0 compares nothing"
    for start in starts:
        if start not in layers[:-2]:
            allowed = ", ".join(map(str, layers[:-2])) or "none"
            yield f"composition.starts: nothing can be composed from layer {start}; {span} allow {allowed}"
    if len(set(starts)) < len(starts):
        yield f"composition.starts={list(starts)}: each layer once"


def _capture(study: Study) -> Iterator[str]:
    """What is captured covers the job's own span, and exists."""
    first, last, blocks = study.capture.first, study.capture.last, study.model.n_layers
    if first is not None and not 0 <= first <= study.layers.first:
        yield f"capture.first={first}: must be within 0..{study.layers.first} (layers.first)"
    if last is not None and last < study.layers.last:
        yield f"capture.last={last}: must be at least layers.last={study.layers.last}"
    if last is not None and blocks is not None and last >= blocks:
        yield f"capture.last={last}: {study.model.name} has blocks 0..{blocks - 1}"


def _depth(model: ModelSource, layers: Layers) -> Iterator[str]:
    if model.n_layers is not None and layers.last >= model.n_layers:
        yield f"layers.last={layers.last}: {model.name} has blocks 0..{model.n_layers - 1}"


def _window(text: TextSource, where: str, sink_positions: int) -> Iterator[str]:
    # One counted prediction needs the sink positions, one more position and its target.
    if text.window_tokens < sink_positions + 2:
        yield f"{where}.window_tokens={text.window_tokens}: must be at least {sink_positions + 2}"


def _device(device: str) -> Iterator[str]:
    if device not in DEVICES:
        yield f"device={device}: must be one of {', '.join(DEVICES)}"
