"""The record of one job: everything it leaves on disk, written atomically as it goes along."""

from __future__ import annotations

import json
import logging
import re
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from sae_match.files import atomic_path, check_writable, write_json, write_text

from ..errors import UserError
from ..metrics.bootstrap import DocumentSums
from .claim import STALE_S, Claim, RecordTakenError, claim, heartbeat, newest_claim, owns, release, this_process
from .configuration import science_hash
from .contents import (
    CONFIG,
    EXAMPLES,
    FIGURES,
    FLOW,
    FUNCTIONAL,
    JUDGEMENTS,
    MATCHERS,
    METRICS,
    PAIRS,
    PERMUTATIONS,
    RESULTS,
    STEERING,
    STEERING_EXAMPLES,
    TEXT,
    TRACEBACK,
    plain_metrics,
    refuse_foreign_files,
    undefined,
)
from .documents import DOCUMENTS, SumsKey, write_documents
from .labels import LABELS, Labels
from .pairs import undefined_rows, write_pairs
from .provenance import git_state, versions
from .state import STATUS, refuse_other_job
from .termination import signals_raise

LOG = "sae_match.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # as in conf/hydra/job_logging/sae_match.yaml

log = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "killed"]


class JobRecord:
    """The directory of one job.

    Typical use:

        record = JobRecord(directory)
        record.write_config(yaml_text)
        with record.guard():
            ...
            record.write_metrics({...})

    Args:
        directory: where the job writes; `write_config` and `guard` create it.

    Attributes:
        key: content key of configuration and inputs, stored in status.json; None where it is not known (yet).
        science: hash of the scientific configuration, which `write_config` finds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.key: str | None = None
        self.science = ""
        self._status: dict[str, Any] = {}
        self._claimed = False
        self._clock = time.monotonic()

    # -- state -------------------------------------------------------------------------------------------

    def write_config(self, yaml_text: str) -> None:
        """Store the resolved configuration as config.yaml.

        Raises:
            UserError: the directory holds files but no record, or the finished record of another configuration.
            RecordTakenError: another process is writing there.
        """
        self.science = science_hash(yaml.safe_load(yaml_text))
        self._claim()
        try:
            refuse_other_job(self.directory, self.science)
            write_text(self.directory / CONFIG, yaml_text)
        except BaseException:
            self._claimed = False
            release(self.directory)
            raise

    def _claim(self) -> None:
        """Take the directory, so that no other process writes into it until `guard` ends.

        Raises:
            RecordTakenError: another one has it.
            UserError: it cannot be created or written to, or holds files that no record vouches for.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            refuse_foreign_files(self.directory)
            held = claim(self.directory)
        except OSError as error:
            raise UserError(
                f"cannot write to the output directory {self.directory}: {error.strerror or error}. "
                "Choose another directory with paths.output_dir=DIR."
            ) from error
        if held is not None:
            raise self._taken(held, "Wait for it, or choose another paths.output_dir.")
        self._claimed = True

    def _taken(self, held: Claim | None, advice: str) -> RecordTakenError:
        holder, age = ({}, None) if held is None else (held.holder, held.age())
        limit = f"on another host it counts as dead after {STALE_S:.0f} s"
        seen = "" if age is None else f" (last heartbeat {age:.0f} s ago; {limit})"
        process = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        return RecordTakenError(f"{self.directory}: {process} is running a job there{seen}. {advice}")

    def _file(self, name: str) -> Path:
        """A path to write to.

        Raises:
            RecordTakenError: this process was taken for dead, and the record is another's by now.
        """
        if self._claimed and not owns(self.directory):
            raise self._taken(newest_claim(self.directory), "It took this process for dead, which now ends.")
        return self.directory / name

    def running(self) -> None:
        """Mark the job as started; results of an earlier attempt stay until `clear_results`."""
        self._clock = time.monotonic()
        git = git_state()
        self._write_status(
            {
                "state": "running",
                "error": None,
                "warnings": [],
                "started": _now(),
                "ended": None,
                "seconds": None,
                "key": self.key,
                "science": self.science,
                "process": this_process(),
                "versions": versions(),
                "git_sha": git.sha,
                "git_dirty": git.dirty,
            }
        )

    def finish(self, state: State, error: BaseException | None = None) -> None:
        """Write the job's final state, its duration, and the error's type and message if there is one."""
        described = None if error is None else {"type": type(error).__name__, "message": str(error)}
        seconds = round(time.monotonic() - self._clock, 3)
        ended = {"state": state, "error": described, "ended": _now(), "seconds": seconds, "key": self.key}
        self._write_status(self._status | ended)

    def warn(self, warnings: Sequence[str]) -> None:
        """Add what a reader of the results must know to status.json, inside `guard`."""
        self._write_status(self._status | {"warnings": [*self._status["warnings"], *warnings]})

    def _write_status(self, status: dict[str, Any]) -> None:
        path = self._file(STATUS)
        self._status = status
        write_json(path, status)

    @contextmanager
    def guard(self) -> Iterator[JobRecord]:
        """Mark the job as running; at the end as done, or on any exception as failed (killed where it
        was interrupted, told to exit, or sent SIGTERM) with its traceback in error.log. Messages go to sae_match.log.
        The exception goes on. `finish` may be called inside to end in another state without raising."""
        if not self._claimed:
            self._claim()
        with logged_into(self.directory), signals_raise(signal.SIGTERM), heartbeat(self.directory):
            try:
                self.running()
                yield self
                if self._status["state"] == "running":
                    self.finish("done")
            except BaseException as error:
                self._file(STATUS)  # raises where the record is another's by now
                if self._status.get("state") != "done":  # else a signal came after the end
                    self._record_failure(error)
                raise
            finally:
                self._claimed = False  # `heartbeat` releases it

    def _record_failure(self, error: BaseException) -> None:
        try:
            write_text(self._file(TRACEBACK), "".join(traceback.format_exception(error)))
            self.finish("killed" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed", error)
        except OSError:
            # The job's own error is the one worth raising; a full disk must not hide it.
            log.exception("could not record the failure in %s", self.directory)

    # -- results -----------------------------------------------------------------------------------------

    def write_metrics(self, metrics: Mapping[str, object]) -> None:
        """Write metrics.json: flat, sorted. None stands for "not measured" and is stored as null.

        Raises:
            TypeError: a value is not a scalar.
            ValueError: a value is NaN or infinite. The file is written all the same, with null in their
                place: a number that went wrong is an error, but does not take the others with it.
        """
        wrong = undefined(metrics)
        plain = plain_metrics({name: None if name in wrong else value for name, value in metrics.items()})
        write_json(self._file(METRICS), plain)
        if wrong:
            raise ValueError(f"metrics that are not finite (stored as null in {METRICS}): {', '.join(wrong)}")

    def write_pairs(self, pairs: pd.DataFrame) -> None:
        """Write pairs.csv (columns: `record.pairs.PAIR_COLUMNS`), floats in full precision.

        Raises:
            ValueError: the table breaks the contract, or a value is NaN (an empty cell in the file,
                which is written all the same).
        """
        write_pairs(self._file(PAIRS), pairs)
        if wrong := undefined_rows(pairs):
            raise ValueError(f"pair values that are not a number (empty in {PAIRS}): {', '.join(wrong)}")

    def write_labels(self, labels: Labels) -> None:
        """Write labels.json: what metrics and variants are called and how they are shown."""
        write_json(self._file(LABELS), labels.as_json())

    def write_text(self, facts: Mapping[str, object]) -> None:
        """Write text.json: which documents and windows were evaluated."""
        write_json(self._file(TEXT), facts)

    def write_documents(self, sums: Mapping[SumsKey, DocumentSums]) -> None:
        """Write documents.parquet: the sums behind each averaged metric, per document."""
        write_documents(self._file(DOCUMENTS), sums)

    def add_judgements(self, judgements: Sequence[Mapping[str, object]]) -> None:
        """Add to judgements.jsonl, one JSON object per judged pair.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        lines = [json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in judgements]
        with self._file(JUDGEMENTS).open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(lines))

    def write_examples(self, examples: pd.DataFrame) -> None:
        """Write example_pairs.csv: the best, worst and most surprising pairs, with the contexts of their features."""
        with atomic_path(self._file(EXAMPLES)) as temporary:
            examples.to_csv(temporary, index=False, lineterminator="\n")

    def write_functional(self, effects: pd.DataFrame, matchers: Mapping[str, Mapping[str, str]]) -> None:
        """Write functional.parquet, one row per pair, matcher and tested feature, and matchers.json: what each is."""
        self.write_table(FUNCTIONAL, effects)
        write_json(self._file(MATCHERS), matchers)

    def write_steering(self, effects: pd.DataFrame, examples: Sequence[Mapping[str, object]]) -> None:
        """Write steering.parquet, one row per flow, scale and layer, and steering_examples.json: continuations."""
        self.write_table(STEERING, effects)
        write_json(self._file(STEERING_EXAMPLES), examples)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a Parquet file of the record, one of those that `contents` names."""
        with atomic_path(self._file(name)) as temporary:
            table.to_parquet(temporary, index=False, compression="zstd")

    def figure_path(self, name: str) -> Path:
        """Path of figures/`name`.png; the folder exists.

        Raises:
            ValueError: the name is not a plain file name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"figure name {name!r}: use letters, digits, '.', '_' and '-'")
        return self._folder(FIGURES) / f"{name.removesuffix('.png')}.png"

    def permutation_path(self, a: int, b: int) -> Path:
        """Path of the permutation from layer `a` to layer `b`; the folder exists."""
        return self.permutations / f"layer_{a:02d}_to_{b:02d}.safetensors"

    @property
    def flow(self) -> Path:
        """The folder of the flow graph; it exists."""
        return self._folder(FLOW)

    @property
    def permutations(self) -> Path:
        """The folder of permutations; it exists."""
        return self._folder(PERMUTATIONS)

    def _folder(self, name: str) -> Path:
        folder = self._file(name)
        folder.mkdir(exist_ok=True)
        return folder

    def clear_results(self) -> None:
        """Remove what an earlier attempt left in this directory, so that a record never mixes two attempts.

        To be called when the new attempt's input has been checked: until then the old results stay.
        """
        self._file(STATUS)  # only while it is this process's
        # Only names that a record writes: the directory may hold logs and W&B runs beside them.
        results = [self.directory / name for name in RESULTS]
        results += (self.directory / PERMUTATIONS).glob("layer_*_to_*.safetensors")
        results += (self.directory / FIGURES).glob("*.png")
        # What a killed attempt was writing; see `atomic_path`.
        for folder in (self.directory, self.directory / PERMUTATIONS, self.directory / FIGURES, self.directory / FLOW):
            results += folder.glob(".*.tmp*")
        for path in results:
            path.unlink(missing_ok=True)


def check_place(directory: Path, science: str) -> None:
    """What `JobRecord` refuses, before there is one: a directory that cannot be written to, or is another job's or the
    user's own. Nothing is written.

    Args:
        science: as `JobRecord.science`.

    Raises:
        UserError: naming the directory.
    """
    check_writable(directory, "paths.output_dir", create=False)
    refuse_foreign_files(directory)
    refuse_other_job(directory, science)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def logged_into(directory: Path) -> Iterator[None]:
    """Add what is logged inside the block to sae_match.log in `directory`, unless the command's own log is that file:
    Hydra's is in hydra.run.dir, and paths.output_dir may be another directory."""
    path, root = directory / LOG, logging.getLogger()
    if any(isinstance(own, logging.FileHandler) and Path(own.baseFilename) == path.absolute() for own in root.handlers):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
