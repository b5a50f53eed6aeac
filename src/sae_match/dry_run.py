"""A dry run leaves nothing behind: Hydra's own folder of a job goes to a scratch directory that is removed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_match.study import Study

_ASKED = re.compile(r"^\+{0,2}dry_run=(true|yes|on|1)$", re.IGNORECASE)
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
_PREFIX = "sae_match_dry_run_"
_LAUNCHER = ("launcher=", "hydra/launcher=", "hydra.launcher.")
_SLURM = "launcher=submitit"


@contextmanager
def dry_run_arguments(arguments: list[str]) -> Iterator[None]:
    """Where the command line asks for a dry run, change it in place: Hydra writes into a scratch directory, and
    launches jobs in this process. (Slurm's launcher does so itself, and what it would ask for is part of the plan.)

    Hydra makes a job's folder, with its configuration and log, before the job knows that it is a dry run. A dry run
    that is switched on in a configuration file, not on the command line, leaves that folder.
    """
    if not any(_ASKED.match(argument) for argument in arguments[1:]):
        yield
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as scratch:
        if _SLURM not in arguments:
            # The plans are printed here: a plan that waits in a cluster's queue is none.
            arguments[1:] = [argument for argument in arguments[1:] if not argument.lstrip("+").startswith(_LAUNCHER)]
            arguments.append("launcher=local")
        # Of two values for one key Hydra takes the last.
        arguments += [f"{key}={scratch}" for key in _FOLDERS]
        yield


def is_scratch(directory: Path | str) -> bool:
    """Whether a directory lies in the scratch directory of a dry run."""
    return _PREFIX in str(directory)


def in_a_new_record(study: Study, arguments: list[str]) -> Study:
    """The study with the output directory that the real run would have, in place of the scratch directory."""
    parts = Path(study.paths.output_dir).parts
    scratch = next((place for place, part in enumerate(parts) if part.startswith(_PREFIX)), None)
    if scratch is None:
        return study
    job = parts[scratch + 1 :]  # a sweep's jobs have folders of their own
    pairs = (argument.partition("=") for argument in arguments)
    given = [value for key, _, value in pairs if key == _FOLDERS[bool(job)] and _PREFIX not in value]
    return study.at(Path(given[-1] if given else "multirun/<a new folder>").joinpath(*job))
