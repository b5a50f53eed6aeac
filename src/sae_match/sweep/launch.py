"""A sweep as the command sees it: its jobs leave notes, those side by side on a machine see different GPUs, and it ends
with a table, however it ends.

Hydra calls `on_multirun_end` only where no job has failed, so the table is printed by `report_on_exit`.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sae_match.dry_run import is_scratch
from sae_match.files import GIB
from sae_match.sweep import notes
from sae_match.terminal import fail

logger = logging.getLogger(__name__)

EXIT_FAILED_JOBS = 1
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_taken: list[FileLock] = []
"""The lock on this process's share of a GPU; a worker process keeps it from job to job."""


class _Launch(ExitStack):
    """What holds until the table of a launch is written.

    Attributes:
        directory: of its sweep; None = no sweep.
        left: the command ends before its jobs.
    """

    directory: Path | None = None
    left: bool = False


_launch: ContextVar[_Launch | None] = ContextVar("launch", default=None)


def leave_running() -> None:
    """From a launcher: the command ends while its jobs wait or run, so a job that is not done is no failure."""
    if (launch := _launch.get()) is not None:
        launch.left = True


class SweepCallback(Callback):
    """Called by Hydra in the launching process, with the place of the sweep and its jobs."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a launcher for a single job, which Hydra runs here without one."""
        if not str(config.hydra.launcher._target_).endswith(".BasicLauncher"):
            name = config.hydra.runtime.choices.get("launcher")
            # Hydra turns a callback's exceptions into warnings.
            fail(f"launcher={name} works with -m only (sae-match -m launcher={name} ...): without it the job runs here")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Begin the notes of a launch; those of an earlier one in the same directory go, its jobs' records stay."""
        from sae_match.record.termination import signals_raise  # not for --help: the package loads pandas

        directory = Path(str(config.hydra.sweep.dir)).absolute()
        if is_scratch(directory):
            return
        notes.begin(directory, planned_overrides(config))
        if (launch := _launch.get()) is not None:
            # Between two jobs, too, SIGTERM must leave time for the table.
            launch.enter_context(signals_raise(signal.SIGTERM))
            launch.directory = directory


def is_basic_sweeper(config: DictConfig) -> bool:
    """Whether the sweeper is Hydra's own, which only goes through the jobs and needs no values."""
    return str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def planned_overrides(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of a sweep, in order; empty where another sweeper than Hydra's own decides them."""
    sweeper = config.hydra.sweeper
    if not is_basic_sweeper(config):
        return []
    instance = GlobalHydra.instance()
    # The loader knows the options of a group, for `experiment=glob(fig*)`.
    parser = OverridesParser.create(instance.config_loader() if instance.is_initialized() else None)
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides([*given, *config.hydra.overrides.task]):
        key = override.get_key_element()
        swept = override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in itertools.product(*choices.values())]


def asked_of_slurm(device: str) -> dict[str, int | None] | None:
    """What the launcher of this process's job asks Slurm for: ram in bytes, cpus, gpus, minutes; None for others."""
    asked = HydraConfig.get().launcher
    if not str(asked._target_).endswith("slurm.SlurmLauncher"):
        return None
    ram = None if asked.mem_gb is None else int(asked.mem_gb * GIB)
    return {"ram": ram, "cpus": asked.cpus_per_task, "gpus": gpus(asked, device), "minutes": asked.timeout_min}


def gpus(asked: Mapping[str, Any], device: str) -> int:
    """GPUs of a job: as its launcher asks; null = one where the job's device is cuda."""
    given = asked["gpus_per_node"]
    return int(device.startswith("cuda")) if given is None else int(given)


@dataclass(frozen=True)
class CurrentJob:
    """The job that this process runs.

    Attributes:
        sweep: the directory of the sweep that it belongs to; None for a single job.
        number: its place in the sweep, from 0.
        overrides: what the sweep sets for it.
        beside_others: its launcher runs several jobs at a time on this machine.
    """

    sweep: Path | None
    number: int = 0
    overrides: tuple[str, ...] = ()
    beside_others: bool = False

    def note(self, record: Path, action: str) -> None:
        """Note for the sweep's table where the job's record is and what happens to it."""
        if self.sweep is not None and not is_scratch(self.sweep):
            notes.note_job(self.sweep, self.number, self.overrides, record, action)


@contextmanager
def current_job() -> Iterator[CurrentJob]:
    """Around one job. The traceback of what ends it goes to the job's log, also in a sweep, of which Hydra reports only
    the first failure, at the end."""
    config = HydraConfig.get()
    job = CurrentJob(None)
    if config.mode is RunMode.MULTIRUN:
        beside = str(config.launcher._target_).endswith((".JoblibLauncher", ".LocalLauncher"))
        place, overrides = Path(config.sweep.dir).absolute(), tuple(config.overrides.task)
        job = CurrentJob(place, int(config.job.num), overrides, beside)
    try:
        yield job
    except BaseException as error:
        _log_to_file(traceback.format_exc())
        if job.sweep is not None:
            told, how = f"{type(error).__name__}: {error}", f"failed: {error}"
            if isinstance(error, KeyboardInterrupt):
                told, how = "interrupted", "was interrupted"  # its message is empty
            elif isinstance(error, SystemExit):
                how = f"was told to end: {error}"
            logger.error("job %s %s", job.number, how)
            if not is_scratch(job.sweep):
                with suppress(OSError):
                    notes.note_error(job.sweep, job.number, job.overrides, told)
        raise


def _log_to_file(text: str) -> None:
    """Write to the job's log file and not to the terminal, where a short message is enough."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@contextmanager
def report_on_exit() -> Iterator[None]:
    """Around the whole command: a sweep that it launches ends with its table, printed and written, whatever happens,
    and with a non-zero exit code if a job is not done."""
    launch = _Launch()
    token = _launch.set(launch)
    done = False
    try:
        yield
    finally:
        with launch, suppress(OSError):
            done = launch.directory is None or _print_table(launch.directory, launch.left)
        _launch.reset(token)
    if not done:
        sys.exit(EXIT_FAILED_JOBS)


def _print_table(sweep: Path, left: bool) -> bool:
    """Write and print the table; whether all jobs are done, or (where the command has left them) none has failed."""
    from sae_match.report.records import BAD_STATES
    from sae_match.sweep.table import render, write_table

    rows = write_table(sweep)
    if all(row["action"] is None and row["error"] is None for row in rows):
        return False  # no job began: the configuration was refused, and that message has been printed
    print(f"\nsweep {sweep}\n{render(rows)}", flush=True)
    if left:
        print(f"To look again: the same command, or sae-match-report {sweep}", flush=True)
        return all(row["state"] not in BAD_STATES for row in rows)
    return all(row["state"] == "done" for row in rows)


def take_gpu(device: str) -> None:
    """Let this process see one GPU only, the one that fewest other processes have taken so, until it ends.

    To be called before CUDA is used. Nothing happens where the device is not `cuda` or `auto`, or there are not several
    GPUs.
    """
    if _taken or device not in ("cuda", "auto"):
        return
    gpus = _visible_gpus()
    if not gpus[1:]:
        return
    user = os.getuid() if hasattr(os, "getuid") else "gpus"
    folder = Path(tempfile.gettempdir()) / f"sae_match-gpus-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for share, gpu in ((share, gpu) for share in itertools.count() for gpu in gpus):
        lock = FileLock(folder / f"{gpu}.{share}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _taken.append(lock)
        os.environ[_VISIBLE] = gpu
        return


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]  # asks the driver without starting CUDA
