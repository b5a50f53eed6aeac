"""One Weights & Biases run per job, holding what the record on disk holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import wandb

from ..errors import UserError
from .comparison import comparison_table
from .curves import DISTANCE, LAYER, QUANTILE
from .factors import columns_of, flat_config
from .labels import Labels
from .metrics import Scalar, plain_metrics, undefined
from .mirror import Histogram, Mirror, NullMirror
from .pairs import tidy_pairs, undefined_rows
from .wandb_artifacts import log_permutations
from .wandb_settings import INIT_TIMEOUT_SECONDS, checked_tags, environment, is_disabled, setting, wandb_directories

log = logging.getLogger(__name__)

Mode = Literal["offline", "online", "none"]

PROJECT = "sae-match"
PREFIXES = {LAYER: "per_layer/", DISTANCE: "by_distance/", QUANTILE: "by_quantile/"}
"""Axis -> what the names of its curves begin with. Curves of one axis never share a panel with those of another."""
_BINS, _MAX_BINS = 64, 512


def open_mirror(directory: Path, *, mode: Mode, **options: Any) -> Mirror:
    """The mirror for a tracking mode: `WandbMirror(directory, mode=..., **options)`, or `NullMirror` for "none" and
    where WANDB_MODE=disabled.

    Raises:
        UserError: the mode is unknown, or an option is wrong.
    """
    if mode == "none" or is_disabled():
        return NullMirror()
    return WandbMirror(directory, mode=mode, **options)


class WandbMirror:
    """Context manager around one W&B run; see `Mirror` for the methods.

    Args:
        directory: the job's directory; the run goes to its `wandb/` folder.
        mode: "offline" (no network, no account; upload later with `wandb sync`) or "online".
        config: the resolved configuration as nested plain dicts; stored flat, factors at the top.
        cache_dir: where W&B's own cache goes.
        project, entity, group, tags: as in `wandb.init`. What is None or empty comes from W&B's variables
            (WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS).
        default_group: the group where neither says one.
        job_type, name: as in `wandb.init`; WANDB_JOB_TYPE and WANDB_NAME go before.
        run_id: a stable id. An earlier run of the same id is continued: its address stays, its content is replaced.
        appends: keep what an earlier online run of that id has logged, for jobs that go on where they stopped.

    Raises:
        UserError: a tag is too long, the mode is unknown; on entering, no run could be started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mode: Mode,
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
        if mode not in ("offline", "online"):
            raise UserError(f"tracking.mode={mode!r} is unknown; choose offline, online or none")
        self._directory, self._mode = Path(directory), mode
        self._environment = wandb_directories(self._directory, Path(cache_dir), mode)
        self._arguments: dict[str, Any] = {
            "project": setting(project, "WANDB_PROJECT", PROJECT),
            "entity": setting(entity, "WANDB_ENTITY"),
            "group": setting(group, "WANDB_RUN_GROUP", default_group),
            "job_type": setting(None, "WANDB_JOB_TYPE", job_type),
            "name": setting(None, "WANDB_NAME", name),
            "tags": checked_tags(tags),
            "id": run_id,
            "config": flat_config(config),
        }
        if appends and mode == "online":
            self._arguments["resume"] = "allow"
        self._config = dict(config)
        self._stack = ExitStack()
        self._run: wandb.Run | None = None

    # -- the run -----------------------------------------------------------------------------------------

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
                reinit="finish_previous",  # The default would merge the jobs of a sweep into one run.
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
                log.warning("closing the W&B run failed; `wandb sync %s` uploads it", folder, exc_info=True)

    # -- content -----------------------------------------------------------------------------------------

    def log_curves(self, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One step per place on an axis (`layer`, `distance` or `quantile`), which every row names and no two share."""
        places = [row.get(axis) for row in rows]
        kinds = (int, float, np.number) if axis == QUANTILE else (int, np.integer)
        if any(not isinstance(place, kinds) for place in places) or len(set(places)) != len(places):
            raise ValueError(f"rows of curves need distinct numbers of their axis {axis}, got {places}")
        steps = []
        for row in rows:
            numbers = {f"{PREFIXES[axis]}{name}": value for name, value in row.items() if name != axis}
            steps.append(_measured({axis: row[axis]}) | _measured(numbers))
        for step in steps:
            self.run.log(step)

    def log_pair_table(self, pairs: pd.DataFrame) -> None:
        """The whole pairs.csv as a table; empty cells allowed for low, high and n only."""
        table = tidy_pairs(pairs)
        if wrong := undefined_rows(table):
            raise ValueError(f"pair values that are not a number: {', '.join(wrong)}")
        cells: list[Any] = table.astype(object).where(table.notna(), None).values.tolist()
        self.run.log({"pairs": wandb.Table(columns=list(table.columns), data=cells)})

    def log_histograms(self, histograms: Mapping[str, np.ndarray | Histogram]) -> None:
        """Raw values (binned here, 64 bins) or ready histograms (at most 512 bins), by name."""
        binned = {f"histograms/{name}": _binned(name, data) for name, data in histograms.items()}
        if binned:
            self.run.log({name: wandb.Histogram(np_histogram=data) for name, data in binned.items()})

    def log_figures(self, paths: Sequence[Path]) -> None:
        """Image files, named by their stem."""
        stems = [path.stem for path in paths]
        if len(set(stems)) != len(stems):
            raise ValueError(f"figures share a name: {sorted(stems)}")
        if paths:
            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in paths})

    def log_comparison(self, numbers: Mapping[str, Any]) -> None:
        """The headline numbers as a table with the job's settings in every row: laid under those of other jobs it
        compares them."""
        table = comparison_table(columns_of(self._config), _measured(numbers))
        cells: list[Any] = table.astype(object).where(table.notna(), None).values.tolist()
        self.run.log({"comparison": wandb.Table(columns=list(table.columns), data=cells, allow_mixed_types=True)})

    def log_permutations(self, directory: Path) -> None:
        """Every safetensors file of a folder as one artifact, made from the SAEs that the files' headers name."""
        log_permutations(self.run, Path(directory), self._config)

    def log_labels(self, labels: Labels) -> None:
        """What the metrics are called, their units and which way is better, as a table."""
        cells: list[Any] = [[about.name, about.title, about.unit, about.better] for about in labels.metrics.values()]
        self.run.log({"labels": wandb.Table(columns=["metric", "label", "unit", "better"], data=cells)})

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


def _binned(name: str, data: np.ndarray | Histogram) -> Histogram:
    parts = data if isinstance(data, tuple) else (np.asarray(data),)
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(f"histogram {name}: not finite")
    counts, edges = data if isinstance(data, tuple) else np.histogram(data, bins=_BINS)
    if len(edges) != len(counts) + 1 or len(counts) > _MAX_BINS:
        raise ValueError(f"histogram {name}: {len(counts)} counts and {len(edges)} edges; at most {_MAX_BINS} bins")
    return counts, edges
