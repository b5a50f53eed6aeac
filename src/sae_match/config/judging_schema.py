"""Dataclass schema of the `judging` group: whether and how the meanings of matched features are compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING


class JudgeName(StrEnum):
    """Who compares the descriptions of two features."""

    none = "none"
    offline = "offline"
    endpoint = "endpoint"


class Overlap(StrEnum):
    """What the offline judge compares: the tokens (or words of explanations), or the places in the text."""

    tokens = "tokens"
    contexts = "contexts"


class OrderMode(StrEnum):
    """How the endpoint judge keeps the order of the two descriptions from mattering."""

    both = "both"
    random = "random"


@dataclass
class JudgingConfig:
    """Descriptions of features, and the judge that says whether two of them mean the same.

    The levels are the paper's: same (3), maybe (2), different (1).
    """

    name: JudgeName = MISSING
    """none | offline (overlap of top tokens or contexts) | endpoint (an OpenAI-compatible server)."""
    pairs: int = 100
    """Pairs per layer pair and variant (matched, random, vanilla), the same features in each where they are matched."""
    seed: int = 0
    """Seed of that sample, and of the order of descriptions for judging.order=random."""
    neuronpedia: str | None = None
    """Folder of Neuronpedia explanations (batch-N.jsonl or .jsonl.gz) with {layer} in it; null = describe features by
    their top-activating contexts on the evaluation text."""
    contexts: int = 10
    """Top contexts per feature, at most one from each window."""
    context_tokens: int = 8
    """Tokens shown on either side of the activating one."""
    description_chars: int = 2000
    """A description is cut to so many characters (whole contexts are left out)."""
    overlap: Overlap = Overlap.tokens
    """offline: tokens | contexts."""
    same_at: float = 0.5
    """offline: overlap from which on two features count as the same."""
    maybe_at: float = 0.2
    """offline: overlap from which on they count as maybe the same."""
    model: str | None = None
    """endpoint: the model's name at the server."""
    base_url: str | None = None
    """endpoint: address up to and including the version, such as https://api.openai.com/v1."""
    api_key_variable: str | None = None
    """endpoint: name of the environment variable that holds the key; null = the server needs none."""
    order: OrderMode = OrderMode.both
    """endpoint: both = each pair is asked in both orders; random = in one, drawn by a hash of the pair and recorded."""
    concurrency: int = 8
    """endpoint: requests under way at a time."""
    retries: int = 5
    """endpoint: further attempts after 408, 409, 429, 5xx, timeouts and broken connections, with growing pauses."""
    timeout_s: float = 60.0
    """endpoint: longest wait for one answer."""
    max_failures: int = 20
    """endpoint: after so many failed requests in a row (each after its retries) no more are sent."""
    max_tokens: int = 16
    """endpoint: longest answer. Models that reason first need more."""
    max_tokens_key: str = "max_tokens"
    """endpoint: what the server calls that limit; newer OpenAI models say max_completion_tokens."""
    temperature: float | None = 0.0
    """endpoint: sampling temperature; null = leave it to the server."""
    price_input: float | None = None
    """endpoint: US dollars per million prompt tokens, for the cost estimate."""
    price_output: float | None = None
    """endpoint: US dollars per million answer tokens."""
    max_cost: float | None = None
    """endpoint: refuse to start where the upper bound of the cost is above this, in US dollars."""
