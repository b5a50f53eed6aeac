"""The jobs of a sweep as a Slurm array: Hydra's submitit launcher, which tells what the cluster does to its jobs as it
is, waits for all of them (or none), and leaves later batches their turn where a job has failed.

It needs the extra [slurm]; submitit is imported where it is used, since Hydra imports this module on every start.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher

from sae_match.errors import UserError
from sae_match.sweep import notes
from sae_match.sweep.launch import gpus, is_basic_sweeper, leave_running

logger = logging.getLogger(__name__)

OWN_KEYS = {"submitit_folder", "max_num_timeout", "wait"}
"""Keys of the launcher that are no options of sbatch."""
POLL_S = (2.0, 30.0)
"""Shortest and longest time between two questions to Slurm."""
ADVICE = {
    "partition": "hydra.launcher.partition (sinfo lists them)",
    "account": "hydra.launcher.account",
    "qos": "hydra.launcher.qos",
    "gres|gpu|node configuration": "hydra.launcher.partition, gpus_per_node, cpus_per_task and mem_gb, to fit one node",
    "memory": "hydra.launcher.mem_gb",
    "time limit": "hydra.launcher.timeout_min",
    "array|submit limit|too many": "hydra.sweeper.max_batch_size=N, which submits the jobs in arrays of N",
}
"""What sbatch's message names -> keys to change."""


@dataclass
class SlurmConf(SlurmQueueConf):
    """The keys of Hydra's submitit launcher, and `wait`: whether the command waits for its jobs."""

    _target_: str = "hydra_plugins.sae_match_slurm.SlurmLauncher"
    wait: bool = True


ConfigStore.instance().store(group="hydra/launcher", name="sae_match_slurm", node=SlurmConf(), provider="sae_match")


class SlurmLauncher(SubmititLauncher):
    """Submits, waits and reports in the launching process; runs one job in each task of the array."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit an array of the jobs that an earlier launch of the same sweep has not in Slurm's queue.

        Raises:
            UserError: a setting cannot work, or Slurm refuses the array, in its own words.
        """
        assert self.config is not None and self.hydra_context is not None and self.task_function is not None
        if self.config.dry_run:  # the plans are printed here: one that waits in a cluster's queue is none
            here = BasicLauncher()
            here.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
            return here.launch(job_overrides, initial_job_idx)
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        basic = is_basic_sweeper(self.config)
        check_settings(self.params, sweep, basic)
        jobs = self._submit(sweep, dict(enumerate(map(list, job_overrides), start=initial_job_idx)))
        if not self.params["wait"]:
            leave_running()
        else:
            try:
                wait_for(jobs)
            except BaseException:
                arrays = " ".join(sorted({job.job_id.partition("_")[0] for job in jobs.values()}))
                logger.warning("the jobs go on without this command; to end them: scancel %s", arrays)
                raise
        if not basic:  # it needs the values, and decides what a failure means
            return [jobs[number].results()[0] for number in sorted(jobs)]
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]  # the sweep's table and exit code tell failures

    def _submit(self, sweep: Path, jobs: Mapping[int, list[str]]) -> dict[int, Any]:
        """Submitit's jobs by number."""
        import submitit
        from submitit.core.utils import FailedJobError

        folder = Path(self.params["submitit_folder"])
        known = {n: name for n in jobs if (name := notes.in_queue(sweep, n, jobs[n])) is not None}
        found: dict[int, Any] = {n: submitit.SlurmJob(folder, name) for n, name in known.items()}
        if known:
            logger.info("%d jobs of an earlier launch are in Slurm's queue, and are left there", len(known))
        new = [n for n in jobs if n not in known]
        if not new:
            return found
        fresh = not folder.parent.exists()
        sweep.mkdir(parents=True, exist_ok=True)
        state = Singleton.get_state()
        calls = [(jobs[n], "hydra.sweep.dir", n, f"job_id_for_{n}", state) for n in new]
        try:
            with outside_of_allocations():
                submitted = self._executor(folder).map_array(self, *zip(*calls, strict=True))
        except FailedJobError as error:
            if fresh:
                shutil.rmtree(folder.parent, ignore_errors=True)
            raise UserError(refusal(str(error))) from None
        found |= dict(zip(new, submitted, strict=True))
        notes.note_submitted(sweep, {n: (job.job_id, jobs[n]) for n, job in found.items()})
        number = submitted[0].job_id.partition("_")[0]
        logger.info(
            "Slurm's job %s: %d of the sweep's jobs. squeue --jobs=%s shows them, scancel %s ends them; logs: %s",
            number, len(new), number, number, folder.parent / (f"{number}_*" if len(new) > 1 else number),
        )  # fmt: skip
        return found

    def _executor(self, folder: Path) -> Any:
        import submitit

        assert self.config is not None
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"])
        common = set(BaseQueueConf.__dataclass_fields__)
        given = {key: value for key, value in self.params.items() if key not in OWN_KEYS}
        given["gpus_per_node"] = gpus(given, str(self.config.device))
        executor.update_parameters(**{key if key in common else f"slurm_{key}": given[key] for key in given})
        return executor

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """Run a job, in a task of the array. Slurm learns of a failure by the exit code.

        A signal only raises: what submitit does on one (count, ask Slurm to start the job again, log) is done when the
        job has written its record, not inside of the handler.
        """
        from sae_match.record.termination import Terminated, signals_raise

        requeue: Any = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        try:
            with signals_raise(signal.SIGTERM, signal.SIGUSR2):
                result = super().__call__(*args, **kwargs)
        except Terminated as error:
            if error.signum == signal.SIGUSR2:
                requeue(signal.SIGUSR2, None)
            raise
        _ = result.return_value  # raises what has ended the job
        return result


def check_settings(params: Mapping[str, Any], sweep: Path, basic: bool) -> None:
    """Refuse settings that cannot work.

    Args:
        params: of the launcher.
        basic: the sweeper is Hydra's own.

    Raises:
        UserError: naming the key.
    """
    problems = []
    if (params["nodes"], params["tasks_per_node"]) != (1, 1):
        problems.append("hydra.launcher.nodes and tasks_per_node must be 1: a job is one process")
    if params["timeout_min"] * 60 <= params["signal_delay_s"]:
        problems.append(
            f"hydra.launcher.timeout_min={params['timeout_min']}: jobs are told to end "
            f"hydra.launcher.signal_delay_s={params['signal_delay_s']} s before the limit, which is at once"
        )
    if not params["wait"] and not basic:
        problems.append("hydra.launcher.wait=false: the sweeper needs the jobs' results")
    if "%" in str(sweep):
        problems.append(f"hydra.sweep.dir={sweep}: sbatch takes % in a path for a placeholder")
    if problems:
        raise UserError("\n".join(problems))


def refusal(message: str) -> str:
    """What Slurm says about an array that it refuses, and which keys to change."""
    keys = [advice for pattern, advice in ADVICE.items() if re.search(pattern, message, re.IGNORECASE)]
    return f"Slurm refused the jobs: {message.strip()}\nTo change: {'; '.join(keys) or 'a key of hydra.launcher'}"


@contextmanager
def outside_of_allocations() -> Iterator[None]:
    """Hide the variables of a Slurm job that this process runs in: sbatch would take them for settings of new jobs."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def wait_for(jobs: Mapping[int, Any]) -> None:
    """Return when Slurm says that every job is over; where it cannot be asked, when every job has left a result.

    A job that Slurm starts again (after a requeue, a preemption, the end of a node) is not over.
    """
    from sae_match.record.slurm import job_state

    began, left = time.monotonic(), list(jobs.values())
    while left:
        shortest, longest = POLL_S
        time.sleep(min(longest, max(shortest, (time.monotonic() - began) / 20)))
        states = {job.job_id: job_state(job.job_id) for job in left}
        left = [job for job in left if not _is_over(job, states[job.job_id])]


def _is_over(job: Any, state: Any) -> bool:
    return bool(job.paths.result_pickle.exists()) if state is None else state.ended
