"""Console command `sae-match`: Hydra composes, `run` works, errors are printed on one screen."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sae_match.app.build import build, register_schemas
from sae_match.app.errors import did_you_mean, explain_crash, explain_hydra_error
from sae_match.app.trust import check_trust
from sae_match.dry_run import dry_run_arguments, in_a_new_record
from sae_match.errors import UserError
from sae_match.files import config_directory
from sae_match.rules import check_values
from sae_match.study import Study
from sae_match.sweep import asked_of_slurm, current_job, report_on_exit
from sae_match.sweep.launch import take_gpu
from sae_match.terminal import EXIT_UNREAD, OncePerSweep, fail, quiet_libraries, quiet_when_unread

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


@quiet_when_unread
def main() -> None:
    """Entry point of `sae-match` and `python -m sae_match`."""
    OncePerSweep.shown.clear()
    register_schemas()
    with dry_run_arguments(sys.argv), report_on_exit():
        run_command(hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")(job))


def job(cfg: DictConfig) -> float | None:
    """Hydra's task function: check, run, log the headline numbers.

    Returns:
        The number that `objective` names, for sweepers that optimize; None where it names none and there is no
        matching score.

    Raises:
        UserError: the job has no number of that name.
    """
    quiet_libraries(cfg.progress)
    with current_job() as place:
        if place.beside_others:
            take_gpu(str(cfg.device))

        def check(values: DictConfig) -> None:
            if not values.dry_run:  # which lists every problem: for that the classes are needed
                check_values(values)
            check_trust(cfg)  # imports them

        config = build(cfg, Study, check)
        # Imported here so that --help, --cfg and mistyped keys do not wait for torch.
        from sae_match.experiment import run
        from sae_match.experiment.headline import summary_lines
        from sae_match.experiment.rerun import Action, decide
        from sae_match.record.claim import RecordTakenError
        from sae_match.record.job import logged_into
        from sae_match.sweep.notes import progress_line

        if config.dry_run:
            show_plan(config, in_sweep=place.sweep is not None)
            return None
        decision = decide(config, place.sweep)
        place.note(decision.directory, decision.action)
        if place.sweep is not None and decision.action is Action.run:
            logger.info("%s", progress_line(place.sweep, place.number))
        if decision.action is Action.report and place.sweep is None:
            raise UserError(f"rerun=none: there is no finished record of this job in {decision.directory}")
        if decision.action is not Action.run:
            return returned(decision.metrics, config.objective) if decision.action is Action.skip else None
        try:
            result = run(decision.study, key=decision.key, group=None if place.sweep is None else place.sweep.name)
        except RecordTakenError as error:
            if place.sweep is None:
                raise
            logger.warning("%s It is left to that process", error)
            place.note(decision.directory, Action.report)
            return None
    with logged_into(result.directory):
        logger.info("record: %s", result.directory)
        for line in summary_lines(result.metrics, result.labels):
            logger.info("%s", line)
    return returned(result.metrics, config.objective)


def returned(metrics: Mapping[str, float], objective: str | None) -> float | None:
    """The number of metrics.json that the job returns; None where none is named and there is no matching score.

    Raises:
        UserError: none has that name.
    """
    if objective is not None and objective not in metrics:
        raise UserError(f"objective={objective}: no number of metrics.json{did_you_mean(objective, metrics)}")
    return metrics.get(objective or "matching_score")


@quiet_when_unread
def show_plan(config: Study, *, in_sweep: bool = False) -> None:
    """Print what the job would do, in the directory in which the real run would do it.

    Raises:
        UserError: it could not start; the plan lists every reason.
    """
    from sae_match.experiment.rerun import decide
    from sae_match.plan import make_plan
    from sae_match.plan.allocation import Allocation
    from sae_match.plan.checks import collect_errors
    from sae_match.plan.show import render
    from sae_match.record.configuration import science_hash
    from sae_match.record.job import check_place
    from sae_match.store import Store

    config = in_a_new_record(config, sys.argv[1:])
    output = Path(config.paths.output_dir)
    if output.is_dir():  # of earlier jobs, perhaps this one's
        config = decide(config, output.parent if in_sweep else None).study
    limits = asked_of_slurm(config.device)
    plan = make_plan(
        config, Store(config.paths.cache_dir), None if limits is None else Allocation(**limits, asked=True)
    )
    with collect_errors(plan.problems):
        check_place(Path(config.paths.output_dir), science_hash(config.config))
    try:
        print(render(plan, configuration=not in_sweep), flush=True)
    except BrokenPipeError:
        sys.exit(EXIT_UNREAD)  # an exit is no error, of which Hydra would write a line
    if plan.problems:
        count = f"{len(plan.problems)} problem{'s' if len(plan.problems) > 1 else ''}"
        raise UserError(f"the job cannot start: {count}, listed at the end of its plan")


def run_command(command: Callable[[], object]) -> None:
    """Run a Hydra command; a user's mistake becomes a short message and a non-zero exit code, without a traceback."""
    # With this set Hydra raises instead of printing a trimmed traceback, so that what is shown is decided here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        command()
    except UserError as error:
        fail(str(error))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(explain_hydra_error(error))
    except OSError as error:
        if error.filename is None:
            raise
        fail(
            f"{error.filename}: {error.strerror}. Choose other paths.output_dir, paths.cache_dir or working directory."
        )
    except Exception as error:
        if (advice := explain_crash(error)) is None:
            raise
        fail(advice)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; the same command in the same directory goes on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
