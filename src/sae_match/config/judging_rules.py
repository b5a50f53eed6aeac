"""Rules for the `judging` group."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from sae_match.config.judging_schema import JudgeName, JudgingConfig, Overlap
from sae_match.config.schema import Config

MINIMA = {
    "pairs": 1,
    "seed": 0,
    "contexts": 1,
    "context_tokens": 0,
    "description_chars": 100,
    "concurrency": 1,
    "retries": 0,
    "max_failures": 1,
    "max_tokens": 1,
}
ENDPOINT_FIELDS = ("model", "base_url", "api_key_variable", "price_input", "price_output", "max_cost")
PRICES = ("price_input", "price_output", "max_cost")


def judging_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the judging group, one message each."""
    judging = cfg.judging
    for name, least in MINIMA.items():
        if getattr(judging, name) < least:
            yield f"judging.{name}={getattr(judging, name)}: must be at least {least}"
    if judging.name is JudgeName.none:
        return
    yield from _description_rules(cfg)
    if judging.name is JudgeName.offline:
        yield from _offline_rules(judging)
    else:
        yield from _endpoint_rules(judging)


def _description_rules(cfg: Config) -> Iterator[str]:
    folder = cfg.judging.neuronpedia
    if folder is not None and "{layer}" not in folder:
        yield f"judging.neuronpedia={folder}: must contain {{layer}}, one folder of explanations per layer"
    if folder is None and not cfg.evaluation.full:
        yield (
            f"judging={cfg.judging.name}: without judging.neuronpedia features are described by the text they fire on, "
            f"which evaluation={cfg.evaluation.level} does not read; use evaluation=full or give explanation files"
        )


def _offline_rules(judging: JudgingConfig) -> Iterator[str]:
    if not 0 < judging.maybe_at <= judging.same_at <= 1:
        yield (
            f"judging.maybe_at={judging.maybe_at}, judging.same_at={judging.same_at}: "
            "must be 0 < maybe_at <= same_at <= 1"
        )
    if judging.overlap is Overlap.contexts and judging.neuronpedia is not None:
        yield "judging.overlap=contexts: explanations name no places in the text; use judging.overlap=tokens"
    for name in ENDPOINT_FIELDS:
        if getattr(judging, name) is not None:
            yield f"judging.{name} means nothing to judging=offline; it belongs to judging=endpoint"


def _endpoint_rules(judging: JudgingConfig) -> Iterator[str]:
    if not judging.model:
        yield "judging.model is not set, and judging=endpoint needs one"
    yield from _address_rules(judging.base_url)
    variable = judging.api_key_variable
    # A key in place of its variable's name would end up in the record.
    if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        yield "judging.api_key_variable: must be the name of an environment variable (letters, digits, _), not a key"
    if not (math.isfinite(judging.timeout_s) and judging.timeout_s > 0):
        yield f"judging.timeout_s={judging.timeout_s}: must be a positive number"
    for name in (*PRICES, "temperature"):
        value = getattr(judging, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"judging.{name}={value}: must be a finite number >= 0"
    if judging.max_cost is not None and None in (judging.price_input, judging.price_output):
        yield "judging.max_cost is set, but not both judging.price_input and judging.price_output"


def _address_rules(base_url: str | None) -> Iterator[str]:
    try:
        address = urlsplit(base_url or "")
        address.port  # noqa: B018 - raises on a port that is no number
    except ValueError:
        yield "judging.base_url: not a valid address"
        return
    if address.username is not None or address.password is not None or address.query:
        yield "judging.base_url: must not carry a password or a query; name the key's variable in api_key_variable"
    elif address.scheme not in ("http", "https") or not address.hostname:
        yield f"judging.base_url={base_url}: must be an http or https address such as https://api.openai.com/v1"
