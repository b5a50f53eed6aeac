"""The language model that a job loads: its files, access and size, before any weight is downloaded or read."""

from __future__ import annotations

from sae_match.errors import UserError
from sae_match.experiment.model_check import check_dtype, check_span, check_window
from sae_match.experiment.problems import noting
from sae_match.hub_lookup import HubRefusalError, Lookup
from sae_match.language_model.sources import PlannedModel
from sae_match.store import Store
from sae_match.study import Study

NO_MODEL_NEEDED = "evaluation=weights_only needs no language model, and so no licence and no token."


def plan_model(cfg: Study, lookup: Lookup, problems: list[str]) -> PlannedModel:
    """Find the model; whatever is wrong goes into `problems`."""
    with noting(problems):
        try:
            planned = cfg.model.plan(lookup, Store(cfg.paths.cache_dir))
        except HubRefusalError as error:
            raise UserError(f"{error} {NO_MODEL_NEEDED}") from None
        if planned.facts is not None:
            with noting(problems):
                check_span(cfg, planned.facts)
            with noting(problems):
                check_window(cfg, planned.facts)
            with noting(problems):
                check_dtype(cfg, planned.facts)
        return planned
    return PlannedModel()
