"""Readable errors for Hydra's launcher plugins: which package is missing, and why the process of a job died."""

from __future__ import annotations

import re

_SOURCE_OF = {
    "joblib": "pip install 'sae-match[joblib]'",
    "submitit_slurm": "pip install 'sae-match[slurm]'",
    "submitit_local": "pip install 'sae-match[slurm]'",
    "ray": "in an environment of its own, as conf/launcher/ray.yaml says",
}
"""Hydra's launcher -> how to install what brings it."""
_MISSING = re.compile(r"Could not find 'hydra/launcher/(\w+)'")
_DIED = ("TerminatedWorkerError", "BrokenProcessPool")
_UNCOMPLETED = ("UncompletedJobError", "FailedJobError")


def missing_plugin(message: str) -> str | None:
    """What to install, where Hydra's error says that it does not know a launcher; None for any other error."""
    found = _MISSING.search(message)
    source = _SOURCE_OF.get(found[1]) if found else None
    if found is None or source is None:
        return None
    return f"the launcher {found[1]} is not installed: {source} (launcher=local needs nothing)"


def explain_worker_death(error: BaseException) -> str | None:
    """What to do about the error of a launcher whose worker process died; None for any other error."""
    name = type(error).__name__  # joblib and submitit may not be installed
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
