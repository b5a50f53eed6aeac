"""Files of others in a directory that a job would take for its record: a record replaces only what it wrote itself."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ..errors import UserError
from .heartbeat import SIGN
from .state import STATUS

CONFIG = "config.yaml"
_CONFIG_KEYS = {"matching", "folding", "solver", "sae", "layers", "paths"}
_FOLDERS = (".hydra", "wandb")
"""What Hydra and W&B make in a job's directory, beside Hydra's log."""
_FAILURE = "error.log"


def holds_record(directory: Path) -> bool:
    """Whether a readable status.json or config.yaml in the directory is one that a job wrote."""
    try:
        status = json.loads((directory / STATUS).read_text(encoding="utf-8"))
        if isinstance(status, dict) and {"state", "process"} <= status.keys():
            return True
    except (OSError, ValueError):
        pass
    try:
        config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and config.keys() >= _CONFIG_KEYS


def refuse_foreign_files(directory: Path) -> None:
    """Refuse a directory with files in it that no record vouches for.

    A job that was interrupted before its first file leaves Hydra's and W&B's folders, a log, a lock or a temporary
    file: these do not count.

    Raises:
        UserError: naming some of the files.
    """
    if not directory.is_dir() or holds_record(directory):
        return
    foreign = sorted(path.name for path in directory.iterdir() if not _made_by_job(path))
    if foreign:
        named = ", ".join(foreign[:5]) + (f", ... ({len(foreign)} in all)" if len(foreign) > 5 else "")
        raise UserError(
            f"{directory} holds files but no record of a job ({named}). A job replaces files such as figures/*.png and "
            "metrics.json, so its directory must be new, empty, or an earlier record. Choose another paths.output_dir "
            "(or hydra.run.dir)."
        )


def _made_by_job(path: Path) -> bool:
    if path.is_dir():
        return path.name in _FOLDERS
    temporary = path.name.startswith(".") and ".tmp" in path.name
    return temporary or path.name.startswith(SIGN) or (path.suffix == ".log" and path.name != _FAILURE)
