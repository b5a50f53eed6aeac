"""Rules for the `sae` and `folding` groups across groups: SAEs against the span and the model, scales against text."""

from __future__ import annotations

from collections.abc import Iterator

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.saes.site import Site


def sae_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the SAEs and the folding scale, one message each."""
    try:
        cfg.sae.check_span(cfg.layers.first, cfg.layers.last)
    except UserError as error:
        yield str(error)
    yield from _scale_rules(cfg)
    if cfg.evaluation.full:
        yield from _model_rules(cfg)


def _scale_rules(cfg: Config) -> Iterator[str]:
    if cfg.folding.measured and not cfg.evaluation.full:
        yield (
            f"folding.scale={cfg.folding.scale.value}: is measured on text, which evaluation=weights_only does not "
            "read. Choose evaluation=full, or a scale that needs no data: threshold, stored or decoder_norm"
        )


def _model_rules(cfg: Config) -> Iterator[str]:
    sae, model = cfg.sae, cfg.model
    if sae.site not in (None, Site.resid_post):
        yield (
            f"sae.site={sae.site.value}: activations are compared on resid_post only; these SAEs can be matched by "
            "their weights (evaluation=weights_only)"
        )
    for name in ("d_model", "n_layers"):
        theirs, ours = getattr(sae, name), getattr(model, name)
        if theirs is not None and ours is not None and theirs != ours:
            yield (
                f"sae.{name}={theirs}, model.{name}={ours}: {model.name} is not the model that the SAEs "
                f"{sae.name} were trained on. Choose it with model=..., or evaluation=weights_only"
            )
