"""Datasets of the Hugging Face Hub, streamed with the `datasets` library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from huggingface_hub import HfApi
from pydantic import Field, field_validator, model_validator

from sae_match.errors import UserError
from sae_match.hub import Lookup, explained
from sae_match.hub_errors import Repository, holds_token
from sae_match.options import option
from sae_match.text.source import Document, Part, TextSource, row_texts, rows_to_documents, text_column

if TYPE_CHECKING:
    from datasets import IterableDataset

_log = logging.getLogger(__name__)

MIN_POOL, POOL_FACTOR = 1_000, 10
ELSEWHERE = "use an embedded text (dataset=wiki), or a local file (dataset=local dataset.path=FILE)"
DATA_SUFFIXES = (
    *(".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".txt"),
    *(".gz", ".zst", ".bz2", ".xz", ".zip", ".tar"),
)
_NO_DATA = ("dataset_infos.json", "README.txt", "LICENSE.txt", "config.json")
_LIBRARIES_OF_THE_HUB = frozenset({"datasets", "huggingface_hub", "httpx", "httpx2", "requests", "aiohttp", "fsspec"})


@option
class HubText(TextSource):
    """A dataset of the hub. Nothing is downloaded before its documents are read.

    The documents are the first `pool` of the stream (articles, where lines are joined), in the stream's own order. The
    sample is drawn from them by `rank`: it is the same on every machine as long as the revision is, but it is not a
    sample of the whole split. Tokens made from a branch (revision null) stay what they were when first made, also if
    the branch moves; the commit is kept with them.
    """

    location: ClassVar[tuple[str, ...]] = ("repo_id", "config_name", "split")
    downloads: ClassVar[bool] = True

    documents: Annotated[int, Field(ge=1)] = 100
    """Number of documents sampled; a stream has no end, so 0 (all) is not offered."""
    repo_id: Annotated[str, Field(min_length=1)]
    """Repository, OWNER/NAME."""
    config_name: str | None = None
    """The dataset's configuration."""
    revision: str | None = None
    """Branch, tag or commit; null = main."""
    split: str = "train"
    """Split."""
    data_files: str | None = None
    """Read these files instead of what the repository declares: a glob inside it, or hf:// URLs of parquet."""
    fallback_files: str | None = None
    """hf:// URLs of parquet files, read (with a warning) where the repository is still a loading script, which is never
    run; not with a pinned revision."""
    pool: int | None = None
    """The sample is drawn from so many documents at the beginning of the stream; null = 10 x documents, at least
    1,000."""
    column: str | None = None
    """Text column; null = the first of text, content, code that exists."""
    join_articles: bool = False
    """WikiText: one line per row, joined into articles at ` = Title = ` headings."""

    @model_validator(mode="after")
    def _pool_holds_the_sample(self) -> Self:
        if self.pool is not None and self.pool < self.documents:
            raise ValueError(
                f"dataset.pool={self.pool}: must hold at least the {self.documents} documents of the sample"
            )
        return self

    @field_validator("fallback_files")
    @classmethod
    def _is_a_url(cls, files: str | None) -> str | None:
        if files and not files.startswith("hf://"):
            raise ValueError("must be hf:// URLs of parquet files")
        return files

    @property
    def label(self) -> str:
        return f"hub/{self.repo_id}"

    @property
    def advice(self) -> str:
        return f", or raise dataset.pool (now {self.pool_size}), the number of documents that are looked at"

    @property
    def pool_size(self) -> int:
        """Documents from which the sample is drawn."""
        return self.pool or max(MIN_POOL, POOL_FACTOR * self.documents)

    def identity(self) -> dict[str, str]:
        """Where the stream is and how much of it is looked at; nothing is asked of the hub."""
        identity = {
            "repo_id": self.repo_id,
            "revision": self.revision or "main",
            "config_name": self.config_name or "",
            "split": self.split,
            "column": self.column or "",
            "join_articles": str(self.join_articles),
            "pool": str(self.pool_size),
        }
        return identity | ({"data_files": self.data_files} if self.data_files else {})

    def note(self) -> str:
        return f"the first {self.pool_size} documents of {self.repo_id}, split {self.split}"

    def resized(self, documents: int, part: Part | None = None) -> Self:
        """The same pool with another number of documents: another pool would draw others."""
        pool = self.pool_size
        if documents > pool:
            raise UserError(f"dataset.pool={pool}: {documents} documents are to be drawn from it. Raise dataset.pool.")
        return replace(self, pool=pool, documents=documents, part=part or self.part)

    def read(self, facts: dict[str, str]) -> Iterator[Document]:
        """Stream the documents of the pool; the commit, and files read in place of the declared ones, are facts."""
        where = f"Hub dataset {self.repo_id}, split {self.split}"
        _log.info("%s: streaming the first %s documents", where, self.pool_size)
        try:
            with explained(self._repository()):
                dataset = self._stream(facts)
                first = dataset.column_names or next(iter(dataset), None)  # not every format declares its columns
                if first is None:
                    raise UserError(f"{where} is empty.")
                column = text_column(list(first), self.column, where)
                texts = row_texts(dataset.select_columns([column]), column, where)
                yield from islice(rows_to_documents(texts, self.repo_id, self.join_articles), self.pool_size)
        except UserError:
            raise
        except Exception as error:
            # datasets reports unknown configurations and splits as ValueError, loading scripts as RuntimeError.
            library = type(error).__module__.split(".")[0]
            if library not in _LIBRARIES_OF_THE_HUB and not isinstance(error, (OSError, ValueError, RuntimeError)):
                raise
            raise UserError(self._explanation(error)) from (None if holds_token(error) else error)

    def availability(self, lookup: Lookup) -> str:
        """Check that the dataset may be read, by asking for one of its data files.

        Raises:
            UserError: unknown, gated or unreachable, or a loading script without data files.
        """
        if self._names_urls:
            return f"streamed from {self.data_files}, which is not looked up before"
        repository = self._repository()
        listing = lookup.listing(repository)
        data = [file for file in listing if file.filename.endswith(DATA_SUFFIXES) and file.filename not in _NO_DATA]
        if not data:
            if (reason := lookup.unreachable(repository)) is not None:
                raise UserError(reason)
            if self.fallback_files and self.revision is None:
                return f"its main branch holds no data files, so {self.fallback_files} is read"
            raise UserError(
                f"{repository.label}: it holds no data files ({', '.join(DATA_SUFFIXES[:5])}...), so it is a loading "
                "script, which is not run. Set dataset.revision=refs/convert/parquet, or choose another dataset."
            )
        lookup.file(repository, data[0].filename)
        total = sum(file.size or 0 for file in data)
        return f"streamed: only its beginning is read, of {len(data)} files with {total / 2**30:.1f} GiB"

    @property
    def _names_urls(self) -> bool:
        return self.data_files is not None and self.data_files.startswith("hf://")

    def _repository(self) -> Repository:
        return Repository(self.repo_id, self.revision, "dataset", ELSEWHERE)

    def _stream(self, facts: dict[str, str]) -> IterableDataset:
        """Open the stream at one commit; where the repository is still a loading script, `fallback_files`."""
        from datasets import load_dataset  # slow to import, and wanted only when the cache is cold

        if not self._names_urls:
            facts["commit"] = str(HfApi().dataset_info(self.repo_id, revision=self.revision).sha)
            options = {"split": self.split, "revision": facts["commit"], "streaming": True}
            if self.data_files:
                options["data_files"] = facts["files"] = self.data_files
            try:
                return load_dataset(self.repo_id, self.config_name, **options)
            except RuntimeError as error:
                if "script" not in str(error).lower() or not self.fallback_files or self.revision:
                    raise
                _log.warning(
                    "%s at commit %s is a loading script, which is not run; reading %s instead "
                    "(dataset.fallback_files)", self.repo_id, facts["commit"], self.fallback_files,
                )  # fmt: skip
        facts["files"] = str(self.data_files if self._names_urls else self.fallback_files)
        return load_dataset("parquet", data_files=facts["files"], split=self.split, streaming=True)

    def _explanation(self, error: Exception) -> str:
        revision = self.revision or "main"
        name = f"{self.repo_id}, configuration {self.config_name}, revision {revision}, split {self.split}"
        reason = type(error).__name__ + ("" if holds_token(error) else f": {error}".rstrip())
        advice = "Check dataset.config_name, dataset.split, dataset.data_files and dataset.revision."
        if "script" in reason.lower():
            advice = (
                "It is a loading script, and scripts are not run: set dataset.revision=refs/convert/parquet (the hub's "
                "own conversion, where there is one), or dataset.data_files to its parquet files."
            )
        return f"The hub dataset {name} cannot be read.\n{reason[:600]}\n{advice}"
