"""The judge that a configuration names."""

from __future__ import annotations

import os
from collections.abc import Callable

from sae_match.config.judging_schema import JudgingConfig, OrderMode
from sae_match.errors import UserError
from sae_match.judging.client import ChatClient
from sae_match.judging.cost import Cost, cost_bound
from sae_match.judging.endpoint import AnswerCache, EndpointJudge
from sae_match.judging.offline import OfflineJudge


def make_offline_judge(cfg: JudgingConfig) -> OfflineJudge:
    """The offline judge with its thresholds."""
    return OfflineJudge(cfg.overlap, cfg.same_at, cfg.maybe_at)


def make_endpoint_judge(
    cfg: JudgingConfig, cache: AnswerCache, tick: Callable[[], object] = lambda: None
) -> EndpointJudge:
    """The judge behind the configured endpoint.

    Raises:
        UserError: the key's variable is not set.
    """
    return EndpointJudge(
        make_client(cfg),
        cache,
        order=cfg.order,
        seed=cfg.seed,
        concurrency=cfg.concurrency,
        max_failures=cfg.max_failures,
        tick=tick,
    )


def make_client(cfg: JudgingConfig) -> ChatClient:
    """The client of the configured endpoint; its key comes from the environment.

    Raises:
        UserError: the key's variable is not set or cannot be sent, or address or model is missing.
    """
    if not cfg.base_url or not cfg.model:
        raise UserError("judging=endpoint needs judging.base_url and judging.model")
    body = {cfg.max_tokens_key: cfg.max_tokens}
    sampling = {} if cfg.temperature is None else {"temperature": cfg.temperature}
    return ChatClient(
        cfg.base_url,
        cfg.model,
        _key(cfg.api_key_variable),
        retries=cfg.retries,
        timeout_s=cfg.timeout_s,
        body={**body, **sampling},
    )


def check_cost(cfg: JudgingConfig, pairs: int) -> Cost:
    """The upper bound of the cost of judging so many pairs.

    Raises:
        UserError: it is above `judging.max_cost`.
    """
    requests = pairs * (2 if cfg.order is OrderMode.both else 1)
    bound = cost_bound(requests, cfg.description_chars, cfg.max_tokens, cfg.price_input, cfg.price_output)
    if cfg.max_cost is not None and bound.dollars is not None and bound.dollars > cfg.max_cost:
        raise UserError(
            f"judging.max_cost={cfg.max_cost}: the judge may need {bound} at most. Raise it, or lower judging.pairs, "
            "judging.description_chars or the layer span."
        )
    return bound


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable} is not set, and judging.api_key_variable names it for the endpoint's "
            "key. Export it, or use judging.api_key_variable=null for a server that needs none."
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} does not hold a key that can be sent")
    return key
