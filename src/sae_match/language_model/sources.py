"""Which language model, and how it is loaded: what every source of one has in common, and models on this machine."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sae_match.errors import UserError
from sae_match.hub import HubFile, Lookup, content_hash
from sae_match.options import option

if TYPE_CHECKING:
    from sae_match.language_model.loading import ModelFacts, ModelSize
    from sae_match.store import Store

CONFIG = "config.json"
SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Configuration and tokenizer files."""
WEIGHTS = ["*.safetensors", "*.bin"]


def _memory_size(size: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?([KMG]i?B)", size):
        raise ValueError("must be a size such as 20GiB")
    return size


@dataclass(frozen=True)
class PlannedModel:
    """A language model, as far as it is known without its weights.

    Attributes:
        files: its files on the hub; empty for a model that is on this machine.
        facts, size: None where its configuration cannot be read now.
        directory: local directory with its configuration and tokenizer, where there is one.
        note: what else to know.
    """

    files: list[HubFile] = field(default_factory=list)
    facts: ModelFacts | None = None
    size: ModelSize | None = None
    directory: Path | None = None
    note: str = ""


@option
class ModelSource(ABC):
    """A language model and how it is loaded. Subclasses say where its files are.

    Class attributes:
        advice: what to check where the files cannot be loaded.
    """

    advice: ClassVar[str] = ""

    name: str
    """Short name used in records."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32 | bfloat16 | float16."""
    attn_implementation: str | None = None
    """transformers attention implementation; null = the library's choice. Gemma 2 needs eager."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spread the model with accelerate: auto | balanced | balanced_low_0 | sequential (over the GPUs, then main memory,
    then disk); null = all of it on `device`."""
    max_memory: dict[str, Annotated[str, AfterValidator(_memory_size)]] = Field(default_factory=dict)
    """With device_map: the most to use of each GPU (by number) and of `cpu`, such as {0: 20GiB, cpu: 40GiB}; what is
    left over goes to disk, below paths.cache_dir. Empty = what accelerate finds free."""
    bos: Literal["auto", "required", "none"] = "auto"
    """Windows begin with exactly one BOS, or with none. auto: where the tokenizer itself adds one (Gemma, Llama 3), not
    where it only defines one (GPT-2, Pythia, SmolLM2); required: wherever one is defined; none: never."""
    sink_positions: Annotated[int, Field(ge=1)] = 1
    """Attention sinks at each window's start: never replaced, never counted, never trained on. 1 = position 0;
    a model without BOS can carry the sink on to position 1, then 2."""
    n_layers: int | None = None
    """Number of blocks, where known before loading; lets span errors come early."""
    d_model: int | None = None
    """Residual width, where known before loading."""

    @model_validator(mode="after")
    def _memory_has_places(self) -> Self:
        if self.max_memory and self.device_map is None:
            raise ValueError("model.max_memory is set, but it needs model.device_map (such as auto)")
        if self.device_map is not None and find_spec("accelerate") is None:
            raise ValueError("model.device_map needs the accelerate package: `pip install 'sae-match[gguf]'`")
        for place in self.max_memory:
            if not (place.isdigit() or place == "cpu"):
                raise ValueError(f"model.max_memory: {place} is neither cpu nor the number of a GPU")
        return self

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the files are, as messages name it."""

    @abstractmethod
    def files(self, store: Store) -> Path:
        """Directory with configuration, tokenizer and weights, downloaded or converted where needed.

        Args:
            store: keeps what is converted.

        Raises:
            UserError: they are missing, gated, unreachable, incomplete or damaged.
        """

    def small_files(self, store: Store) -> Path:
        """Directory with at least configuration and tokenizer; weights are not downloaded for it.

        Raises:
            UserError: they are missing, gated or unreachable.
        """
        return self.files(store)

    def facts(self, store: Store) -> ModelFacts | None:
        """What config.json says, before any weights are read; None where making that file takes long.

        Raises:
            UserError: the files are missing, gated or unreachable, config.json is unreadable or describes no language
                model, or n_layers or d_model are others.
        """
        from sae_match.language_model.loading import read_facts

        return read_facts(self, self.small_files(store))

    @abstractmethod
    def identity(self) -> Any:
        """What identifies the weights' content, JSON-compatible. Nothing is downloaded.

        Raises:
            UserError: the files are not on this machine.
            OSError: they cannot be read.
        """

    @abstractmethod
    def plan(self, lookup: Lookup, store: Store) -> PlannedModel:
        """What is known of the model now. No weight is downloaded or read, and nothing is written.

        Raises:
            UserError: the model is missing, gated or unreachable, or its config.json cannot be used.
        """

    def described(self, directory: Path, files: list[HubFile] | None = None, where: str | None = None) -> PlannedModel:
        """The plan of a model whose config.json is in `directory`; messages call that file `where`.

        Raises:
            UserError: it cannot be used.
        """
        from sae_match.language_model.loading import model_size, read_facts

        facts, size = read_facts(self, directory, where), model_size(self, directory, where)
        return PlannedModel(files or [], facts, size, directory)


@option
class LocalModel(ModelSource):
    """A transformers model directory, or a GGUF file, which is converted once into the cache."""

    advice: ClassVar[str] = (
        "Check that model.path holds config.json, *.safetensors and tokenizer files of a causal language model."
    )

    path: Annotated[str, Field(min_length=1)]
    """The directory (config.json, weights, tokenizer), or a .gguf file."""

    @property
    def origin(self) -> str:
        return self.path

    def files(self, store: Store) -> Path:
        path = Path(self.path).expanduser()
        if path.suffix != ".gguf":
            return self._directory()
        from sae_match.language_model.gguf import converted

        if not path.is_file():
            raise UserError(f"model.path={path}: no such file")
        return converted(content_hash(path), lambda: path, store)

    def identity(self) -> Any:
        """The content of the GGUF file, or of each file that transformers reads."""
        path = Path(self.path).expanduser()
        if path.is_file():
            return content_hash(path)
        kinds = (*SMALL, *WEIGHTS)
        files = [file for file in sorted(path.iterdir()) if any(fnmatch(file.name, kind) for kind in kinds)]
        return {file.name: content_hash(file) for file in files}

    def plan(self, lookup: Lookup, store: Store) -> PlannedModel:
        """Facts and size from config.json; of a GGUF file neither is known yet."""
        path = Path(self.path).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return PlannedModel(note=f"{path.name} is converted on first use; size not known yet")
        return self.described(self._directory())

    def _directory(self) -> Path:
        path = Path(self.path).expanduser()
        if not (path / CONFIG).is_file():
            raise UserError(f"model.path={self.path}: no config.json there; name a transformers model directory")
        return path
