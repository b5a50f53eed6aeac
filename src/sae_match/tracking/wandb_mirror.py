"""One Weights & Biases run per job, holding what the record on disk holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import wandb

from sae_match.errors import UserError
from sae_match.record.configuration import columns_of, flat_config, run_id, science_of
from sae_match.record.contents import Scalar, plain_metrics, undefined
from sae_match.record.labels import Labels
from sae_match.record.pairs import DISTANCE, LAYER, QUANTILE
from sae_match.store import Store
from sae_match.study import Study
from sae_match.tracking import Tracking, TrackingMode

logger = logging.getLogger(__name__)

PROJECT = "sae-match"
MAX_TAG = 64
INIT_TIMEOUT_SECONDS = 30.0
PREFIXES = {LAYER: "per_layer/", DISTANCE: "by_distance/", QUANTILE: "by_quantile/"}
"""Axis -> what the names of its curves begin with. Curves of one axis never share a panel with those of another."""
BINS = 64


def open_mirror(
    directory: Path, tracking: Tracking, store: Store, **options: Any
) -> AbstractContextManager[WandbMirror | None]:
    """The W&B run that a configuration asks for; None for mode "none" and where WANDB_MODE=disabled.

    Args:
        options: further ones of `WandbMirror`.

    Raises:
        UserError: a tag of WANDB_TAGS is too long.
    """
    if tracking.mode is TrackingMode.none or os.environ.get("WANDB_MODE") == "disabled":
        return nullcontext()
    return WandbMirror(
        directory,
        mode="online" if tracking.mode is TrackingMode.online else "offline",
        cache_dir=store.scratch("wandb"),
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=tracking.tags,
        **options,
    )


def job_mirror(study: Study, store: Store, group: str | None) -> AbstractContextManager[WandbMirror | None]:
    """The W&B run of a job, beside its record.

    Args:
        group: the group where the configuration names none; a sweep passes its directory's name.
    """
    directory, layers = Path(study.paths.output_dir), study.layers
    names = "-".join(str(one.name) for one in (study.matching, study.folding, study.solver, study.sae, study.dataset))
    return open_mirror(
        directory,
        study.tracking,
        store,
        config=study.config if study.tracking.full else science_of(study.config),
        run_id=run_id(study.config, directory if group is None else directory.parent),
        default_group=group,
        name=f"{layers.first}-{layers.last}-{names}",
    )


class WandbMirror:
    """Context manager around one W&B run. What goes in comes from the record, which stays the truth.

    No method that takes numbers by name accepts a NaN or an infinite one: ValueError names it. None means "not
    measured" and is dropped.

    Args:
        directory: the job's directory; the run goes to its `wandb/` folder.
        mode: "offline" (no network, no account; upload later with `wandb sync`) or "online".
        config: the resolved configuration as nested plain dicts; stored flat, factors at the top.
        cache_dir: where W&B's own cache goes.
        project, entity, group, tags: as in `wandb.init`. What is None or empty comes from W&B's variables
            (WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS).
        default_group: the group where neither names one.
        job_type, name: as in `wandb.init`; WANDB_JOB_TYPE and WANDB_NAME go before.
        run_id: a stable id. An earlier run of the same id is continued: its address stays, its content is replaced.
        appends: keep what an earlier online run of that id has logged, for jobs that go on where they stopped.

    Raises:
        UserError: a tag is too long; on entering, no run could be started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mode: Literal["offline", "online"],
        config: Mapping[str, Any],
        cache_dir: Path,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        default_group: str | None = None,
        job_type: str = "match",
        name: str | None = None,
        tags: Sequence[str] = (),
        run_id: str | None = None,
        appends: bool = False,
    ) -> None:
        def variable(own: str) -> str | None:  # W&B itself reads its variables once per process
            return os.environ.get(own) or None

        self._directory, self._mode, self._columns = Path(directory), mode, columns_of(config)
        self._environment = wandb_directories(self._directory, Path(cache_dir), mode)
        self._arguments: dict[str, Any] = {
            "project": project or variable("WANDB_PROJECT") or PROJECT,
            "entity": entity or variable("WANDB_ENTITY"),
            "group": group or variable("WANDB_RUN_GROUP") or default_group,
            "job_type": variable("WANDB_JOB_TYPE") or job_type,
            "name": variable("WANDB_NAME") or name,
            "tags": checked_tags(tags),
            "id": run_id,
            "config": flat_config(config),
        }
        if appends and mode == "online":
            self._arguments["resume"] = "allow"
        self._stack = ExitStack()
        self._run: wandb.Run | None = None

    @property
    def run(self) -> wandb.Run:
        """The open run.

        Raises:
            RuntimeError: the mirror is not entered.
        """
        if self._run is None:
            raise RuntimeError("the W&B run is not open: use the mirror as a context manager")
        return self._run

    def __enter__(self) -> Self:
        # Weave would trace calls of language models; W&B advertises it where the judge's client is loaded.
        self._stack.enter_context(environment({**self._environment, "WANDB_DISABLE_WEAVE": "true"}))
        try:
            self._run = self._start()
            # summary="none": without it the last layer's number would pass for a headline number.
            for axis, prefix in PREFIXES.items():
                self._run.define_metric(axis, summary="none")
                self._run.define_metric(f"{prefix}*", step_metric=axis, summary="none")
        except BaseException:
            self.__exit__(RuntimeError, None, None)
            raise
        return self

    def _start(self) -> wandb.Run:
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # W&B would store a patch of uncommitted code; the record has the commit.
            save_code=False,
            init_timeout=INIT_TIMEOUT_SECONDS,
        )
        for folder in self._environment.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            # Asking first, without a prompt: in a sweep nobody is there to answer one.
            if self._mode == "online" and not wandb.login(prompt=False, verify=False):
                raise UserError(_ADVICE.format(reason="not logged in (`wandb login`), or WANDB_MODE is offline"))
            return wandb.init(
                dir=str(self._directory.resolve()),  # W&B's own process may have another working directory
                mode=self._mode,
                # A run of its own, beside one that a notebook may have open; the default would log into that one.
                reinit="create_new",
                settings=settings,
                **self._arguments,
            )
        except wandb.errors.Error as error:
            raise UserError(_ADVICE.format(reason=str(error).splitlines()[0])) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run, self._run = self._run, None
        with self._stack:
            if run is None:
                return
            try:
                run.finish(exit_code=_exit_code(error if error is not None else kind))
            except Exception:
                # The record is complete without W&B; losing the upload must neither fail the job nor
                # hide the error that ended it.
                folder = Path(run.dir).parent
                logger.warning("closing the W&B run failed; `wandb sync %s` uploads it", folder, exc_info=True)

    def log_curves(self, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One step per place on an axis (`layer`, `distance` or `quantile`), which every row names and no two share."""
        steps = []
        for row in rows:
            numbers = {f"{PREFIXES[axis]}{name}": value for name, value in row.items() if name != axis}
            steps.append(_measured({axis: row[axis]}) | _measured(numbers))
        for name in {name for step in steps for name in step if "." in name}:
            # A dot means a level of its own to W&B, which its patterns do not enter.
            self.run.define_metric(name.replace(".", "\\."), step_metric=axis, summary="none")
        for step in steps:
            self.run.log(step)

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """A table by name; missing cells stay empty."""
        cells: list[Any] = table.astype(object).where(table.notna(), None).values.tolist()
        self.run.log({name: wandb.Table(columns=list(table.columns), data=cells, allow_mixed_types=True)})

    def log_comparison(self, numbers: Mapping[str, Any]) -> None:
        """The headline numbers as a table with the job's settings in every row: laid under those of other jobs it
        compares them."""
        self.log_table("comparison", comparison_table(self._columns, _measured(numbers)))

    def log_labels(self, labels: Labels) -> None:
        """What the metrics are called, their units and which way is better, as a table."""
        rows = [(about.name, about.title, about.unit, about.better) for about in labels.metrics.values()]
        self.log_table("labels", pd.DataFrame(rows, columns=["metric", "label", "unit", "better"]))

    def log_histograms(self, histograms: Mapping[str, np.ndarray]) -> None:
        """Values in 64 bins each, by name."""
        for name, values in histograms.items():
            if not np.isfinite(values).all():
                raise ValueError(f"histogram {name}: not finite")
        binned = {name: np.histogram(values, bins=BINS) for name, values in histograms.items()}
        if binned:
            self.run.log({f"histograms/{name}": wandb.Histogram(np_histogram=data) for name, data in binned.items()})

    def log_figures(self, paths: Sequence[Path]) -> None:
        """Image files, named by their stem."""
        if paths:
            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in paths})

    def log_permutations(self, directory: Path) -> None:
        """Every safetensors file of a folder as the artifact `permutations-RUN_ID`.

        Raises:
            ValueError: there is none.
        """
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ValueError(f"no permutations in {directory}")
        artifact = wandb.Artifact(f"permutations-{self.run.id}", type="permutations", metadata=self._columns)
        for path in files:
            artifact.add_file(str(path), name=path.name)
        self.run.log_artifact(artifact)

    def note(self, text: str) -> None:
        """Add to the run's notes, below those of WANDB_NOTES."""
        self.run.notes = "\n".join(part for part in (self.run.notes, text) if part)

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Headline numbers; nothing but numbers, so that columns sort."""
        measured = _measured(numbers)
        if wrong := [name for name, value in measured.items() if isinstance(value, (str, bool))]:
            raise TypeError(f"a summary holds numbers only, and these are none: {', '.join(wrong)}")
        self.run.summary.update(measured)


_ADVICE = (
    "could not start an online W&B run: {reason}. "
    "Use tracking=wandb_offline (upload later with `wandb sync`) or tracking=none."
)


def comparison_table(settings: Mapping[str, Any], numbers: Mapping[str, Scalar]) -> pd.DataFrame:
    """One row per headline number: the settings, then `number` (its name), `value`, and `low` and `high` where it has
    an interval. The bounds have no rows of their own."""
    bounds = {f"{name}_{end}" for name in numbers for end in ("low", "high")}
    rows = [
        {**settings}
        | {"number": name, "value": value, "low": numbers.get(f"{name}_low"), "high": numbers.get(f"{name}_high")}
        for name, value in sorted(numbers.items())
        if name not in bounds
    ]
    return pd.DataFrame(rows, columns=[*settings, "number", "value", "low", "high"])


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags without repetition, in order; those of WANDB_TAGS (with commas between) where there are none.

    Raises:
        UserError: a tag is empty or longer than W&B's 64 characters.
    """
    tags = tags or [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    for tag in tags:
        if not 1 <= len(tag) <= MAX_TAG:
            raise UserError(f"tracking.tags: {tag!r} has {len(tag)} characters; W&B allows 1 to {MAX_TAG}. Shorten it.")
    return tuple(dict.fromkeys(tags))


def wandb_directories(job: Path, cache: Path, mode: str) -> dict[str, str]:
    """W&B's directory variables for one run.

    Artifact staging (WANDB_DATA_DIR) belongs to the job: a later `wandb sync` of an offline run reads
    the staged files, so they must live as long as the run and not in a cache that may be cleared. The
    configuration folder is left alone online: it names the server that `wandb login --host` chose.
    """
    folders = {"WANDB_DATA_DIR": job / "wandb" / "staging", "WANDB_CACHE_DIR": cache / "wandb"}
    if mode == "offline":
        folders["WANDB_CONFIG_DIR"] = cache / "wandb" / "config"
    return {name: str(folder.resolve()) for name, folder in folders.items()}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block, then restore what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _exit_code(ending: BaseException | type[BaseException] | None) -> int:
    """What the process would exit with: 0, the code of a SystemExit (143 after SIGTERM), 130 after Ctrl-C, else 1."""
    if ending is None:
        return 0
    if isinstance(ending, SystemExit) and isinstance(ending.code, int) and ending.code > 0:
        return ending.code
    return 130 if isinstance(ending, KeyboardInterrupt) else 1


def _measured(numbers: Mapping[str, Any]) -> dict[str, Scalar]:
    """Plain scalars without None.

    Raises:
        ValueError: a number is NaN or infinite (W&B would store it in silence).
    """
    if wrong := undefined(numbers):
        raise ValueError(f"not finite, and so not logged: {', '.join(wrong)}")
    return {name: value for name, value in plain_metrics(numbers).items() if value is not None}
