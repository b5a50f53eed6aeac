"""What Hydra's launcher plugins leave unsaid: which package is missing, and what it means when a job's process dies."""

from __future__ import annotations

import re

_EXTRA_OF = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
"""Hydra's launcher -> the optional dependencies of this package that bring it."""
_MISSING = re.compile(r"Could not find 'hydra/launcher/(\w+)'")
_DIED = ("TerminatedWorkerError", "BrokenProcessPool")
_UNCOMPLETED = ("UncompletedJobError", "FailedJobError")


def missing_plugin(message: str) -> str | None:
    """What to install, where Hydra's error says that it does not know a launcher; None for any other error."""
    found = _MISSING.search(message)
    extra = _EXTRA_OF.get(found[1]) if found else None
    if found is None or extra is None:
        return None
    return f"the launcher {found[1]} is not installed: pip install 'sae-match[{extra}]' (launcher=local needs nothing)"


def dead_job(error: BaseException) -> str | None:
    """What to do about an error that a launcher raises when the process of a job ended without a word; else None."""
    name = type(error).__name__
    if name in _DIED:
        return (
            "a job's process was killed, most likely for memory, and joblib has ended the other jobs with it. Choose "
            "fewer hydra.launcher.n_jobs and launch again."
        )
    if name in _UNCOMPLETED:
        return (
            f"{error}\nA job ended without a result (killed, out of memory or time); the others go on. See its log in "
            "<sweep>/.submitit/."
        )
    return None
