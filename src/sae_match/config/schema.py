"""Dataclass schema of the `sae-match` configuration: one class per Hydra group.

Nothing here imports torch: composing and checking a configuration must stay fast and side-effect free.
Field docstrings are the reference that `sae-match --help` points to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from sae_match.config.composition_schema import CompositionConfig
from sae_match.config.controls import Control
from sae_match.config.judging_schema import JudgingConfig
from sae_match.config.sae_schema import SaeConfig

if TYPE_CHECKING:  # only `Schema` is ever resolved; composing must not wait for torch
    from sae_match.matching.solution import Solver
    from sae_match.tracking import Tracking


class Metric(StrEnum):
    """Which parameters enter the matching cost (method: Eq. 3)."""

    both = "both"
    decoder = "decoder"
    encoder = "encoder"


class Folding(StrEnum):
    """Whether thresholds are folded into the weights before matching (Eq. 4)."""

    theta = "theta"
    none = "none"


class FoldingScale(StrEnum):
    """What plays theta when features are folded; weight metrics are always in these units.

    `auto` is the threshold where every feature has a positive one, and an error where not. The last four are for SAEs
    without thresholds (ReLU, TopK), in order of closeness to one: the scalar threshold a checkpoint stores beside a
    TopK; the threshold that would let k features per token through, estimated on the evaluation text; each feature's
    mean or largest activation on that text; the reciprocal of the decoder row's norm, which needs no data and carries
    no scale.
    """

    auto = "auto"
    threshold = "threshold"
    stored = "stored"
    estimated = "estimated"
    mean_activation = "mean_activation"
    max_activation = "max_activation"
    decoder_norm = "decoder_norm"


MEASURED_SCALES = (FoldingScale.estimated, FoldingScale.mean_activation, FoldingScale.max_activation)
"""Scales that need activations on text, and so evaluation=full."""


class SpliceUnits(StrEnum):
    """Units in which activations travel along the permutation when a residual is spliced."""

    as_folding = "as_folding"
    theta = "theta"
    raw = "raw"


class DeadFeatures(StrEnum):
    """What happens to features that never fire on the evaluation text."""

    keep = "keep"
    aside = "aside"


class ModelSource(StrEnum):
    """Where the language model comes from."""

    embedded = "embedded"
    hub = "hub"
    local = "local"


class Bos(StrEnum):
    """Beginning-of-sequence handling of a tokenizer."""

    auto = "auto"
    required = "required"
    none = "none"


class DatasetSource(StrEnum):
    """Where evaluation or training text comes from."""

    embedded_wiki = "embedded_wiki"
    embedded_news = "embedded_news"
    embedded_code = "embedded_code"
    hub = "hub"
    local = "local"


class Part(StrEnum):
    """Which documents of a source are used; training and evaluation parts are disjoint."""

    train = "train"
    evaluation = "evaluation"
    all = "all"


class EvaluationLevel(StrEnum):
    """How much is evaluated."""

    weights_only = "weights_only"
    full = "full"


class Rerun(StrEnum):
    """Which jobs the command runs where records of earlier launches are found."""

    failed = "failed"
    all = "all"
    none = "none"


@dataclass
class GroupWeights:
    """Weight of each parameter group in the matching cost; the paper uses 1 for all."""

    W_enc: float = 1.0
    """Encoder columns."""
    b_enc: float = 1.0
    """Encoder biases."""
    W_dec: float = 1.0
    """Decoder rows."""


@dataclass
class MatchingConfig:
    """What is compared when features are matched."""

    metric: Metric = MISSING
    """both | decoder | encoder."""
    include_bias: bool = True
    """Whether b_enc enters the cost where the metric covers the encoder (the paper: true)."""
    weights: GroupWeights = field(default_factory=GroupWeights)
    """Weights of the groups."""
    rejection_cost: float | None = None
    """A feature of the narrower SAE may stay unmatched at this cost (a squared distance, in matched units);
    null = all of them are matched. solver=certified only."""
    n_pairs: int | None = None
    """Match exactly this many pairs, the cheapest set of them; null = as many as the narrower SAE has features.
    solver=certified only."""
    dead_features: DeadFeatures = DeadFeatures.keep
    """keep | aside: features that fire on no counted token of the evaluation text stay unmatched. aside needs
    evaluation=full."""


@dataclass
class FoldingConfig:
    """Whether and how features are rescaled before matching."""

    name: Folding = MISSING
    """theta | none."""
    scale: FoldingScale = FoldingScale.auto
    """What plays theta: auto | threshold | stored | estimated | mean_activation | max_activation | decoder_norm."""
    k: int | None = None
    """Active features per token that scale=estimated aims at; null = the k of a TopK SAE."""


@dataclass
class LayersConfig:
    """The layer span; adjacent pairs (first, first+1) .. (last-1, last) are matched."""

    first: int = MISSING
    """First layer (0-based; the residual stream after this block)."""
    last: int = MISSING
    """Last layer, inclusive."""
    pair: int | None = None
    """Short for first=pair, last=pair+1, so that a sweep can go over pairs; null once the two are set."""


@dataclass
class CaptureConfig:
    """Which residual streams the one pass over the text keeps, for this job and those that share its cache."""

    first: int | None = None
    """First layer to capture; null = the job's own span."""
    last: int | None = None
    """Last layer to capture, inclusive; null = the job's own span."""


@dataclass
class ModelConfig:
    """The language model whose residual streams the SAEs read."""

    name: str = MISSING
    """Short name used in records."""
    source: ModelSource = MISSING
    """embedded (SmolLM2 from its wheel), hub, or local directory."""
    repo_id: str | None = None
    """Hub repository (source=hub)."""
    revision: str | None = None
    """Hub revision; null = main."""
    path: str | None = None
    """Model directory, or a .gguf file, which is converted once (source=local)."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16."""
    attn_implementation: str | None = None
    """transformers attention implementation; null = the library's choice. Gemma 2 needs eager."""
    device_map: str | None = None
    """Spread the model with accelerate: auto | balanced | balanced_low_0 | sequential (over the GPUs, then main memory,
    then disk); null = all of it on `device`."""
    max_memory: dict[str, str] = field(default_factory=dict)
    """With device_map: the most to use of each GPU (by number) and of `cpu`, such as {0: 20GiB, cpu: 40GiB}; what is
    left over goes to disk, below paths.cache_dir. Empty = what accelerate finds free."""
    bos: Bos = Bos.auto
    """Windows begin with exactly one BOS, or with none. auto: where the tokenizer itself adds one (Gemma, Llama 3), not
    where it only defines one (GPT-2, Pythia, SmolLM2); required: wherever one is defined; none: never."""
    sink_positions: int = 1
    """Attention sinks at each window's start: never replaced, never counted, never trained on. 1 = position 0;
    a model without BOS can carry the sink on to position 1, then 2."""
    n_layers: int | None = None
    """Number of blocks, where known before loading; lets span errors come early."""
    d_model: int | None = None
    """Residual width, where known before loading."""


@dataclass
class DatasetConfig:
    """The text on which activations are compared."""

    name: str = MISSING
    """Short name used in records."""
    source: DatasetSource = MISSING
    """embedded_wiki | embedded_news | embedded_code | hub | local."""
    repo_id: str | None = None
    """Hub dataset (source=hub)."""
    config_name: str | None = None
    """Hub dataset configuration."""
    revision: str | None = None
    """Hub revision."""
    split: str = "train"
    """Hub split."""
    data_files: str | None = None
    """Hub: read these files instead of what the repository declares: a glob inside it, or hf:// URLs of parquet."""
    fallback_files: str | None = None
    """Hub: hf:// URLs of parquet files, read (with a warning) where the repository is still a loading script, which is
    never run; not with a pinned revision."""
    pool: int | None = None
    """Hub: the sample is drawn from so many documents at the beginning of the stream; null = 10 x documents, at
    least 1,000."""
    path: str | None = None
    """Local .txt, .jsonl or .parquet file, or a directory of .txt files (source=local)."""
    column: str | None = None
    """Text column; null = the first of text, content, code that exists."""
    join_articles: bool = False
    """WikiText: one line per row, joined into articles at ` = Title = ` headings."""
    part: Part = Part.all
    """Every source is split by document (a hash of its name) into disjoint train and evaluation parts."""
    documents: int = 100
    """Number of documents sampled; 0 = every document that is long enough (not offered for hub datasets)."""
    window_tokens: int = 1024
    """Tokens per window, BOS included."""
    windows_per_document: int = 1
    """Windows taken from each document's start; 0 = as many as fit."""
    seed: int = 0
    """Seed of the document sample."""


@dataclass
class EvaluationConfig:
    """What is measured beside the permutation itself."""

    level: EvaluationLevel = MISSING
    """weights_only needs no model and no text."""
    splice_documents: int = 0
    """Delta loss, which needs a forward pass per splice, uses the first n documents; 0 = all. The other metrics
    always use all."""
    splice_windows_per_document: int = 0
    """Delta loss uses the first n windows of each of those documents; 0 = all."""
    splice_units: SpliceUnits = SpliceUnits.as_folding
    """Units of the activations carried along the permutation."""
    quantiles: list[float] = field(default_factory=list)
    """Eq. 6: one more splice per q in 0..1, which carries only the q share of pairs with the lowest decoder MSE."""
    controls: list[Control] = field(default_factory=lambda: [Control.vanilla, Control.random])
    """Measured beside the matching on the same tokens: vanilla | random | greedy | nearest | mutual | cosine |
    correlation (of activations) | linear_map (of residual streams), or all. The last two are fitted on other text."""
    fit_documents: int | None = None
    """On how many documents the controls correlation and linear_map are fitted, none of them evaluated: the other part
    of the source (dataset.part), or the documents drawn next (part=all); null = as many as are evaluated."""
    batch_windows: int = 8
    """Windows per forward pass."""
    min_count: int = 10
    """Per-feature matching scores average over features that fire at least this often."""
    bootstrap_samples: int = 1000
    """Resamples over documents for the 95 % intervals."""


@dataclass
class PathsConfig:
    """Where a job writes and what jobs share."""

    output_dir: str = MISSING
    """The job's record."""
    cache_dir: str = MISSING
    """Where jobs share tokens, residual streams, converted models, matchings and losses, in a folder of its own inside
    this one. Empty: SAE_MATCH_CACHE or ~/.cache/sae_match."""


@dataclass
class Config:
    """The whole configuration of one `sae-match` job."""

    matching: MatchingConfig = MISSING
    folding: FoldingConfig = MISSING
    solver: Solver = MISSING
    sae: SaeConfig = MISSING
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    judging: JudgingConfig = MISSING
    tracking: Tracking = MISSING
    layers: LayersConfig = field(default_factory=LayersConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    composition: CompositionConfig = field(default_factory=CompositionConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    device: str = "auto"
    """auto | cpu | cuda."""
    seed: int = 0
    """Seed of the random control and the bootstrap."""
    progress: bool | None = None
    """Progress bars; null = only when standard error is a terminal."""
    dry_run: bool = False
    """Print what the job would download, need and take, and everything that would stop it; run and write nothing."""
    rerun: Rerun = Rerun.failed
    """failed | all | none: what the command does with jobs that an earlier launch has left in the same sweep directory
    (or paths.output_dir). failed: run what is missing, failed or was killed, skip what is done with the same
    configuration and inputs; all: run everything again, and read no stored matchings, losses or counts; none: run
    nothing, only report."""
    trusted_packages: list[str] = field(default_factory=list)
    """Packages other than sae_match whose classes a `_target_` may name."""

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = {}
        """What the objects were built from, as nested plain values: what a record keeps and what its hashes cover."""

    def at(self, output_dir: Path | str) -> Config:
        """The same job with its record elsewhere."""
        moved = replace(self, paths=replace(self.paths, output_dir=str(output_dir)))
        moved.config = self.config | {"paths": self.config["paths"] | {"output_dir": str(output_dir)}}
        return moved


@dataclass
class Schema:
    """The composed form of `Config`; what is `Any` is built from its `_target_`."""

    matching: MatchingConfig = MISSING
    folding: FoldingConfig = MISSING
    solver: Any = MISSING
    sae: SaeConfig = MISSING
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    judging: JudgingConfig = MISSING
    tracking: Any = MISSING
    layers: LayersConfig = field(default_factory=LayersConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    composition: CompositionConfig = field(default_factory=CompositionConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    device: str = "auto"
    seed: int = 0
    progress: bool | None = None
    dry_run: bool = False
    rerun: Rerun = Rerun.failed
    trusted_packages: list[str] = field(default_factory=list)
