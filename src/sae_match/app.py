"""Console command `sae-match`: Hydra composes, `run` works, errors are printed on one screen."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.composition_guard import guarded_composition
from sae_match.config.schema import Config
from sae_match.dry_run import dry_run_arguments, in_a_new_record
from sae_match.errors import UserError
from sae_match.launchers import dead_job, missing_plugin
from sae_match.sweep import SweepConfigLoader, in_sweep, reported
from sae_match.terminal import is_completion_query, quiet_libraries

logger = logging.getLogger(__name__)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def job(cfg: DictConfig) -> float | None:
    """Hydra's task function: check, run, log the headline numbers."""
    quiet_libraries(cfg.progress)
    with in_sweep() as place:
        config = to_dataclass(cfg, Config)
        # Imported here so that --help, --cfg and mistyped keys do not wait for torch.
        from sae_match.experiment import run
        from sae_match.experiment.rerun import Action, decide
        from sae_match.sweep.progress import progress_line

        if config.dry_run:
            show_plan(config)
            return None
        decision = decide(config, place.sweep)
        place.record, place.action = decision.directory, decision.action
        place.note()
        if place.sweep is not None and decision.action is Action.run:
            logger.info("%s", progress_line(place.sweep, place.number))
        if decision.action is Action.report and place.sweep is None:
            raise UserError(f"rerun=none: there is no finished record of this job in {decision.directory}")
        if decision.action is not Action.run:
            return decision.metrics.get("matching_score")
        result = run(decision.cfg, group=None if place.sweep is None else place.sweep.name)
    logger.info("record: %s", result.directory)
    for name in result.labels.headlines:
        if name in result.metrics:
            logger.info("%-45s %.4f %s", name, result.metrics[name], result.labels.of_number(name).unit)
    return result.metrics.get("matching_score")


def show_plan(config: Config) -> None:
    """Print what the job would do.

    Raises:
        UserError: it could not start; the plan lists every reason.
    """
    from sae_match.experiment.plan import make_plan
    from sae_match.experiment.plan_text import render
    from sae_match.experiment.planned_time import durations

    plan = make_plan(in_a_new_record(config, sys.argv[1:]))
    print(render(plan, [] if plan.machine is None else durations(plan)), flush=True)
    if plan.problems:
        count = f"{len(plan.problems)} problem{'s' if len(plan.problems) > 1 else ''}"
        raise UserError(f"the job cannot start: {count}, listed at the end of its plan")


def main() -> None:
    """Entry point of `sae-match` and `python -m sae_match`."""
    register_schemas()
    with dry_run_arguments(sys.argv), reported():
        run_command(hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")(job))


def run_command(command: Callable[[], object]) -> None:
    """Run a Hydra command; a user's mistake becomes a short message and a non-zero exit code, without a traceback."""
    # With this set Hydra raises instead of printing a trimmed traceback, so that what is shown is decided here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with guarded_composition(SweepConfigLoader):
            command()
    except UserError as error:
        if is_completion_query(sys.argv):
            sys.exit(EXIT_USER_ERROR)
        fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        if is_completion_query(sys.argv):
            sys.exit(EXIT_USER_ERROR)
        cause = error.__cause__ or error.__context__
        if (advice := missing_plugin(str(error))) is not None:
            fail(advice)
        detail = f"\n{cause}" if isinstance(cause, OmegaConfBaseException | HydraException) else ""
        # Hydra advises to add unknown keys with +, which the schema then refuses.
        lines = [line for line in f"{error}{detail}".splitlines() if not line.startswith("To append to your config")]
        fail("\n".join(lines))
    except OSError as error:
        if error.filename is None:
            raise
        fail(
            f"{error.filename}: {error.strerror}. Choose other paths.output_dir, paths.cache_dir or working directory."
        )
    except Exception as error:
        if (advice := what_ended(error)) is None:
            raise
        fail(advice)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def what_ended(error: Exception) -> str | None:
    """What to do about an error that is nobody's mistake: memory that ran out, or a job's process that died."""
    # torch's own error is a RuntimeError; torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return out_of_memory(error)
    return dead_job(error)


def out_of_memory(error: BaseException) -> str:
    """What to do when memory ran out on the way."""
    detail = str(error).splitlines()[0] if str(error) else "out of memory"
    return (
        f"{detail}\nLower evaluation.batch_windows, shorten the layer span, or use device=cpu; finished work is kept."
    )


def fail(message: str) -> None:
    """Print an error and leave."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
