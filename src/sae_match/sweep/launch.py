"""A sweep as the command sees it: its jobs leave notes, and it ends with a table, however it ends.

Hydra 1.3 shows the first failure only and skips its own callbacks after one; `reported` does not depend on them.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sae_match.config.composition_guard import GuardedConfigLoader
from sae_match.dry_run import is_scratch

logger = logging.getLogger(__name__)

EXIT_FAILED_JOBS = 1

# What is heavier than Hydra is imported where it is needed: --help must not wait for pandas.


class _Launch:
    """The sweep that this process launches, if it does."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.stack = ExitStack()


_launch = _Launch()


class SweepCallback(Callback):
    """Hydra tells the launching process where a sweep goes, and which jobs it has."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Begin the notes of a launch; those of an earlier one in the same directory go, its jobs' records stay."""
        from sae_match.record.termination import sigterm_raises
        from sae_match.sweep.notes import begin

        directory = Path(str(config.hydra.sweep.dir)).absolute()
        if is_scratch(directory):
            return
        # Between two jobs, too, SIGTERM must leave time for the table.
        _launch.stack.enter_context(sigterm_raises())
        begin(directory, planned_overrides(config))
        _launch.directory = directory


class SweepConfigLoader(GuardedConfigLoader):
    """The guarded loader; what it refuses of a job in a process of the job's own goes into the sweep's table."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra's."""
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        except Exception as error:
            if _launch.directory is None:  # the launching process says it itself
                from sae_match.sweep.notes import note_refused

                sweep = Path(str(master_config.hydra.sweep.dir)).absolute()
                with suppress(OSError):
                    note_refused(sweep, sweep_overrides, f"{type(error).__name__}: {error}")
            raise


def planned_overrides(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of a sweep, in order; empty where another sweeper than Hydra's own decides them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return []
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parsed = OverridesParser.create(_loader()).parse_overrides([*given, *config.hydra.overrides.task])
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _loader() -> ConfigLoader | None:
    """What knows the options of a group, for `experiment=glob(fig*)`."""
    return GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None


@dataclass
class Place:
    """Where a job stands: in a sweep, or alone (then `sweep` is None).

    Attributes:
        sweep: the sweep's directory.
        number: the job's place in it.
        record: the job's record, as far as it is known.
        action: what happens to it (`experiment.rerun.Action`).
    """

    sweep: Path | None
    number: int = 0
    overrides: tuple[str, ...] = ()
    record: Path | None = None
    action: str | None = None

    def note(self, error: BaseException | None = None) -> None:
        """Leave a note for the sweep's table."""
        if self.sweep is None or is_scratch(self.sweep):
            return
        from sae_match.sweep.notes import note_job

        message = None if error is None else f"{type(error).__name__}: {error}"
        note_job(self.sweep, self.number, self.overrides, self.record, self.action, message)


@contextmanager
def in_sweep() -> Iterator[Place]:
    """Around one job: where it stands; its own log gets the traceback of whatever ends it, also in a sweep, of which
    Hydra reports only the first failure, at the end."""
    config = HydraConfig.get()
    place = Place(None)
    if config.mode is RunMode.MULTIRUN:
        place = Place(Path(config.sweep.dir).absolute(), int(config.job.num), tuple(config.overrides.task))
    try:
        yield place
    except BaseException as error:
        log_to_file(traceback.format_exc())
        if place.sweep is not None:
            logger.error("job %s failed: %s", place.number, error)
            with suppress(OSError):
                place.note(error)
        raise


def log_to_file(text: str) -> None:
    """Write to the job's log file and not to the terminal, where a short message says enough."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@contextmanager
def reported() -> Iterator[None]:
    """Around the whole command: if it launched a sweep, that ends with its table, printed and written, whatever
    happened, and with a non-zero exit code if a job is not done."""
    with _launch.stack:
        try:
            yield
        except Exception:
            if _launch.directory is None:
                raise
            # Hydra raises the first failed job's error.
            traceback.print_exc()
            _report()
            sys.exit(EXIT_FAILED_JOBS)
        except BaseException:
            with suppress(OSError):
                _report()
            raise
        if not _report():
            sys.exit(EXIT_FAILED_JOBS)


def _report() -> bool:
    """Print and write the table; whether all jobs are done."""
    if _launch.directory is None:
        return True
    from sae_match.sweep.table import render, write_table

    rows = write_table(_launch.directory)
    if all(row["action"] is None and row["error"] is None for row in rows):
        return False  # no job began: the configuration was refused, and that has been said
    print(f"\nsweep {_launch.directory}\n{render(rows)}", flush=True)
    return all(row["state"] == "done" for row in rows)
